"""The sbatch script on a real Slurm of two nodes: what its jobs get, how they are stopped, and what they leave."""

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
RAY = """#!PYTHON
import json, os, subprocess, sys
path = os.environ["RAY_AUTH_TOKEN_PATH"]
node = os.environ["SLURMD_NODENAME"]
seen = {"words": sys.argv, "environment": dict(os.environ), "token": open(path).read(), "folder": os.getcwd()}
json.dump(seen, open(node + ".json", "w"))
if os.environ["SLURM_NODEID"] == "0":
    sys.exit(subprocess.run(sys.argv[sys.argv.index("--") + 1:]).returncode)
"""
"""A `ray` that starts nothing, keeps what it was given on each node, and runs the command on the first."""
PYTHON = """#!PYTHON
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
"""A `python` whose benchmark sleeps for as many seconds as it is called, and ends with 130 at SIGTERM."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Two nodes, n1 and n2, of one CPU and two GPUs that nobody can compute on."""
    with slurm.slurm(tmp_path_factory.mktemp("slurm"), ["n1", "n2"], gpus=2) as up:
        yield up


class Job:
    """What `sbatch` needs, in a folder of its own that the nodes share."""

    def __init__(self, up: Slurm, folder: Path) -> None:
        self.up, self.folder = up, folder
        (folder / "kept").mkdir()
        self.variables = {"DEELBO_VENV": sys.prefix, "DEELBO_SHARED": str(folder / "kept"), "OMP_NUM_THREADS": "1"}

    def played(self) -> Job:
        """With a `ray` and a benchmark that start nothing."""
        (self.folder / "bin").mkdir()
        for name, text in (("ray", RAY), ("python", PYTHON)):
            (self.folder / "bin" / name).write_text(text.replace("PYTHON", sys.executable))
            (self.folder / "bin" / name).chmod(0o755)
        self.variables["DEELBO_VENV"] = str(self.folder)
        return self

    def submit(self, options: str, *arguments: str) -> str:
        """The number of the job that ``options`` of sbatch and arguments of the script make."""
        words = ["sbatch", "--parsable", "--cpus-per-task=1", *options.split(), str(SCRIPT), *arguments]
        done = self.up.call(*words, cwd=self.folder, **self.variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait(self, number: str, seconds: float = 400) -> dict[str, str]:
        """What Slurm says of it when it has left its nodes."""
        until = time.monotonic() + seconds
        while self.up.call("squeue", "-h", "-j", number).stdout.strip():
            assert time.monotonic() < until, self.said(number)
            time.sleep(0.3)
        return self.up.job(number)

    def run(self, options: str, *arguments: str) -> tuple[dict[str, str], str]:
        """What Slurm says of a job when it has ended, and what the job said."""
        number = self.submit(options, *arguments)
        return self.wait(number), self.said(number)

    def said(self, number: str) -> str:
        file = self.folder / f"deelbo-{number}.out"
        return file.read_text(errors="replace") if file.exists() else ""

    def until_said(self, number: str, words: str, seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while words not in self.said(number):
            assert time.monotonic() < until, self.said(number)
            time.sleep(0.2)

    def seen(self, node: str) -> Any:
        """What the played `ray` was given there."""
        return json.loads((self.folder / f"{node}.json").read_text())


@pytest.fixture
def job(up: Slurm) -> Job:
    """A job's own folder, below what the nodes share."""
    folder = up.folder / str(len(list(up.folder.iterdir())))
    folder.mkdir()
    return Job(up, folder)


def left(up: Slurm, seconds: float = 10) -> list[str]:
    """What a job has left on the nodes: processes, for longer than some seconds, and files in /tmp."""
    until = time.monotonic() + seconds
    while found := [f"{node}: {words}" for node in up.nodes for words in up.processes(node)]:
        if time.monotonic() > until:
            break
        time.sleep(0.3)
    return found + [f"{node}: {file}" for node in up.nodes for file in up.temporary(node)]


class TestItsStep:
    @pytest.mark.parametrize("gpus", ["0", "1", "2", "h100:1"])
    def test_it_has_the_gpus_that_were_asked_for(self, job: Job, gpus: str) -> None:
        """On nodes of two GPUs that the job has whole, Ray is told of as many as were asked for, and finds as many."""
        state, said = job.played().run(f"--gpus-per-node={gpus}", "0", "storage", "sqlite:///mlflow.db")
        assert state["JobState"] == "COMPLETED", said
        seen, number = job.seen("n1"), gpus[-1]
        assert seen["words"][seen["words"].index("--num-gpus") + 1] == number
        visible = seen["environment"].get("CUDA_VISIBLE_DEVICES", "")
        assert len([device for device in visible.split(",") if device]) == int(number)

    @pytest.mark.parametrize("export", ["ALL", "DEELBO_VENV,DEELBO_SHARED"])
    def test_it_has_what_the_script_exports(self, job: Job, export: str) -> None:
        """On both nodes: the path, the token and the folder, whatever `sbatch --export` keeps of the shell."""
        state, said = job.played().run(
            f"--nodes=2 --gpus-per-node=0 --export={export}", "0", "storage", "sqlite:///mlflow.db"
        )
        assert state["JobState"] == "COMPLETED", said
        one, two = job.seen("n1"), job.seen("n2")
        assert one["words"] == two["words"]
        assert one["words"][one["words"].index("--address") + 1].startswith(job.up.nodes["n1"].ip + ":")
        assert one["token"] == two["token"]
        assert one["folder"] == two["folder"] == str(job.folder)
        assert two["environment"]["RAY_AUTH_MODE"] == "token"
        assert two["environment"]["DEELBO_TRACKING_URI"] == "sqlite:///mlflow.db"


class TestItsEnd:
    def test_its_exit_code_is_the_benchmarks(self, job: Job) -> None:
        """Which is not there where arguments are missing: 2, and one line in the job's output."""
        state, said = job.run("--gpus-per-node=0", "tiny.yaml")
        assert (state["JobState"], state["ExitCode"]) == ("FAILED", "2:0")
        assert said == "deelbo.sbatch: got 1 arguments, expected CONFIG STORAGE TRACKING_URI [options of run]\n"

    def test_before_the_time_limit_the_benchmark_is_stopped(self, job: Job) -> None:
        """Slurm's signal two minutes before it reaches the benchmark, and the job ends with 130, with nothing left."""
        state, said = job.played().run("--nodes=2 --gpus-per-node=0 --time=3", "170", "storage", "sqlite:///mlflow.db")
        assert (state["JobState"], state["ExitCode"]) == ("FAILED", "130:0"), said
        assert (job.folder / "stopped").exists()
        assert list((job.folder / "kept").iterdir()) == []
        assert left(job.up) == []


def test_what_scancel_stops_goes_on(job: Job) -> None:
    """On two nodes, as at Ctrl-C: the benchmark closes what it has open and says so, no process and no token is left on
    either; the same command runs the trials that are left on both nodes."""
    methods = {"de-elbo": {"learning_rates": [0.1, 0.03, 0.01]}, "elbo": {"learning_rates": [0.1, 0.03, 0.01]}}
    training = {"steps": 300, "batch_size": 50}
    (job.folder / "tiny.yaml").write_text(yaml.safe_dump(CONTENT | {"methods": methods, "training": training}))
    options, storage = "--nodes=2 --gpus-per-node=0", job.folder / "storage"
    arguments = ("tiny.yaml", str(storage), f"sqlite:///{job.folder}/mlflow.db")
    number = job.submit(options, *arguments)
    job.until_said(number, " running, ")
    assert job.up.call("scancel", number).returncode == 0
    assert job.wait(number)["JobState"] == "CANCELED"
    assert "the same command continues" in job.said(number), job.said(number)
    assert list((job.folder / "kept").iterdir()) == []
    assert left(job.up) == []
    state, said = job.run(options, *arguments)
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), said
    records = list(RecordStore(str(storage)).records())
    assert len(records) == 6
    assert all(record.status == "completed" for record in records)
    assert {record.hardware["node"] for record in records} == {"n1", "n2"}
    assert left(job.up) == []
