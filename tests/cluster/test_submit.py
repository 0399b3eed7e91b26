"""`submit` and what follows, from a machine that shares nothing with the cluster but the storage and the network."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.storage.records import RecordStore
from tests.cluster.conftest import Cluster
from tests.cluster.laptop import MOST, Laptop
from tests.faults.processes import descendants
from tests.helpers.tiny import TRIALS

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture
def laptop(tmp_path: Path, cluster: Cluster) -> Iterator[Laptop]:
    """A machine that is none of the cluster's."""
    folder = tmp_path / "laptop"
    folder.mkdir()
    one = Laptop(folder, cluster)
    yield one
    one.close()


@pytest.fixture
def config(laptop: Laptop) -> Callable[..., str]:
    """Writes a benchmark on the laptop; its name there."""
    return laptop.config


LONG = {"training": {"steps": 3000, "batch_size": 50}}


def test_a_benchmark_is_submitted_and_followed_to_its_end(
    laptop: Laptop, config: Callable[..., str], tmp_path: Path
) -> None:
    """All trials are in the storage and once in MLflow, the report is drawn, and `status` says so."""
    from mlflow.tracking import MlflowClient

    storage = tmp_path / "storage"
    where = ["--storage", str(storage), "--tracking-uri", laptop.cluster.mlflow]
    code, said = laptop.call("submit", config("whole"), *where)
    assert code == 0, said
    store = RecordStore(str(storage))
    assert len(list(store.records())) == TRIALS
    assert (storage / "report" / "figure2.png").is_file()
    client = MlflowClient(laptop.cluster.mlflow)
    experiment = client.get_experiment_by_name("whole")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`deelbo.role` = 'trial'")
    assert sorted(run.data.tags["deelbo.key"] for run in runs) == sorted(record.key for record in store.records())
    code, said = laptop.call("status", "whole")
    assert code == 0
    assert "SUCCEEDED" in said
    code, said = laptop.call("logs", "whole")
    assert "9/9 done" in said
    assert laptop.call("report", str(storage), "--out", "report")[0] == 0
    assert (laptop.folder / "report" / "figure2.png").is_file()


def test_a_second_submit_goes_on_with_the_first_and_another_is_refused(
    laptop: Laptop, config: Callable[..., str], tmp_path: Path
) -> None:
    """One storage has one job; `stop` ends it, and what it had is kept."""
    name, where = config("twice", **LONG), ["--storage", str(tmp_path / "storage"), "--unchecked"]
    code, said = laptop.call("submit", name, *where, "--detach")
    assert code == 0, said
    job = said.split()[0]
    laptop.until("done, [12] running", "status", job)
    again = laptop.start("submit", name, *where)
    assert again.stdout is not None
    assert f"{job} is at work already" in again.stdout.readline()
    other, said = laptop.call("submit", name, *where, "--set", "training.steps=2999")
    assert (other, said.count("\n")) == (2, 1)
    assert "training.steps is 3000 there, 2999 here" in said
    code, said = laptop.call("stop", job)
    assert code == 0, said
    rest, _ = again.communicate(timeout=60)
    assert again.returncode == 130, rest
    assert "same command continues" in rest
    assert laptop.call("stop")[0] == 2  # of whom?
    assert "has ended before" in laptop.call("stop", job)[1]
    assert "STOPPED" in laptop.call("status", job)[1]
    assert not (tmp_path / "storage" / "lock.json").exists()


def test_a_laptop_that_goes_away_changes_nothing(laptop: Laptop, config: Callable[..., str], tmp_path: Path) -> None:
    """The submitting process is killed as soon as the job has begun; the job ends well."""
    storage = tmp_path / "storage"
    process = laptop.start("submit", config("closed"), "--storage", str(storage), "--unchecked")
    assert process.stdout is not None
    assert "is submitted" in process.stdout.readline()
    process.kill()
    process.wait()
    assert "SUCCEEDED" in laptop.until("SUCCEEDED|FAILED|STOPPED", "status", "closed")
    assert len(list(RecordStore(str(storage)).records())) == TRIALS


def test_a_worker_that_is_killed_costs_no_trial(laptop: Laptop, config: Callable[..., str], tmp_path: Path) -> None:
    """Its process group gets SIGKILL while it trains; its trial runs again, and the job ends well."""
    storage = tmp_path / "storage"
    where = ["--storage", str(storage), "--unchecked"]
    longer = {"training": {"steps": 300, "batch_size": 50}}
    process = laptop.start("submit", config("killed", **longer), *where)
    kill_group(trainer(laptop.cluster))
    said, _ = process.communicate(timeout=MOST)
    assert process.returncode == 0, said
    assert "lost, tried again" in said
    records = list(RecordStore(str(storage)).records())
    assert len(records) == TRIALS
    assert max(record.attempt for record in records) == 2


def trainer(cluster: Cluster) -> int:
    """A process of the cluster that is inside a trial."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for parent in cluster.pids():
            for pid in descendants(parent):
                try:
                    title = Path(f"/proc/{pid}/cmdline").read_bytes()
                except OSError:
                    continue
                if b"Trainable.train" in title:
                    return pid
        time.sleep(0.05)
    raise AssertionError("no trial ran")


def kill_group(pid: int) -> None:
    """SIGKILL to a process and all of its group, which must be its own."""
    assert os.getpgid(pid) == pid
    os.killpg(pid, signal.SIGKILL)


def test_failed_trials_make_the_exit_code_1(laptop: Laptop, config: Callable[..., str], tmp_path: Path) -> None:
    """Of `submit` and of `status`, as of `run`."""
    name = config("failing", methods={"de-elbo": {"learning_rates": [0.1]}}, max_failures=0)
    process = laptop.start(
        "submit", name, "--storage", str(tmp_path / "storage"), "--unchecked", "--set", "training.steps=100000"
    )
    os.kill(trainer(laptop.cluster), signal.SIGKILL)
    said, _ = process.communicate(timeout=MOST)
    assert process.returncode == 1, said
    code, said = laptop.call("status", "failing")
    assert code == 1
    assert "some trials failed" in said


def test_what_run_refuses_submit_refuses_with_2(laptop: Laptop, config: Callable[..., str], tmp_path: Path) -> None:
    """A storage of another benchmark is found by the job; its line comes through."""
    storage = ["--storage", str(tmp_path / "storage"), "--unchecked"]
    assert laptop.call("submit", config("first"), *storage)[0] == 0
    code, said = laptop.call("submit", config("first"), *storage, "--set", "training.momentum=0.5")
    assert code == 2
    assert "holds another benchmark (training.momentum was 0.9 and is now 0.5)" in said


def test_the_code_of_a_checkout_may_go_along(laptop: Laptop, config: Callable[..., str], tmp_path: Path) -> None:
    """With --from-source the job runs what is here, whatever is installed there."""
    import shutil

    import bench

    root = Path(bench.__file__).parent.parent
    for package in ("bench", "deelbo"):
        shutil.copytree(root / package, laptop.folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    words = "a checkout of its own"
    outcome = laptop.folder / "bench" / "outcome.py"
    outcome.write_text(outcome.read_text().replace("trials in {duration(", f"trials of {words} in {{duration("))
    storage = ["--storage", str(tmp_path / "storage"), "--unchecked", "--from-source"]
    code, said = laptop.call("submit", config("source"), *storage, PYTHONPATH=str(laptop.folder))
    assert code == 0, said
    assert words in said


def test_two_submits_at_one_moment_are_one_job(laptop: Laptop, config: Callable[..., str], tmp_path: Path) -> None:
    """One starts it, the other goes on with it, and every trial runs once."""
    name, where = config("both"), ["--storage", str(tmp_path / "storage"), "--unchecked"]
    both = [laptop.start("submit", name, *where) for _ in range(2)]
    said = [process.communicate(timeout=MOST)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("at work already" in words for words in said) == [False, True], said
    assert all("9/9 done" in words for words in said)
    listed = laptop.call("status")[1]
    assert listed.count("deelbo-both-") == 1, listed


def test_a_driver_that_is_killed_is_told_and_the_next_submit_continues(
    laptop: Laptop, config: Callable[..., str], tmp_path: Path
) -> None:
    """Exit code 2, as nobody knows what came of it; what it had is kept."""
    storage = tmp_path / "storage"
    name, where = config("driver", **LONG), ["--storage", str(storage), "--unchecked"]
    process = laptop.start("submit", name, *where)
    trainer(laptop.cluster)
    owner = json.loads((storage / "lock.json").read_text())
    os.kill(owner["pid"], signal.SIGKILL)
    said, _ = process.communicate(timeout=MOST)
    assert process.returncode == 2, said
    assert "exit code" in said.splitlines()[-1]
    code, said = laptop.call("submit", name, *where, "--detach")
    assert code == 0, said
    assert said.startswith("deelbo-driver-")
    laptop.until("the last run here was killed", "logs", "driver")
    assert laptop.call("stop", "driver")[0] == 0


def test_nothing_is_submitted_to_a_cluster_that_does_not_fit(
    laptop: Laptop, config: Callable[..., str], tmp_path: Path
) -> None:
    """GPUs that are not there are told before any job of the benchmark exists."""
    name = config("gpu", resources={"gpus_per_trial": 1})
    code, said = laptop.call("submit", name, "--storage", str(tmp_path / "storage"))
    assert code == 2, said
    assert "GPU" in said.splitlines()[-1]
    assert "deelbo-gpu-" not in laptop.call("status")[1]
    assert not (tmp_path / "storage" / "benchmark.json").exists()
