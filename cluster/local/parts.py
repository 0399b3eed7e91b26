"""The parts of a cluster as commands: a Ray head, its workers, and an MLflow server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster.local.processes import MARK, born
from cluster.local.state import Part, State

__all__ = ["start_head", "start_mlflow", "start_worker"]

LOOPBACK = "127.0.0.1"
STORE = str(512 * 1024 * 1024)
"""Bytes of each node's object store: Ray would take a third of the machine for each."""
OF_RAY = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""What would lead to another cluster, and the token, which only Ray's own parts get."""


def start_head(state: State) -> Part:
    """The head: the GCS, the dashboard with the Job API, and a node without CPUs, on which drivers run."""
    ports = state.ports
    return _start_node(
        state,
        "head",
        *("--head", "--port", str(ports["ray"]), "--num-cpus", "0"),
        *("--dashboard-host", LOOPBACK, "--dashboard-port", str(ports["dashboard"])),
        *("--ray-client-server-port", str(ports["client"]), "--disable-usage-stats"),
    )


def start_worker(state: State, number: int, cpus: int) -> Part:
    """A node that joins the head, as one of another machine would."""
    address = f"{LOOPBACK}:{state.ports['ray']}"
    return _start_node(state, f"worker{number}", "--address", address, "--num-cpus", str(cpus))


def _start_node(state: State, name: str, *options: str) -> Part:
    """A node in the foreground of a process of its own, that ends when one of its own ends, and takes them along."""
    temporary = Path(state.temporary)
    shared = ("--block", "--node-ip-address", LOOPBACK, "--node-name", name, "--num-gpus", "0")
    # nodes of one address would choose the same ports for their processes
    ports = ("--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0")
    store = ("--object-store-memory", STORE, "--temp-dir", str(temporary / name))
    command = [str(Path(__file__).with_name("node.py")), *options, *shared, *ports, *store]
    work = temporary / f"{name}-work"
    work.mkdir()
    environment = {"RAY_AUTH_MODE": "token" if state.token else "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    if state.token:
        environment |= {key: os.environ[key] for key in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if key in os.environ}
    return _start(state, name, command, work, environment | {"TMPDIR": str(work)})


def start_mlflow(state: State) -> Part:
    """MLflow with a database file and its artifacts in the cluster's folder; clients need no path, only the address."""
    port = state.ports["mlflow"]
    hosts = ",".join(f"{host}{end}" for host in (LOOPBACK, "localhost") for end in ("", f":{port}"))
    command = [
        *("-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{state.folder / 'mlflow.db'}"),
        *("--serve-artifacts", "--artifacts-destination", str(state.folder / "mlartifacts")),
        *("--allowed-hosts", hosts),
    ]
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes that have nothing to do here
    }
    return _start(state, "mlflow", command, state.folder, environment)


def _start(state: State, name: str, command: list[str], work: Path, environment: dict[str, str]) -> Part:
    """A command of this Python as a process in a session of its own, which no closing terminal reaches."""
    log = state.folder / "logs" / f"{name}.log"
    inherited = {key: value for key, value in os.environ.items() if key not in OF_RAY}
    inherited["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=work,
            env=inherited | environment | {MARK: state.mark, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    part = Part(name, process.pid, born(process.pid), str(log))
    state.parts.append(part)
    state.write()
    return part
