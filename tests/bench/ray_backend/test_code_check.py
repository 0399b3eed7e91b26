"""Trials run the driver's code, whatever lies in the current folder; nodes with other code are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench
from bench.ray_backend.code_check import code_problem
from bench.storage.records import RecordStore
from bench.utils.code import Code, running_code
from tests.helpers.raylets import LOOPBACK, Raylets
from tests.helpers.tiny import CONTENT

ROOT = Path(bench.__file__).resolve().parents[1]
ENTRY = "from bench.cli.main import main\nraise SystemExit(main())\n"
SHADOWS = ("deelbo/__init__", "random", "torch", "yaml", "pathlib", "types")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with modules by the names of imported ones, each of which ends the process that imports it."""
    for name in SHADOWS:
        file = tmp_path / "here" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"raise SystemExit('{name} of the current folder')\n")
    return tmp_path / "here"


def test_the_command_ignores_the_current_folder(folder: Path) -> None:
    """`python -m bench` imports nothing from the folder that it is called in; Python itself does before it starts."""
    (folder / "types.py").unlink()
    command = [sys.executable, "-m", "bench", "plan", "quickstart"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of the current folder" not in done.stdout + done.stderr


@pytest.mark.slow
def test_trials_ignore_the_current_folder(folder: Path, tmp_path: Path, cache: Path) -> None:
    """A run by the installed command has results, whose records hold the hash of the driver's code."""
    (folder / "bench.py").write_text("raise SystemExit('bench of the current folder')")
    script = tmp_path / "bin" / "deelbo-bench"
    script.parent.mkdir()
    script.write_text(ENTRY)
    content = CONTENT | {"methods": {"de-elbo": {"learning_rates": [0.1]}}, "n": [100]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    environment = os.environ | {"DEELBO_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), "run", "tiny.yaml", "--storage", "storage"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    records = list(RecordStore(str(folder / "storage")).records())
    assert {record.status for record in records} == {"completed"}
    assert {record.versions["code"] for record in records} == {running_code().hash}


def test_the_difference_is_described() -> None:
    """Equal code in any folder is accepted; a node with other code or none is named, with both folders."""
    own = running_code()
    assert code_problem("n7", asdict(Code("/elsewhere", own.hash)), own) is None
    other = code_problem("n7", asdict(Code("/elsewhere", "abc")), own)
    assert other is not None
    assert other.startswith(
        f"node n7 has other code than this command: /elsewhere (abc) there, {own.folder} ({own.hash})"
    )
    assert "install one version" in other
    assert "none there" in str(code_problem("n7", {}, own))


def test_a_node_with_another_plugin_is_named() -> None:
    """A plug-in that is missing, of another version or of other sources is named with both."""
    own = replace(running_code(), plugins={"my_data": "1.0 (abc)"})
    for there, shown in (
        ({"my_data": "1.0 (abd)"}, "1.0 (abd)"),
        ({"my_data": "2.0 (abc)"}, "2.0 (abc)"),
        ({}, "none"),
    ):
        problem = code_problem("n7", asdict(replace(own, plugins=there)), own)
        expected = f"node n7 has another plug-in my_data than this command: {shown} there, 1.0 (abc) here"
        assert str(problem).startswith(expected)
    assert code_problem("n7", asdict(replace(own, folder="/elsewhere")), own) is None


DRIVER = """
import sys
from ray.job_config import JobConfig
from bench.config.loading import parse_benchmark
from bench.ray_backend import code_check, connect, tuner
from bench.scheduling.callbacks import RunCallback
from bench.storage.attempts import AttemptLog
from bench.storage.lock import StorageLock
from bench.storage.records import RecordStore
from tests.helpers.tiny import CONTENT, SPEC

address, benchmark, store = sys.argv[1], parse_benchmark(CONTENT, "x"), RecordStore("storage")
with connect.ray_session(benchmark.resources, address):
    code_check.NodeCodeCheck({"CPU": 1.0}).on_trial_start(SPEC)
    print("equal")
connect.worker_search_path = lambda: JobConfig(_client_job=True)  # as if the nodes had no such folder
with StorageLock(store) as lock:
    run = tuner.BenchmarkRun(benchmark, lock, [], AttemptLog(store), {}, address, say=lambda line: None)
    for late in range(2):
        summary = run.run()
        print(summary.stop_reason)
        print(summary.ran, store.names("records"))
        tuner.NodeCodeCheck = lambda *_: RunCallback()  # as for a node that joins later
"""


@pytest.mark.slow
def test_a_node_with_other_code_is_refused(tmp_path: Path) -> None:
    """A worker gets the driver's code if the node has it, else the node is refused before any trial.

    A node that joins after that check runs no trial either, and stops the run.
    """
    other = tmp_path / "other"
    for package in ("bench", "deelbo"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "deelbo" / "__init__.py").open("a") as file:
        file.write("# another version\n")
    with Raylets() as cluster:
        cluster.environment = {**cluster.environment, "PYTHONPATH": str(other)}
        cluster.add(cpus=1)
        cluster.wait(2)
        command = [sys.executable, "-c", DRIVER, cluster.address]
        environment = os.environ | LOOPBACK | {"PYTHONPATH": str(ROOT)}
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": 120}
        done = subprocess.run(command, cwd=tmp_path, env=environment, **options)
    assert done.returncode == 0, done.stderr
    equal, *lines = done.stdout.splitlines()
    assert equal == "equal"
    assert lines[1::2] == ["0 []"] * 2
    for line in lines[::2]:
        assert f"has other code than this command: {other} (" in line
        assert f"there, {ROOT} ({running_code().hash}) here" in line
