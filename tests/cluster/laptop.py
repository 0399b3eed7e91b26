"""A computer outside of the cluster, on which commands are called."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.conftest import Cluster
from tests.helpers.tiny import CONTENT

MAX_COMMAND_SECONDS = 400


@dataclass
class Laptop:
    """A folder and an environment from which commands are called; it knows only the address of the cluster."""

    folder: Path
    cluster: Cluster
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return inherited | {"RAY_API_SERVER_ADDRESS": self.cluster.address, "RAY_AUTH_MODE": "disabled"} | variables

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start `deelbo-bench` with these arguments."""
        command = [sys.executable, "-m", "bench", *arguments]
        environment = self.environment(variables)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.started.append(subprocess.Popen(command, cwd=self.folder, env=environment, **pipes))
        return self.started[-1]

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Run `deelbo-bench` and return its exit code and output."""
        process = self.start(*arguments, **variables)
        output, _ = process.communicate(timeout=MAX_COMMAND_SECONDS)
        return process.returncode, output

    def run_until(self, pattern: str, *arguments: str, seconds: float = 120) -> str:
        """Repeat a command until its output matches; return that output."""
        deadline = time.monotonic() + seconds
        while True:
            _, output = self.run(*arguments)
            if re.search(pattern, output):
                return output
            assert time.monotonic() < deadline, output
            time.sleep(0.5)

    def write_config(self, name: str, **changes: Any) -> str:
        """Write a small benchmark into the folder and return the name of its file."""
        changed = CONTENT | {"name": name, "resources": {}} | changes
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(changed))
        return f"{name}.yaml"

    def close(self) -> None:
        """End commands that still run."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
