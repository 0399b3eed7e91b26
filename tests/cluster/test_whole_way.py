"""The way that README shows: make cluster, submit quickstart from elsewhere, make cluster-down; and what is left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from bench.storage.records import RecordStore
from cluster.local.processes import alive
from cluster.local.state import State
from tests.cluster.conftest import ROOT, Cluster, free_ports
from tests.cluster.test_submit import Laptop, kill_group, trainer

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]
TRIALS = 168


def make(target: str, folder: Path, variables: dict[str, str]) -> str:
    """`make TARGET` with this environment's Python; nothing is installed."""
    venv = Path(sys.prefix)
    line = ["make", "-o", str(venv / ".bench"), target, f"VENV={venv}", f"CLUSTER={folder}"]
    line += [f"{name}={value}" for name, value in variables.items()]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"} | variables
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster by `make cluster`, ended by the test or after it."""
    folder, ports = tmp_path / "deelbo-cluster", free_ports()
    make("cluster", folder, ports)
    addresses = [f"127.0.0.1:{ports[name]}" for name in ("DASHBOARD_PORT", "MLFLOW_PORT", "RAY_PORT")]
    yield Cluster(f"http://{addresses[0]}", f"http://{addresses[1]}", folder, addresses[2])
    if State.read(folder) is not None:
        make("cluster-down", folder, ports)


def test_the_quickstart_on_a_cluster(up: Cluster, tmp_path: Path) -> None:
    """Submitted from another folder, followed by another process, one worker's process group killed on the way: it
    succeeds, MLflow has every trial once, the report is drawn, and nothing of the cluster is left in the end."""
    laptop = Laptop(tmp_path / "laptop", up)
    laptop.folder.mkdir()
    storage = tmp_path / "shared" / "quickstart"
    where = ["--storage", str(storage), "--tracking-uri", up.mlflow]
    code, said = laptop.call("submit", "quickstart", *where, "--detach")
    assert code == 0, said
    follower = laptop.start("logs", "quickstart", "--follow")
    trainer(up)
    time.sleep(20)
    kill_group(trainer(up))
    said, _ = follower.communicate(timeout=900)
    assert follower.returncode == 0, said
    assert "lost, tried again" in said
    assert "SUCCEEDED" in laptop.call("status", "quickstart")[1]
    keys = Counter(record.key for record in RecordStore(str(storage)).records())
    assert len(keys) == TRIALS
    client = MlflowClient(up.mlflow)
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`deelbo.role` = 'trial'", max_results=1000)
    assert Counter(run.data.tags["deelbo.key"] for run in runs) == keys
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert laptop.call("report", str(storage), "--out", "report")[0] == 0
    assert (laptop.folder / "report" / "figure2.png").stat().st_size > 10_000
    processes, ports = up.pids(), up.state.ports
    make("cluster-down", up.folder, {})
    assert not alive(processes)
    for port in ports.values():
        with socket.socket() as one:
            assert one.connect_ex(("127.0.0.1", port)) != 0
