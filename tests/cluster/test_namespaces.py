"""A cluster of two machines that share nothing but the storage folder and the network."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bench.storage.records import RecordStore
from tests.cluster import machines
from tests.cluster.machines import Machine
from tests.helpers.tiny import CONTENT, TRIALS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(not machines.possible(), reason="needs root, ip and unshare"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder on both machines."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def head(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A head without CPUs that one worker has joined."""
    with machines.machines(shared, tmp_path_factory.mktemp("logs")) as start:
        head = start("node-a", machines.head())
        machines.wait_for(f"http://{head.ip}:8265/api/version")
        start("node-b", machines.worker(head, cpus=2))
        _wait_for_two_nodes(head)
        yield head


def _wait_for_two_nodes(head: Machine) -> None:
    deadline = time.monotonic() + 120
    while "2 nodes" not in _run(head, Path("/"), "doctor")[1]:
        assert time.monotonic() < deadline, _run(head, Path("/"), "doctor")[1]


def _run(head: Machine, folder: Path, *arguments: str) -> tuple[int, str]:
    environment = os.environ | {"RAY_API_SERVER_ADDRESS": f"http://{head.ip}:8265", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280
    )
    return done.returncode, done.stdout


def test_a_benchmark_runs(head: Machine, shared: Path, tmp_path: Path) -> None:
    """The benchmark needs no path of the submitting machine, the driver or the job on another machine."""
    (tmp_path / "apart.yaml").write_text(yaml.safe_dump(CONTENT | {"name": "apart"}))
    code, output = _run(head, tmp_path, "submit", "apart.yaml", "--storage", str(shared / "storage"))
    assert code == 0, output
    records = list(RecordStore(str(shared / "storage")).records())
    assert len(records) == TRIALS
    assert {record.hardware["node"] for record in records} == {"node-b"}
    assert (shared / "storage" / "report" / "figure2.png").is_file()


def test_a_storage_on_one_machine_is_refused(head: Machine, tmp_path: Path) -> None:
    """`submit` and `doctor` report a storage that only the driver can read before a trial runs."""
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(CONTENT | {"name": "alone"}))
    options = ["--storage", "/tmp/only-here"]  # noqa: S108 - on the machine
    code, output = _run(head, tmp_path, "submit", "alone.yaml", *options)
    assert code == 2, output
    assert "storage" in output.splitlines()[-1]
    assert "deelbo-alone-" not in _run(head, tmp_path, "status")[1]
    code, output = _run(head, tmp_path, "doctor", "alone.yaml", *options, "--json")
    assert code == 1
    failed = [one for one in json.loads(output)["findings"] if one["verdict"] == "fail"]
    assert [one["check"] for one in failed] == ["storage"], failed
