"""The sbatch script with stubs of Slurm's two commands and with Ray's own `symmetric-run`.

test_real_slurm.py tests it with a real Slurm.
"""

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
NEW_PID_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Hides other Ray processes: symmetric-run refuses to start beside another Ray, and stops all that it finds."""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do options+=("$1"); shift; done
echo "$1 ${options[*]}" >> "$0.calls"
export SLURM_NODEID=0 SLURM_NNODES=1 SLURM_STEP_ID=0 SLURM_GPUS_ON_NODE=$STEP_GPUS
exec "$@"
"""
"""Runs a step here, and records the name of its command and the options."""
FAKE_RAY = """#!PYTHON
import json, os, sys
file = os.environ["RAY_AUTH_TOKEN_PATH"]
found = {"file": os.stat(file).st_mode, "folder": os.stat(os.path.dirname(file)).st_mode, "token": open(file).read()}
found |= {"arguments": sys.argv, "environment": dict(os.environ)}
json.dump(found, open(os.path.join(os.environ["SLURM_SUBMIT_DIR"], "recorded.json"), "w"))
"""
"""A `ray` that records its arguments, environment and token, and runs nothing."""
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
    """Environment of a job on one node, with stubs of `srun` and `scontrol`."""
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
    environment: dict[str, str], *arguments: str, isolated: bool = False, seconds: float = 560
) -> subprocess.CompletedProcess[str]:
    """Run the script as sbatch does."""
    command = [*(NEW_PID_NAMESPACE if isolated else []), "bash", str(SCRIPT), *arguments]
    folder = environment["SLURM_SUBMIT_DIR"]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
    )


def recorded_call(environment: dict[str, str], *arguments: str) -> Any:
    """Run the script and return the call of `ray` that it makes."""
    folder = Path(environment["SLURM_SUBMIT_DIR"])
    environment["DEELBO_VENV"] = str(folder)
    (folder / "bin" / "ray").write_text(FAKE_RAY.replace("PYTHON", sys.executable))
    (folder / "bin" / "ray").chmod(0o755)
    (folder / "bin" / "python").symlink_to(sys.executable)
    run(environment, *arguments)
    return json.loads((folder / "recorded.json").read_text())


def option(words: list[str], name: str) -> str:
    """Return the value of an option on a command line."""
    return words[words.index(name) + 1]


def can_isolate() -> bool:
    """Return whether this user may create a namespace of processes."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NEW_PID_NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


needs_namespace = pytest.mark.skipif(not can_isolate(), reason="needs the right to call unshare --pid")


@needs_namespace
@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
class TestLive:
    def test_a_benchmark_runs(self, environment: dict[str, str], tmp_path: Path) -> None:
        """A tiny benchmark runs through `srun` and `ray symmetric-run` to its report; no token or folder of the job is
        left."""
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        storage, database = tmp_path / "storage", f"sqlite:///{tmp_path / 'mlflow.db'}"
        done = run(environment, "tiny.yaml", str(storage), database, isolated=True)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        records = list(RecordStore(str(storage)).records())
        assert len(records) == 2
        assert all(record.status == "completed" for record in records)
        assert (storage / "report" / "report.html").is_file()
        assert (tmp_path / "mlflow.db").is_file()
        assert list((tmp_path / "shared").iterdir()) == []
        assert not Path("/tmp", f"deelbo-{environment['SLURM_JOB_ID']}").exists()  # noqa: S108 - made by the script

    def test_exit_code(self, environment: dict[str, str], tmp_path: Path) -> None:
        """A refused configuration ends the job with 2 and the line of `run`."""
        done = run(environment, "nowhere.yaml", str(tmp_path / "storage"), "sqlite:///mlflow.db", isolated=True)
        assert done.returncode == 2, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert "deelbo-bench: " in done.stderr
        assert "nowhere.yaml" in done.stderr


class TestRefused:
    def test_too_few_arguments(self, environment: dict[str, str]) -> None:
        """One line names the expected arguments; the exit code is 2."""
        done = run(environment, "tiny.yaml")
        assert (done.returncode, done.stdout) == (2, "")
        expected = "deelbo.sbatch: got 1 arguments, expected CONFIG STORAGE TRACKING_URI [options of run]\n"
        assert done.stderr == expected

    def test_no_installation(self, environment: dict[str, str], tmp_path: Path) -> None:
        """Without `ray` in DEELBO_VENV one line says what to set; the exit code is 2."""
        environment["DEELBO_VENV"] = str(tmp_path / "none")
        done = run(environment, "tiny.yaml", "storage", "http://127.0.0.1:5000")
        assert done.returncode == 2
        assert "set DEELBO_VENV to the virtual environment with deelbo[bench,methods]" in done.stderr

    def test_ray_that_does_not_start(self, environment: dict[str, str], tmp_path: Path) -> None:
        """If Ray does not start, where symmetric-run returns 0, the job reports it and ends with 3; the token is
        removed."""
        environment["DEELBO_VENV"] = str(tmp_path)
        (tmp_path / "bin" / "ray").write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / "bin" / "ray").chmod(0o755)
        (tmp_path / "bin" / "python").symlink_to(sys.executable)
        done = run(environment, "tiny.yaml", "storage", "http://127.0.0.1:5000")
        assert done.returncode == 3
        assert done.stderr == "deelbo.sbatch: Ray did not start on 1 nodes, so nothing ran; see its messages above\n"
        assert list((tmp_path / "shared").iterdir()) == []


def test_token_file(environment: dict[str, str]) -> None:
    """The token has 64 hexadecimal digits, in a 0600 file in a 0700 folder, and is on no command line."""
    call = recorded_call(environment, "tiny.yaml", "storage", MLFLOW)
    assert stat.S_IMODE(call["file"]) == 0o600
    assert stat.S_IMODE(call["folder"]) == 0o700
    token = call["token"].strip()
    assert len(token) == 64
    assert int(token, 16)
    assert token not in " ".join(call["arguments"])
    assert call["environment"]["RAY_AUTH_MODE"] == "token"


class TestStep:
    @pytest.mark.parametrize(("gpus", "counted"), [("2", "2"), ("", "0")], ids=["some", "none"])
    def test_resources(self, environment: dict[str, str], tmp_path: Path, gpus: str, counted: str) -> None:
        """The step requests the job's CPUs, as Slurm would give it one; Ray gets the GPUs of the step, not all those
        of an exclusive node."""
        job = {"SLURM_CPUS_PER_TASK": "6", "SLURM_GPUS_ON_NODE": "8", "STEP_GPUS": gpus}
        call = recorded_call(environment | job, "tiny.yaml", "storage", MLFLOW)
        (step,) = (
            line.split() for line in (tmp_path / "bin" / "srun.calls").read_text().splitlines() if "bash" in line
        )
        assert [word for word in step if word.startswith("--cpus-per-task")] == ["--cpus-per-task=6"]
        assert option(call["arguments"], "--num-cpus") == "6"
        assert option(call["arguments"], "--num-gpus") == counted

    def test_command(self, environment: dict[str, str]) -> None:
        """Ray runs a valid command line of `deelbo-bench`, with the given options of `run`."""
        words = recorded_call(environment, "tiny.yaml", "s3://x/y", MLFLOW, "--set", "training.steps=3")["arguments"]
        options = build_parser().parse_args(words[words.index("bench") + 1 :])
        assert (options.config, options.storage, options.address) == ("tiny.yaml", "s3://x/y", "auto")
        assert options.set == ["training.steps=3"]


class TestTracking:
    def test_uri_is_on_no_command_line(
        self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """MLflow's address, which may contain a password, is on no command line of a step, and `run` gets it."""
        call = recorded_call(environment, "tiny.yaml", "storage", MLFLOW)
        assert not [word for word in call["arguments"] if "mlflow" in word or "a-password" in word]
        assert "a-password" not in (tmp_path / "bin" / "srun.calls").read_text()
        monkeypatch.setenv("DEELBO_TRACKING_URI", call["environment"]["DEELBO_TRACKING_URI"])
        words = call["arguments"]
        assert build_parser().parse_args(words[words.index("bench") + 1 :]).tracking_uri == MLFLOW

    def test_a_dash_stands_for_the_variable(self, environment: dict[str, str]) -> None:
        """For - the address comes from DEELBO_TRACKING_URI, so that Slurm's records do not contain it."""
        call = recorded_call(environment | {"DEELBO_TRACKING_URI": MLFLOW}, "tiny.yaml", "storage", "-")
        assert call["environment"]["DEELBO_TRACKING_URI"] == MLFLOW

    def test_a_dash_without_the_variable_is_refused(self, environment: dict[str, str]) -> None:
        """One line names the missing variable; the exit code is 2."""
        environment.pop("DEELBO_TRACKING_URI", None)
        done = run(environment, "tiny.yaml", "storage", "-")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "TRACKING_URI is -, but DEELBO_TRACKING_URI is not in the job's environment" in done.stderr


def test_syntax() -> None:
    """Bash finds no syntax error."""
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    """shellcheck finds no problem."""
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
