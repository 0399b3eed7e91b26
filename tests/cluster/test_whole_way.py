"""The commands of the README from start to end: make cluster, submit quickstart, make cluster-down."""

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
from tests.cluster.conftest import ROOT, Cluster, alive, free_ports
from tests.cluster.laptop import Laptop
from tests.cluster.test_submit import kill_group, wait_for_training

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]
NUM_TRIALS = 168


def make(target: str, folder: Path, variables: dict[str, str]) -> str:
    """Run `make TARGET` with this environment's Python, without installing anything."""
    venv = Path(sys.prefix)
    line = ["make", "-o", str(venv / ".bench"), target, f"VENV={venv}", f"CLUSTER={folder}"]
    line += [f"{name}={value}" for name, value in variables.items()]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"} | variables
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster started by `make cluster`, stopped by the test or after it."""
    made, ports = Cluster(tmp_path / "deelbo-cluster"), free_ports()
    make("cluster", made.folder, ports)
    yield made
    if made.processes():
        make("cluster-down", made.folder, ports)


def test_the_quickstart_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """A quickstart that is submitted from another folder, followed by a second process and loses a worker on the way
    succeeds; MLflow has each trial once, the report is drawn, and nothing of the cluster is left at the end."""
    laptop = Laptop(tmp_path / "laptop", cluster)
    laptop.folder.mkdir()
    storage = tmp_path / "shared" / "quickstart"
    options = ["--storage", str(storage), "--tracking-uri", cluster.mlflow]
    code, output = laptop.run("submit", "quickstart", *options, "--detach")
    assert code == 0, output
    follower = laptop.start("logs", "quickstart", "--follow")
    wait_for_training(cluster)
    time.sleep(20)
    kill_group(wait_for_training(cluster))
    output, _ = follower.communicate(timeout=900)
    assert follower.returncode == 0, output
    assert "lost, tried again" in output
    assert "SUCCEEDED" in laptop.run("status", "quickstart")[1]
    keys = Counter(record.key for record in RecordStore(str(storage)).records())
    assert len(keys) == NUM_TRIALS
    client = MlflowClient(cluster.mlflow)
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`deelbo.role` = 'trial'", max_results=1000)
    assert Counter(run.data.tags["deelbo.key"] for run in runs) == keys
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert laptop.run("report", str(storage), "--out", "report")[0] == 0
    assert (laptop.folder / "report" / "figure2.png").stat().st_size > 10_000
    processes, ports = cluster.processes(), cluster.state.ports
    make("cluster-down", cluster.folder, {})
    assert not alive(processes)
    for port in ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
