"""`submit`, `status`, `logs` and `stop` from a computer that shares only storage and network with the cluster."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

import bench
from bench.storage.records import RecordStore
from tests.cluster.conftest import Cluster
from tests.cluster.laptop import MAX_COMMAND_SECONDS, Laptop
from tests.faults.processes import descendants, until
from tests.helpers.plugins import read_example, write_dataset, write_method
from tests.helpers.tiny import CONTENT, TRIALS

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

LONG = {"training": {"steps": 3000, "batch_size": 50}}


@pytest.fixture
def laptop(tmp_path: Path, cluster: Cluster) -> Iterator[Laptop]:
    """A computer outside of the cluster."""
    folder = tmp_path / "laptop"
    folder.mkdir()
    made = Laptop(folder, cluster)
    yield made
    made.close()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A path that the laptop and all nodes see."""
    return tmp_path / "storage"


@pytest.fixture
def options(storage: Path) -> list[str]:
    """Options of `submit` that name the storage and skip the checks of the cluster."""
    return ["--storage", str(storage), "--unchecked"]


def wait_for_training(cluster: Cluster) -> int:
    """Return the number of a process of the cluster that trains a trial."""

    def find() -> int | None:
        for process in cluster.processes():
            for pid in descendants(process.pid):
                try:
                    title = Path(f"/proc/{pid}/cmdline").read_bytes()
                except OSError:
                    continue
                if b"Trainable.train" in title:
                    return pid
        return None

    return int(until(find, "a trial runs", 120))


def kill_group(pid: int) -> None:
    """Send SIGKILL to a process and its group, which must be its own."""
    assert os.getpgid(pid) == pid
    os.killpg(pid, signal.SIGKILL)


def test_a_benchmark_runs_to_its_end(laptop: Laptop, storage: Path) -> None:
    """All trials are in the storage and once in MLflow, the report is drawn, and `status` reports success."""
    options = ["--storage", str(storage), "--tracking-uri", laptop.cluster.mlflow]
    code, output = laptop.run("submit", laptop.write_config("whole"), *options)
    assert code == 0, output
    store = RecordStore(str(storage))
    assert len(list(store.records())) == TRIALS
    assert (storage / "report" / "figure2.png").is_file()
    client = MlflowClient(laptop.cluster.mlflow)
    experiment = client.get_experiment_by_name("whole")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`deelbo.role` = 'trial'")
    assert sorted(run.data.tags["deelbo.key"] for run in runs) == sorted(record.key for record in store.records())
    code, output = laptop.run("status", "whole")
    assert code == 0
    assert "SUCCEEDED" in output
    code, output = laptop.run("logs", "whole")
    assert "9/9 done" in output
    assert laptop.run("report", str(storage), "--out", "report")[0] == 0
    assert (laptop.folder / "report" / "figure2.png").is_file()


def test_a_second_submit_follows_the_running_job(laptop: Laptop, storage: Path, options: list[str]) -> None:
    """A storage has one job: the same `submit` follows it, one with other settings is refused; `stop` ends it."""
    name = laptop.write_config("twice", **LONG)
    code, output = laptop.run("submit", name, *options, "--detach")
    assert code == 0, output
    job = output.split()[0]
    laptop.run_until("done, [12] running", "status", job)
    again = laptop.start("submit", name, *options)
    assert again.stdout is not None
    assert f"{job} is running already" in again.stdout.readline()
    code, output = laptop.run("submit", name, *options, "--set", "training.steps=2999")
    assert (code, output.count("\n")) == (2, 1)
    assert "training.steps is 3000 there, 2999 here" in output
    code, output = laptop.run("stop", job)
    assert code == 0, output
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 130, output
    assert "same command continues" in output
    assert laptop.run("stop")[0] == 2  # no job is named
    assert "has ended before" in laptop.run("stop", job)[1]
    assert "STOPPED" in laptop.run("status", job)[1]
    assert not list(storage.glob("lease-*.json"))


def test_the_job_outlives_the_laptop(laptop: Laptop, storage: Path, options: list[str]) -> None:
    """The job succeeds although the submitting process is killed as soon as it has begun."""
    process = laptop.start("submit", laptop.write_config("closed"), *options)
    assert process.stdout is not None
    assert "is submitted" in process.stdout.readline()
    process.kill()
    process.wait()
    assert "SUCCEEDED" in laptop.run_until("SUCCEEDED|FAILED|STOPPED", "status", "closed")
    assert len(list(RecordStore(str(storage)).records())) == TRIALS


def test_a_trial_of_a_killed_worker_runs_again(laptop: Laptop, storage: Path, options: list[str]) -> None:
    """SIGKILL to the process group of a training worker costs an attempt, not a trial."""
    longer = {"training": {"steps": 300, "batch_size": 50}}
    process = laptop.start("submit", laptop.write_config("killed", **longer), *options)
    kill_group(wait_for_training(laptop.cluster))
    output, _ = process.communicate(timeout=MAX_COMMAND_SECONDS)
    assert process.returncode == 0, output
    assert "lost, tried again" in output
    records = list(RecordStore(str(storage)).records())
    assert len(records) == TRIALS
    assert max(record.attempt for record in records) == 2


def test_failed_trials_give_exit_code_1(laptop: Laptop, options: list[str]) -> None:
    """`submit` and `status` return 1 if trials failed, as `run` does."""
    name = laptop.write_config("failing", methods={"de-elbo": {"learning_rates": [0.1]}}, max_failures=0)
    process = laptop.start("submit", name, *options, "--set", "training.steps=100000")
    os.kill(wait_for_training(laptop.cluster), signal.SIGKILL)
    output, _ = process.communicate(timeout=MAX_COMMAND_SECONDS)
    assert process.returncode == 1, output
    code, output = laptop.run("status", "failing")
    assert code == 1
    assert "some trials failed" in output


def test_errors_of_the_job_are_errors_of_submit(laptop: Laptop, options: list[str]) -> None:
    """If the storage holds another benchmark, `submit` prints the line of the job's `run` and returns 2."""
    name = laptop.write_config("first")
    assert laptop.run("submit", name, *options)[0] == 0
    code, output = laptop.run("submit", name, *options, "--set", "training.momentum=0.5")
    assert code == 2
    assert "holds another benchmark (training.momentum was 0.9 and is now 0.5)" in output


def test_from_source_runs_the_code_of_a_checkout(laptop: Laptop, options: list[str]) -> None:
    """With --from-source the job runs the submitted code, not the installed one."""
    root = Path(bench.__file__).parent.parent
    for package in ("bench", "deelbo"):
        shutil.copytree(root / package, laptop.folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    changed = laptop.folder / "bench" / "scheduling" / "run_summary.py"
    changed.write_text(changed.read_text().replace("{self.ran} trials in", "{self.ran} trials of a checkout in"))
    arguments = [laptop.write_config("source"), *options, "--from-source"]
    code, output = laptop.run("submit", *arguments, PYTHONPATH=str(laptop.folder))
    assert code == 0, output
    assert "trials of a checkout in" in output


def test_two_submits_at_the_same_time_start_one_job(laptop: Laptop, options: list[str]) -> None:
    """One `submit` starts the job and the other follows it; each trial runs once."""
    name = laptop.write_config("both")
    both = [laptop.start("submit", name, *options) for _ in range(2)]
    outputs = [process.communicate(timeout=MAX_COMMAND_SECONDS)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted("is running already" in output for output in outputs) == [False, True], outputs
    assert all("9/9 done" in output for output in outputs)
    listed = laptop.run("status")[1]
    assert listed.count("deelbo-both-") == 1, listed


def test_the_next_submit_continues_after_a_killed_driver(laptop: Laptop, storage: Path, options: list[str]) -> None:
    """`submit` returns 2 if the driver is killed; the next one resumes from the records."""
    name = laptop.write_config("driver", **LONG)
    process = laptop.start("submit", name, *options)
    wait_for_training(laptop.cluster)
    owner = json.loads((storage / "lease-1.json").read_text())
    os.kill(owner["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=MAX_COMMAND_SECONDS)
    assert process.returncode == 2, output
    assert "exit code" in output.splitlines()[-1]
    code, output = laptop.run("submit", name, *options, "--detach")
    assert code == 0, output
    assert output.startswith("deelbo-driver-")
    laptop.run_until("the last run here was killed", "logs", "driver")
    assert laptop.run("stop", "driver")[0] == 0


def test_a_benchmark_that_does_not_fit_is_not_submitted(laptop: Laptop, storage: Path) -> None:
    """Missing GPUs are reported before a job of the benchmark exists."""
    name = laptop.write_config("gpu", resources={"gpus_per_trial": 1})
    code, output = laptop.run("submit", name, "--storage", str(storage))
    assert code == 2, output
    assert "GPU" in output.splitlines()[-1]
    assert "deelbo-gpu-" not in laptop.run("status")[1]
    assert not (storage / "benchmark.json").exists()


def test_plugins_go_along(laptop: Laptop, storage: Path) -> None:
    """With --from-source the plug-ins and allowed packages of this computer are used by driver and workers."""
    write_dataset(laptop.folder / "plugins")
    write_method(laptop.folder / "plugins")
    path = os.pathsep.join([str(Path(bench.__file__).resolve().parents[1]), str(laptop.folder / "plugins")])
    plugged = {"dataset": "rows", "methods": {"rule-of-thumb": None, "elbo": None}, "resources": {"gpus_per_trial": 0}}
    content = (
        CONTENT | plugged | {"name": "plugged", "backbones": {"mine": {"model": "lab_nets:make", "weights": "none"}}}
    )
    del content["backbone"]
    (laptop.folder / "lab_nets.py").write_text(
        read_example("plugins.md", 1) + "\ndef make(n):\n    return build(n, None)\n"
    )
    (laptop.folder / "plugged.yaml").write_text(yaml.safe_dump(content))
    options = ["--storage", str(storage), "--tracking-uri", laptop.cluster.mlflow, "--allow-import", "lab_nets"]
    code, output = laptop.run("submit", "plugged.yaml", *options, PYTHONPATH=path)
    assert (code, "plug-ins: my_data 1.0 (" in output, "none on" in output) == (2, True, True), output
    code, output = laptop.run("submit", "plugged.yaml", *options, "--from-source", PYTHONPATH=path)
    assert code == 0, output
    records = list(RecordStore(str(storage)).records())
    assert {record.spec.method for record in records} == {"rule-of-thumb", "elbo"}
    assert {record.versions["my-data"] for record in records} == {"1.0"}
    assert all(record.versions["lab_nets code"] for record in records)
