"""A cluster of this machine for the tests that need one."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.local.__main__ import State, find_processes, session_of

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cluster:
    """A running cluster, by the folder of its state, logs and MLflow's database."""

    folder: Path

    @property
    def state(self) -> State:
        return State.read(self.folder)

    @property
    def address(self) -> str:
        """URL of the dashboard, for `submit --address`."""
        return self.state.url("dashboard")

    @property
    def mlflow(self) -> str:
        """URL of MLflow, for --tracking-uri."""
        return self.state.url("mlflow")

    def processes(self) -> set[psutil.Process]:
        return find_processes(self.folder)


def alive(processes: set[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    return [process for process in processes if session_of(process)]


def free_ports() -> dict[str, str]:
    """Variables that give a cluster free ports."""
    sockets = {name: socket.socket() for name in ("DASHBOARD_PORT", "MLFLOW_PORT", "RAY_PORT")}
    for one in sockets.values():
        one.bind(("127.0.0.1", 0))
    ports = {name: str(one.getsockname()[1]) for name, one in sockets.items()}
    for one in sockets.values():
        one.close()
    return ports


def cluster_command(
    action: str,
    folder: Path,
    variables: Mapping[str, str] | None = None,
    python: str = sys.executable,
    root: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m cluster.local` with the code in ``root``; tokens are off unless the variables turn them on."""
    command = [python, "-m", "cluster.local", action, "--folder", str(folder)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"} | dict(variables or {})
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280, check=False)


def start_cluster(
    folder: Path, variables: Mapping[str, str] | None = None, python: str = sys.executable, root: Path = ROOT
) -> Cluster:
    """Start a cluster on free ports."""
    done = cluster_command("up", folder, free_ports() | dict(variables or {}), python, root)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return Cluster(folder)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head, two workers of one CPU each and MLflow on loopback, without tokens, for the whole session."""
    folder = tmp_path_factory.mktemp("cluster") / "deelbo-cluster"
    yield start_cluster(folder)
    done = cluster_command("down", folder)
    assert done.returncode == 0, done.stderr
