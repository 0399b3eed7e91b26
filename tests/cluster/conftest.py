"""A cluster of this machine, up for the tests that need one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.local.state import State

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up.

    Attributes:
        address: of the dashboard, what `submit --address` takes.
        mlflow: what --tracking-uri takes.
        folder: where its state, logs and MLflow's database are.
        gcs: HOST:PORT, what `run --address` takes of a driver in whose environment `cluster.local.node.STAY` is.
    """

    address: str
    mlflow: str
    folder: Path
    gcs: str

    @property
    def state(self) -> State:
        state = State.read(self.folder)
        assert state is not None, "the cluster has no state any more"
        return state

    def pids(self) -> dict[int, str]:
        """All of its processes, with their births."""
        return self.state.processes()


def free_ports() -> dict[str, str]:
    """Variables that give a cluster ports of its own."""
    sockets = {name: socket.socket() for name in ("DASHBOARD_PORT", "MLFLOW_PORT", "RAY_PORT")}
    for one in sockets.values():
        one.bind(("127.0.0.1", 0))
    ports = {name: str(one.getsockname()[1]) for name, one in sockets.items()}
    for one in sockets.values():
        one.close()
    return ports


def call(
    action: str,
    folder: Path,
    variables: Mapping[str, str] | None = None,
    python: str = sys.executable,
    root: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """`python -m cluster.local`, as make calls it, of the code in ``root``; tokens off unless the variables say
    otherwise."""
    command = [python, "-m", "cluster.local", action, "--folder", str(folder)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"} | dict(variables or {})
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280, check=False)


def started(
    folder: Path, variables: Mapping[str, str] | None = None, python: str = sys.executable, root: Path = ROOT
) -> Cluster:
    """A cluster on ports of its own."""
    done = call("up", folder, free_ports() | dict(variables or {}), python, root)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    ports = json.loads((folder / "state.json").read_text())["ports"]
    address, mlflow, gcs = (f"127.0.0.1:{ports[name]}" for name in ("dashboard", "mlflow", "ray"))
    return Cluster(f"http://{address}", f"http://{mlflow}", folder, gcs)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head, two workers with a CPU each and an MLflow server on loopback, without tokens; gone after the session."""
    folder = tmp_path_factory.mktemp("cluster") / "deelbo-cluster"
    up = started(folder)
    yield up
    done = call("down", folder)
    assert done.returncode == 0, done.stderr
