"""A cluster of two machines that share nothing but the storage folder and the network."""

from __future__ import annotations

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
    """The folder that both machines see."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def head(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A head without slots, and one worker that has joined it."""
    with machines.machines(shared, tmp_path_factory.mktemp("logs")) as start:
        one = start("node-a", machines.head())
        machines.wait_for(f"http://{one.ip}:8265/api/version")
        start("node-b", machines.worker(one, cpus=2))
        _until_two(one)
        yield one


def _until_two(head: Machine) -> None:
    until = time.monotonic() + 120
    while "2 nodes" not in _call(head, Path("/"), "doctor")[1]:
        assert time.monotonic() < until, _call(head, Path("/"), "doctor")[1]


def _call(head: Machine, folder: Path, *arguments: str) -> tuple[int, str]:
    environment = os.environ | {"RAY_API_SERVER_ADDRESS": f"http://{head.ip}:8265", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280
    )
    return done.returncode, done.stdout


def test_a_benchmark_runs_where_nothing_else_is_shared(head: Machine, shared: Path, tmp_path: Path) -> None:
    """No path of the submitting machine, of the driver's or of a job's own folder is needed anywhere else."""
    (tmp_path / "apart.yaml").write_text(yaml.safe_dump(CONTENT | {"name": "apart"}))
    code, said = _call(head, tmp_path, "submit", "apart.yaml", "--storage", str(shared / "storage"))
    assert code == 0, said
    records = list(RecordStore(str(shared / "storage")).records())
    assert len(records) == TRIALS
    assert {record.hardware["node"] for record in records} == {"node-b"}
    assert (shared / "storage" / "report" / "figure2.png").is_file()


def test_a_storage_that_only_the_driver_sees_is_found_out(head: Machine, tmp_path: Path) -> None:
    """By `doctor` and by `submit`, before anything runs, with what to do."""
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(CONTENT | {"name": "alone"}))
    where = ["--storage", "/tmp/only-here"]  # noqa: S108 - in an empty /tmp of its own
    code, said = _call(head, tmp_path, "submit", "alone.yaml", *where)
    assert code == 2, said
    assert "storage" in said.splitlines()[-1]
    assert "deelbo-alone-" not in _call(head, tmp_path, "status")[1]
    code, said = _call(head, tmp_path, "doctor", "alone.yaml", *where, "--json")
    assert code == 1
    failed = [one for one in json.loads(said)["findings"] if one["verdict"] == "fail"]
    assert [one["check"] for one in failed] == ["storage"], failed
