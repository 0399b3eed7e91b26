"""The sbatch script, with Slurm's two commands played by tiny ones, and Ray's own `symmetric-run`.

What a real Slurm does with it is in test_real_slurm.py.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.cli.main import build_parser
from bench.storage.records import RecordStore

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster" / "slurm" / "deelbo.sbatch"
APART = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Processes of a name space of their own: symmetric-run refuses to start beside another Ray, and stops all it sees."""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do options+=("$1"); shift; done
echo "$1 ${options[*]}" >> "$0.calls"
export SLURM_NODEID=0 SLURM_NNODES=1 SLURM_STEP_ID=0 SLURM_GPUS_ON_NODE=$STEP_GPUS
exec "$@"
"""
"""Runs a step here, and keeps its command's name and the options that it was given."""
SPY = """#!PYTHON
import json, os, sys
file = os.environ["RAY_AUTH_TOKEN_PATH"]
found = {"file": os.stat(file).st_mode, "folder": os.stat(os.path.dirname(file)).st_mode, "token": open(file).read()}
found |= {"arguments": sys.argv, "environment": dict(os.environ)}
json.dump(found, open(os.path.join(os.environ["SLURM_SUBMIT_DIR"], "seen.json"), "w"))
"""
"""A `ray` that runs nothing, and keeps what it was given."""
MLFLOW = "http://user:a-password@mlflow.example:5000"
TINY = {
    "name": "tiny",
    "dataset": "mnist-digits",
    "backbone": "digits-resnet",
    "priors": ["l2-zero"],
    "n": [100],
    "seeds": [1001],
    "methods": {"de-elbo": {"learning_rates": [0.1, 0.01]}},
    "training": {"steps": 4, "batch_size": 50},
    "resources": {"slots": 2},
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What sbatch gives a job of one node, and `srun` and `scontrol` that know one host."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\necho localhost\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    shared = tmp_path / "shared"
    shared.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    return inherited | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "DEELBO_VENV": sys.prefix,
        "DEELBO_SHARED": str(shared),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }


def run(
    environment: dict[str, str], *arguments: str, apart: bool = False, seconds: float = 560
) -> subprocess.CompletedProcess[str]:
    """The script as sbatch starts it."""
    command = [*(APART if apart else []), "bash", str(SCRIPT), *arguments]
    folder = environment["SLURM_SUBMIT_DIR"]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
    )


def seen(environment: dict[str, str], *arguments: str) -> Any:
    """What the script gives to `ray`."""
    folder = Path(environment["SLURM_SUBMIT_DIR"])
    environment["DEELBO_VENV"] = str(folder)
    (folder / "bin" / "ray").write_text(SPY.replace("PYTHON", sys.executable))
    (folder / "bin" / "ray").chmod(0o755)
    (folder / "bin" / "python").symlink_to(sys.executable)
    run(environment, *arguments)
    return json.loads((folder / "seen.json").read_text())


def option(words: list[str], name: str) -> str:
    """What follows an option on a command line."""
    return words[words.index(name) + 1]


def names_apart() -> bool:
    """Whether this user may make a name space of processes."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*APART, "true"], capture_output=True, check=False).returncode == 0


needs_apart = pytest.mark.skipif(not names_apart(), reason="needs unshare --pid, as root has it")


@needs_apart
@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
class TestLive:
    def test_a_benchmark_runs(self, environment: dict[str, str], tmp_path: Path) -> None:
        """A tiny benchmark runs through `srun` and `ray symmetric-run` to its report, and no token and no folder of the
        job is left."""
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        storage, database = tmp_path / "storage", f"sqlite:///{tmp_path / 'mlflow.db'}"
        done = run(environment, "tiny.yaml", str(storage), database, apart=True)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        records = list(RecordStore(str(storage)).records())
        assert len(records) == 2
        assert all(record.status == "completed" for record in records)
        assert (storage / "report" / "report.html").is_file()
        assert (tmp_path / "mlflow.db").is_file()
        assert list((tmp_path / "shared").iterdir()) == []
        assert not Path("/tmp", f"deelbo-{environment['SLURM_JOB_ID']}").exists()  # noqa: S108 - made by the script

    def test_the_exit_code_is_the_benchmarks(self, environment: dict[str, str], tmp_path: Path) -> None:
        """A configuration that is refused ends the job with 2, in `run`'s own line."""
        done = run(environment, "nowhere.yaml", str(tmp_path / "storage"), "sqlite:///mlflow.db", apart=True)
        assert done.returncode == 2, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert "deelbo-bench: " in done.stderr
        assert "nowhere.yaml" in done.stderr


class TestRefused:
    def test_too_few_arguments(self, environment: dict[str, str]) -> None:
        """One line says which arguments are expected, with 2."""
        done = run(environment, "tiny.yaml")
        assert (done.returncode, done.stdout) == (2, "")
        expected = "deelbo.sbatch: got 1 arguments, expected CONFIG STORAGE TRACKING_URI [options of run]\n"
        assert done.stderr == expected

    def test_no_installation(self, environment: dict[str, str], tmp_path: Path) -> None:
        """Where there is no `ray` in DEELBO_VENV, one line says so, with 2."""
        environment["DEELBO_VENV"] = str(tmp_path / "none")
        done = run(environment, "tiny.yaml", "storage", "http://127.0.0.1:5000")
        assert done.returncode == 2
        assert "set DEELBO_VENV to where deelbo[bench,methods] is installed" in done.stderr

    def test_ray_that_does_not_start(self, environment: dict[str, str], tmp_path: Path) -> None:
        """Where Ray does not start, which symmetric-run ends with 0, the job ends with 3 and says so; the token is
        gone."""
        environment["DEELBO_VENV"] = str(tmp_path)
        (tmp_path / "bin" / "ray").write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / "bin" / "ray").chmod(0o755)
        (tmp_path / "bin" / "python").symlink_to(sys.executable)
        done = run(environment, "tiny.yaml", "storage", "http://127.0.0.1:5000")
        assert done.returncode == 3
        assert done.stderr == "deelbo.sbatch: Ray did not start on 1 nodes, nothing ran: see what it says above\n"
        assert list((tmp_path / "shared").iterdir()) == []


def test_the_token_is_its_owners_alone(environment: dict[str, str]) -> None:
    """The token is a file of mode 0600 in a folder of mode 0700, 64 hexadecimal digits, and on no command line."""
    found = seen(environment, "tiny.yaml", "storage", MLFLOW)
    assert stat.S_IMODE(found["file"]) == 0o600
    assert stat.S_IMODE(found["folder"]) == 0o700
    token = found["token"].strip()
    assert len(token) == 64
    assert int(token, 16)
    assert token not in " ".join(found["arguments"])
    assert found["environment"]["RAY_AUTH_MODE"] == "token"


class TestStep:
    @pytest.mark.parametrize(("gpus", "counted"), [("2", "2"), ("", "0")], ids=["some", "none"])
    def test_ray_is_told_what_the_step_has(
        self, environment: dict[str, str], tmp_path: Path, gpus: str, counted: str
    ) -> None:
        """The step that Ray runs in asks for the job's CPUs, as Slurm gives it one unless it asks; GPUs are its own,
        not all of a node that the job has whole."""
        job = {"SLURM_CPUS_PER_TASK": "6", "SLURM_GPUS_ON_NODE": "8", "STEP_GPUS": gpus}
        found = seen(environment | job, "tiny.yaml", "storage", MLFLOW)
        (step,) = (
            line.split() for line in (tmp_path / "bin" / "srun.calls").read_text().splitlines() if "bash" in line
        )
        assert [word for word in step if word.startswith("--cpus-per-task")] == ["--cpus-per-task=6"]
        assert option(found["arguments"], "--num-cpus") == "6"
        assert option(found["arguments"], "--num-gpus") == counted

    def test_its_command_is_one_of_ours(self, environment: dict[str, str]) -> None:
        """What Ray runs is a command line that `deelbo-bench` understands, with the options of `run` that were
        given."""
        words = seen(environment, "tiny.yaml", "s3://x/y", MLFLOW, "--set", "training.steps=3")["arguments"]
        options = build_parser().parse_args(words[words.index("bench") + 1 :])
        assert (options.config, options.storage, options.address) == ("tiny.yaml", "s3://x/y", "auto")
        assert options.set == ["training.steps=3"]


class TestTracking:
    def test_it_is_on_no_command_line(
        self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """MLflow's address, which may hold a password, is on no command line of a step, and `run` finds it."""
        found = seen(environment, "tiny.yaml", "storage", MLFLOW)
        assert not [word for word in found["arguments"] if "mlflow" in word or "a-password" in word]
        assert "a-password" not in (tmp_path / "bin" / "srun.calls").read_text()
        monkeypatch.setenv("DEELBO_TRACKING_URI", found["environment"]["DEELBO_TRACKING_URI"])
        words = found["arguments"]
        assert build_parser().parse_args(words[words.index("bench") + 1 :]).tracking_uri == MLFLOW

    def test_a_dash_takes_it_from_the_environment(self, environment: dict[str, str]) -> None:
        """Given as -, it is what the job's environment has; so it is not in Slurm's records either."""
        found = seen(environment | {"DEELBO_TRACKING_URI": MLFLOW}, "tiny.yaml", "storage", "-")
        assert found["environment"]["DEELBO_TRACKING_URI"] == MLFLOW

    def test_a_dash_without_it_is_refused(self, environment: dict[str, str]) -> None:
        """One line says what is missing, with 2."""
        environment.pop("DEELBO_TRACKING_URI", None)
        done = run(environment, "tiny.yaml", "storage", "-")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "got - as TRACKING_URI, expected DEELBO_TRACKING_URI in the job's environment" in done.stderr


def test_bash_understands_it() -> None:
    """The script has no syntax error."""
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    """shellcheck has nothing to say."""
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
