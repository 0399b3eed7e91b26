"""The sbatch script on a real Slurm of two nodes: resources, exit codes, stopping, and cleaning up."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.storage.records import RecordStore
from tests.cluster import slurm
from tests.cluster.slurm import Slurm
from tests.helpers.tiny import CONTENT

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "slurm" / "deelbo.sbatch"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing()),
]
FAKE_RAY = """#!PYTHON
import json, os, subprocess, sys
path = os.environ["RAY_AUTH_TOKEN_PATH"]
node = os.environ["SLURMD_NODENAME"]
seen = {"words": sys.argv, "environment": dict(os.environ), "token": open(path).read(), "folder": os.getcwd()}
json.dump(seen, open(node + ".json", "w"))
if os.environ["SLURM_NODEID"] == "0":
    sys.exit(subprocess.run(sys.argv[sys.argv.index("--") + 1:]).returncode)
"""
"""A `ray` that records its call on each node, and runs the command on the first node without starting Ray."""
FAKE_PYTHON = """#!PYTHON
import os, signal, sys, time
if sys.argv[1] == "-c":
    exec(sys.argv[2])
    sys.exit()
def end(*_):
    open("stopped", "w").close()
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
time.sleep(float(sys.argv[4]))
"""
"""A `python` whose benchmark sleeps for the seconds that its name says, and returns 130 after SIGTERM."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Two nodes, n1 and n2, of one CPU and two GPUs that cannot compute."""
    with slurm.slurm(tmp_path_factory.mktemp("slurm"), ["n1", "n2"], gpus=2) as up:
        yield up


class Job:
    """A folder for jobs, shared by the nodes, and the variables of `sbatch`."""

    def __init__(self, up: Slurm, folder: Path) -> None:
        self.up, self.folder = up, folder
        (folder / "tokens").mkdir()
        self.variables = {"DEELBO_VENV": sys.prefix, "DEELBO_SHARED": str(folder / "tokens"), "OMP_NUM_THREADS": "1"}

    def with_fakes(self) -> Job:
        """Replace `ray` and the benchmark by programs that start nothing."""
        (self.folder / "bin").mkdir()
        for name, text in (("ray", FAKE_RAY), ("python", FAKE_PYTHON)):
            (self.folder / "bin" / name).write_text(text.replace("PYTHON", sys.executable))
            (self.folder / "bin" / name).chmod(0o755)
        self.variables["DEELBO_VENV"] = str(self.folder)
        return self

    def submit(self, options: str, *arguments: str) -> str:
        """Submit the script with options of sbatch and arguments; return the number of the job."""
        words = ["sbatch", "--parsable", "--cpus-per-task=1", *options.split(), str(SCRIPT), *arguments]
        done = self.up.run(*words, cwd=self.folder, **self.variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait(self, number: str, seconds: float = 400) -> dict[str, str]:
        """Wait until a job has left its nodes; return its attributes."""
        deadline = time.monotonic() + seconds
        while self.up.run("squeue", "-h", "-j", number).stdout.strip():
            assert time.monotonic() < deadline, self.output(number)
            time.sleep(0.3)
        return self.up.job(number)

    def run(self, options: str, *arguments: str) -> tuple[dict[str, str], str]:
        """Submit a job and wait for its end; return its attributes and its output."""
        number = self.submit(options, *arguments)
        return self.wait(number), self.output(number)

    def output(self, number: str) -> str:
        file = self.folder / f"deelbo-{number}.out"
        return file.read_text(errors="replace") if file.exists() else ""

    def wait_for_output(self, number: str, text: str, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.output(number):
            assert time.monotonic() < deadline, self.output(number)
            time.sleep(0.2)

    def recorded_call(self, node: str) -> Any:
        """Return the call that the fake `ray` recorded on a node."""
        return json.loads((self.folder / f"{node}.json").read_text())


@pytest.fixture
def job(up: Slurm) -> Job:
    """A new folder for jobs."""
    folder = up.folder / str(len(list(up.folder.iterdir())))
    folder.mkdir()
    return Job(up, folder)


def find_leftovers(up: Slurm, seconds: float = 10) -> list[str]:
    """Return processes that are still on the nodes after some seconds, and new files in /tmp."""
    deadline = time.monotonic() + seconds
    while found := [f"{node}: {words}" for node in up.nodes for words in up.processes(node)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.3)
    return found + [f"{node}: {file}" for node in up.nodes for file in up.new_files(node)]


class TestStep:
    @pytest.mark.parametrize("gpus", ["0", "1", "2", "h100:1"])
    def test_gpus(self, job: Job, gpus: str) -> None:
        """On exclusive nodes of two GPUs, Ray gets and sees as many GPUs as were requested."""
        state, output = job.with_fakes().run(f"--gpus-per-node={gpus}", "0", "storage", "sqlite:///mlflow.db")
        assert state["JobState"] == "COMPLETED", output
        call, number = job.recorded_call("n1"), gpus[-1]
        assert call["words"][call["words"].index("--num-gpus") + 1] == number
        visible = call["environment"].get("CUDA_VISIBLE_DEVICES", "")
        assert len([device for device in visible.split(",") if device]) == int(number)

    @pytest.mark.parametrize("export", ["ALL", "DEELBO_VENV,DEELBO_SHARED"])
    def test_environment(self, job: Job, export: str) -> None:
        """Both nodes have the path, the token and the folder, whatever `sbatch --export` keeps."""
        state, output = job.with_fakes().run(
            f"--nodes=2 --gpus-per-node=0 --export={export}", "0", "storage", "sqlite:///mlflow.db"
        )
        assert state["JobState"] == "COMPLETED", output
        one, two = job.recorded_call("n1"), job.recorded_call("n2")
        assert one["words"] == two["words"]
        assert one["words"][one["words"].index("--address") + 1].startswith(job.up.nodes["n1"].ip + ":")
        assert one["token"] == two["token"]
        assert one["folder"] == two["folder"] == str(job.folder)
        assert two["environment"]["RAY_AUTH_MODE"] == "token"
        assert two["environment"]["DEELBO_TRACKING_URI"] == "sqlite:///mlflow.db"


class TestEnd:
    def test_missing_arguments(self, job: Job) -> None:
        """A job with missing arguments fails with 2 and one line of output."""
        state, output = job.run("--gpus-per-node=0", "tiny.yaml")
        assert (state["JobState"], state["ExitCode"]) == ("FAILED", "2:0")
        assert output == "deelbo.sbatch: got 1 arguments, expected CONFIG STORAGE TRACKING_URI [options of run]\n"

    def test_time_limit(self, job: Job) -> None:
        """Slurm's signal two minutes before the time limit stops the benchmark; the job ends with 130 and cleans up."""
        state, output = job.with_fakes().run(
            "--nodes=2 --gpus-per-node=0 --time=3", "170", "storage", "sqlite:///mlflow.db"
        )
        assert (state["JobState"], state["ExitCode"]) == ("FAILED", "130:0"), output
        assert (job.folder / "stopped").exists()
        assert list((job.folder / "tokens").iterdir()) == []
        assert find_leftovers(job.up) == []


def test_a_canceled_job_is_continued(job: Job) -> None:
    """scancel stops a benchmark on two nodes as Ctrl-C does, and no process or token is left; the same command runs
    the remaining trials on both nodes."""
    methods = {"de-elbo": {"learning_rates": [0.1, 0.03, 0.01]}, "elbo": {"learning_rates": [0.1, 0.03, 0.01]}}
    training = {"steps": 300, "batch_size": 50}
    (job.folder / "tiny.yaml").write_text(yaml.safe_dump(CONTENT | {"methods": methods, "training": training}))
    options, storage = "--nodes=2 --gpus-per-node=0", job.folder / "storage"
    arguments = ("tiny.yaml", str(storage), f"sqlite:///{job.folder}/mlflow.db")
    number = job.submit(options, *arguments)
    job.wait_for_output(number, " running, ")
    assert job.up.run("scancel", number).returncode == 0
    assert job.wait(number)["JobState"] == "CANCELED"
    assert "the same command continues" in job.output(number), job.output(number)
    assert list((job.folder / "tokens").iterdir()) == []
    assert find_leftovers(job.up) == []
    state, output = job.run(options, *arguments)
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), output
    records = list(RecordStore(str(storage)).records())
    assert len(records) == 6
    assert all(record.status == "completed" for record in records)
    assert {record.hardware["node"] for record in records} == {"n1", "n2"}
    assert find_leftovers(job.up) == []
