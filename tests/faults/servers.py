"""A real MLflow server, that can be killed and comes back with its database."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from tests.faults.processes import CHILD, until

WITHOUT_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Eight processes of the server's that have nothing to do here."""

DIRECT = build_opener(ProxyHandler({}))  # urlopen keeps the proxies of the process's first call, which a test may set


class Server:
    """`mlflow server` on a database file, in a process group of its own, up while the block runs unless killed.

    Args:
        database: file; where it is missing the server makes it.
        template: an MLflow database to start from, its tables made.
        workers: processes that answer requests.
    """

    def __init__(self, database: Path, template: Path | None = None, workers: int = 1) -> None:
        self.database, self.template, self.workers = database, template, workers
        self.forget()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def start(self, wait: bool = True) -> None:
        """Serves the database, under the same address as before."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.database}", "--workers", str(self.workers)),
            *("--artifacts-destination", str(self.database.with_suffix(".artifacts"))),
        ]
        with self.database.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.database.parent,
                env=os.environ | CHILD | WITHOUT_JOBS,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait()

    def wait(self) -> float:
        """Until it answers; when that was, by time.time()."""
        until(self.answers, f"the MLflow server answers, see {self.database.with_suffix('.log')}", pause=0.2)
        return time.time()

    def answers(self) -> bool:
        try:
            with DIRECT.open(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, HTTPException):
            return False

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            until(lambda: not self._listens(), "its port is free")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def forget(self) -> None:
        """Replace its database by a copy of the template, if it has one."""
        if self.template is not None:
            for file in self.database.parent.glob(f"{self.database.name}*"):
                file.unlink()
            shutil.copyfile(self.template, self.database)
