"""The command line: bad input is one line and exit code 2, and changes nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.cli.main import main
from bench.config.benchmark import Benchmark
from bench.storage.records import RecordStore


def exit_code(*arguments: str) -> int:
    """Return the exit code of the process."""
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return everything in a folder."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def assert_refused(capsys: pytest.CaptureFixture[str], *arguments: str, words: str = "") -> None:
    """Check exit code 2, one line on stderr, nothing on stdout, and an unchanged working folder."""
    before = tree(Path.cwd())
    assert exit_code(*arguments) == 2
    out, error = capsys.readouterr()
    assert error.startswith("deelbo-bench: ")
    assert len(error.splitlines()) == 1
    assert words in error
    assert out == ""
    assert tree(Path.cwd()) == before


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run commands in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DEELBO_CACHE", str(tmp_path / "here" / "cache"))


@pytest.mark.parametrize("command", [["run", "quickstart"], ["report", "nothing"]])
def test_a_current_folder_that_was_deleted(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It has no path any more, which is said in one line."""
    Path.cwd().rmdir()
    assert exit_code(*command) == 2
    assert capsys.readouterr().err == "deelbo-bench: the current folder was deleted: change to another one\n"


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"color": "red"}, "unknown key color"),
        ({"methods": {"map-gs": {"weight_decays": [-1]}}}, "methods.map-gs.weight_decays.0 = -1"),
        ({"methods": {"map-gs": {"weight_decays": ["lots"]}}}, "'lots': must be a number"),
        ({"n": [5000]}, "n = 5000 is larger than the pool of 4000"),
        ({"n": [101]}, "n = 101 is not a multiple of the 10 classes"),
        ({"dataset": "atlantis"}, "dataset = 'atlantis'"),
        ({"head": "nose"}, "'nose' must be a Linear layer"),
        ({"name": "a\nb"}, "name = 'a\\nb'"),
        ({"multi\nline": 1}, "unknown key multi line"),
    ],
)
def test_a_bad_configuration(
    command: str,
    change: dict[str, Any],
    words: str,
    content: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An invalid configuration is refused by ``run`` and ``plan`` before anything starts."""
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(content | change))
    assert_refused(capsys, command, str(file), words=words)


USAGE = [
    ([], "COMMAND"),
    (["fly"], "fly"),
    (["run"], "config"),
    (["run", "quickstart", "--color", "red"], "--color"),
    (["run", "quickstat"], "no preset or file 'quickstat'"),
    (["plan", "quickstart", "--seconds-per-step", "1"], "--seconds-per-step"),
    (["plan", "quickstart", "--images-per-second", "soon"], "soon"),
    (["plan", "quickstart", "--images-per-second", "0"], "positive"),
    (["plan", "quickstart", "--images-per-second", "nan"], "positive"),
    (["plan", "quickstart", "--speed", "nowhere.json"], "nowhere.json: not a result of `deelbo-bench speed`"),
    (["plan", "quickstart", "--json", "--trials"], "--trials: not allowed with argument --json"),
    (["plan", "quickstat", "--json"], "no preset or file 'quickstat'"),
    (["run", "quickstart", "--json", "--set", "training.steps=0"], "training.steps = 0"),
    (["plan", "quickstart", "--set", "training.steps"], "--set takes KEY=VALUE"),
    (["plan", "quickstart", "--set", "training.steps=0"], "training.steps = 0"),
    (["plan", "quickstart", "--only", "n=7"], "--only n=7: this benchmark has n 100"),
    (["run", "quickstart", "--only", "n"], "--only takes KEY=VALUE"),
    (["prepare"], "config"),
    (["prepare", "quickstat"], "no preset or file 'quickstat'"),
    (["prepare", "quickstart", "--only", "n=100"], "--only"),
    (["report"], "report takes a storage, or --published with files of the authors"),
    (["report", "--published", "tuned.csv"], "tuned.csv"),
    (["report", "--published", "tuned_A.csv", "retrained_A.csv"], "tuned_A.csv cannot be read"),
    (["report", "nothing", "nowhere"], "nothing holds no benchmark"),
    (["report", "nothing", "nowhere", "--tracking-uri", "sqlite:///a.db"], "--tracking-uri needs one storage"),
    (["report", "nothing", "--what-if", "concurrency=0"], "--what-if takes concurrency=G"),
    (["report", "nothing", "--what-if", "concurrency=-1"], "got 'concurrency=-1'"),
    (["report", "nothing", "--what-if", "concurrency=1.5"], "got 'concurrency=1.5'"),
    (["report", "nothing", "--what-if", "concurrency="], "got 'concurrency='"),
    (["report", "nothing", "--what-if", "gpus=8"], "got 'gpus=8'"),
    (["report", "nothing", "--what-if", "abc"], "got 'abc'"),
    (["report", "nothing", "--subsamples", "0"], "--subsamples must be 1 to"),
    (["report", "nothing", "--subsamples", "-5"], "got -5"),
    (["report", "nothing", "--subsamples", "many"], "many"),
    (["report", "nothing", "--seed", "-1"], "--seed must be 0 to"),
    (["report", "nothing"], "holds no benchmark"),
    (["sync", "nothing"], "holds no benchmark"),
    (["ui", "nothing"], "holds no benchmark"),
    (["ui", "nothing", "--port", "x"], "--port"),
    (["speed", "--rounds", "0"], "--rounds must be at least 1, got 0"),
    (["speed", "--steps", "-3"], "--steps must be at least 1, got -3"),
    (["speed", "--rounds", "many"], "many"),
    (["speed", "--backbone", "resnet5000"], "resnet5000"),
    (["speed", "--device", "toaster"], "device 'toaster' is not known: expected cpu, cuda or cuda:NUMBER"),
    (["speed", "--device", "mps"], "device mps is not supported"),
    (["swag", "nothing", "out.pt", "--device", "toaster"], "device 'toaster' is not known"),
    (["swag", "nothing", "out.pt", "--device", "meta"], "device meta is not supported"),
    (["swag", "nothing", "out.pt", "--device", "cuda:99"], "device cuda:99 is not here, as torch finds"),
    (["swag", "nothing", "out.pt"], "nothing is not a folder"),
    (["swag", "nothing", "out.pt", "--seed", "-1"], "seed must be 0 to 2^63 - 1, got -1"),
    (["swag", "nothing", "out.pt", "--workers", "-1"], "workers must be at least 0, got -1"),
    (["swag", "nothing", "out.pt", "--image-size", "0"], "image_size must be 1 to 10000, got 0"),
    (["swag", "nothing", "out.pt", "--learning-rate", "inf"], "learning_rate must be finite and above 0, got inf"),
    (["speed", "--naive-steps", "-1"], "--naive-steps must be at least 0, got -1"),
    (["speed", "--stored", "0"], "--stored must be at least 1, got 0"),
    (["speed", "--precision", "fp8"], "fp8"),
    (["speed", "--priors", "l1"], "l1"),
    *((["run", "quickstart", option, ""], f"{option}: is empty") for option in ("--storage", "--address")),
    (["doctor", "--address", ""], "--address: is empty"),
    (["submit", "quickstart", "--storage", ""], "--storage: is empty"),
    (["ui", "nothing", "--host", ""], "--host: is empty"),
    (["run", "quickstart", "--storage", "a" * 300], "cannot be used (File name too long): choose another place"),
    (["speed", "--out", "/dev/null/x"], "/dev/null/x cannot be used (Not a directory; /dev/null belongs to"),
    (["plan", ""], "'' is not a file"),
]


@pytest.mark.parametrize(("arguments", "words"), USAGE, ids=[" ".join(arguments) for arguments, _ in USAGE])
def test_a_bad_call(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is reported in one line."""
    assert_refused(capsys, *arguments, words=words)


@pytest.mark.parametrize(
    "command", [["run", "quickstart", "--storage"], ["report"], ["sync"], ["ui"]], ids=lambda c: c[0]
)
def test_a_storage_with_other_files(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that holds something else is refused by every command, and not changed."""
    Path("home").mkdir()
    Path("home", "thesis.tex").write_text("years of work")
    assert_refused(capsys, *command, "home", words="home exists and holds no benchmark")


def test_a_storage_with_another_benchmark(storage: RecordStore, capsys: pytest.CaptureFixture[str]) -> None:
    """A storage of another benchmark is refused with what differs, and not changed."""
    before = tree(Path(storage.path()))
    assert_refused(
        capsys, "run", "quickstart", "--storage", storage.url, words="name was 'tiny' and is now 'quickstart'"
    )
    assert tree(Path(storage.path())) == before


@pytest.mark.usefixtures("sketch")
def test_a_storage_with_a_damaged_record(storage: RecordStore, capsys: pytest.CaptureFixture[str]) -> None:
    """``report`` names a damaged record with what to do, reports the rest, and exits with 1."""
    record = next(Path(storage.path("records")).iterdir())
    record.write_text("{")
    before = tree(Path(storage.path()))
    assert exit_code("report", storage.url, "--out", "pages") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"left out: {record} is damaged")
    assert "let `run` quarantine it and run that trial again" in line
    assert Path("pages", "report.html").is_file()
    assert tree(Path(storage.path())) == before


def test_a_remote_storage_needs_a_tracking_uri(tiny: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    """A storage behind a URL without --tracking-uri is refused before anything is written to it."""
    assert_refused(capsys, "run", "quickstart", "--storage", "memory://claimed/a", words="--tracking-uri")
    assert RecordStore("memory://claimed/a").read_benchmark() is None


def test_a_tracking_uri_that_is_none(storage: RecordStore, capsys: pytest.CaptureFixture[str]) -> None:
    """A tracking URI that MLflow does not support is refused."""
    assert_refused(capsys, "sync", storage.url, "--tracking-uri", "gopher://x", words="gopher")


def test_images_that_the_network_cannot_take(capsys: pytest.CaptureFixture[str]) -> None:
    """`speed` refuses three channels for a network that takes one."""
    assert_refused(capsys, "speed", "--channels", "3", "--rounds", "1", "--steps", "1", words="channel")


def test_report_names_its_files(storage: RecordStore, capsys: pytest.CaptureFixture[str]) -> None:
    """``report`` exits with 0, and every file that it prints exists."""
    assert exit_code("report", storage.url, "--out", "pages") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {"report.html", "figure2.png", "table3.csv"} <= {name for name, _ in lines}
    assert all(Path(path).is_file() and Path(path).name == name for name, path in lines)


def test_speed_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """``speed`` prints one JSON object and nothing else."""
    assert exit_code("speed", "--rounds", "1", "--steps", "1", "--batch", "4") == 0
    assert json.loads(capsys.readouterr().out)["setting"]["rounds"] == 1


def test_traceback_on_request() -> None:
    """With --traceback the error is raised."""
    with pytest.raises(ValueError, match="no preset or file"):
        main(["--traceback", "plan", "quickstat"])


def test_the_installed_command() -> None:
    """The installed command reports an error in one line with exit code 2, without a traceback."""
    command = Path(sys.executable).with_name("deelbo-bench")
    done = subprocess.run([command, "run", "quickstat"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("deelbo-bench: no preset or file 'quickstat'")
    assert len(done.stderr.splitlines()) == 1
