"""A machine that is none of the cluster's, from which commands are given."""

from __future__ import annotations

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

__all__ = ["MOST", "Laptop"]

MOST = 400
"""Seconds that a command may take."""


@dataclass
class Laptop:
    """A folder and an environment of its own, from which commands are given."""

    folder: Path
    cluster: Cluster
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        # as on another machine: nothing but the address is known
        known = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return known | {"RAY_API_SERVER_ADDRESS": self.cluster.address, "RAY_AUTH_MODE": "disabled"} | variables

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bench", *arguments]
        environment = self.environment(variables)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.started.append(subprocess.Popen(command, cwd=self.folder, env=environment, **pipes))
        return self.started[-1]

    def call(self, *arguments: str, **variables: str) -> tuple[int, str]:
        process = self.start(*arguments, **variables)
        said, _ = process.communicate(timeout=MOST)
        return process.returncode, said

    def until(self, words: str, *arguments: str, seconds: float = 120) -> str:
        """What a command says, once that is in it."""
        until = time.monotonic() + seconds
        while True:
            _, said = self.call(*arguments)
            if re.search(words, said):
                return said
            assert time.monotonic() < until, said
            time.sleep(0.5)

    def config(self, name: str, **changes: Any) -> str:
        """Writes a small benchmark here; its file's name."""
        changed = CONTENT | {"name": name, "resources": {}} | changes
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(changed))
        return f"{name}.yaml"

    def close(self) -> None:
        """Ends what still runs."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
