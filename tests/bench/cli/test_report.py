"""The commands `report`, `sync` and `ui`, called as a user calls them."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.cli.main import main
from bench.config.benchmark import Benchmark
from bench.session.run import draw_report
from bench.storage.records import RecordStore

Publish = Callable[..., tuple[Path, Path]]
pytestmark = pytest.mark.usefixtures("sketch")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run commands in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], list[str]]]:
    """Return a function that runs a command, and returns its exit code and its lines on stdout and stderr."""

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        code = main([str(argument) for argument in arguments])
        out, error = capsys.readouterr()
        return code, out.splitlines(), error.splitlines()

    return run


@pytest.fixture
def other(tmp_path: Path, tiny: Benchmark, play: Any, fill: Any) -> RecordStore:
    """Return a second storage of the same benchmark."""
    store: RecordStore = fill(RecordStore(str(tmp_path / "other")), tiny, play(tiny))
    return store


def files() -> list[str]:
    """Return every file below the working folder."""
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_report_does_not_import_torch() -> None:
    """Neither the command nor the report imports torch, which takes seconds."""
    code = "import sys, bench.cli.report, bench.report.build, bench.results.sources; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"


def test_a_report_lies_in_its_storage(storage: RecordStore, call: Any) -> None:
    """Without --out the report of one storage is in its folder, and every file is printed."""
    code, out, error = call("report", storage.url)
    assert (code, error) == (0, [])
    there = {path.name for path in Path(storage.path("report")).iterdir()}
    assert {line.split()[0] for line in out} == there
    assert "report.html" in there
    assert files() == []


def test_report_of_several_sources(storage: RecordStore, other: RecordStore, publish: Publish, call: Any) -> None:
    """It is in ./report, with all sources; the options of subsamples and slots are used."""
    options = ["--subsamples", 3, "--seed", 5, "--what-if", "concurrency=4"]
    code, _, error = call("report", storage.url, other.url, "--published", *publish(), *options)
    assert (code, error) == (0, [])
    assert set(pd.read_csv("report/table2.csv")["source"]) == {"storage", "other", "published"}
    assert set(pd.read_csv("report/what_if.csv")["slots"]) == {4}
    assert Path("report/curves_sampled.csv").is_file()
    assert not Path(storage.path("report")).exists()


def test_a_report_that_cannot_be_drawn(storage: RecordStore, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever matplotlib raises is one line, exit code 2; and `run` goes on without a report."""

    def fail(*_: Any) -> None:
        raise RuntimeError("no\nink")

    monkeypatch.setattr("bench.report.build.save_figure", fail)
    code, out, error = call("report", storage.url)
    assert (code, out, error) == (
        2,
        [],
        ["deelbo-bench: the figures cannot be drawn (RuntimeError: no ink)"],
    )


@pytest.mark.parametrize("place", ["bench.report.build.save_figure", "bench.results.sources.to_frame"])
@pytest.mark.parametrize("error", [RuntimeError, KeyError, OSError])
def test_a_run_without_its_report(
    storage: RecordStore,
    tiny: Benchmark,
    place: str,
    error: type[Exception],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the report of `run` raises is printed in one line and ends nothing."""

    def fail(*_: Any) -> None:
        raise error("no\nink")

    monkeypatch.setattr(place, fail)
    assert draw_report(storage, tiny, print) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no report: ")
    assert error.__name__ in line
    assert "ink" in line


def test_published_files_alone(publish: Publish, call: Any) -> None:
    """--published may be given for several datasets, without any storage."""
    pairs = ["--published", *publish("CIFAR-10"), "--published", *publish("Pet", cells=[(370, 1)])]
    code, _, error = call("report", *pairs, "--out", "pages")
    assert (code, error) == (0, [])
    assert set(pd.read_csv("pages/table2.csv")["dataset"]) == {"CIFAR-10", "Pet"}


def test_unusable_input_is_left_out(storage: RecordStore, publish: Publish, call: Any) -> None:
    """It is a line each on stderr and on the page, the rest is reported, and the exit code is 1."""
    bad = Path("tuned_bad.csv"), Path("retrained_bad.csv")
    for path in bad:
        path.write_text("color,shape\nred,round\n")
    spoilt = publish(cells=[(100, 1), (100, 2)], runtime=-1.0)
    pairs = ["--published", *bad, "--published", *spoilt]
    code, out, error = call("report", "nowhere", storage.url, *pairs, "--out", "pages")
    assert code == 1
    expected = ["nowhere holds no benchmark", "has no column", "left out: l2-sp, N = 100, seed 1"]
    assert len(error) == len(expected)
    page = Path("pages", "report.html").read_text()
    for line, words in zip(error, expected, strict=True):
        assert line.startswith("left out: ")
        assert words in line
        assert words in page
    assert any(line.split() == ["table2.csv", "pages/table2.csv"] for line in out)


def test_a_failed_trial_is_named(tiny: Benchmark, fake: Any, play: Any, fill: Any, tmp_path: Path, call: Any) -> None:
    """It is a line on stderr with its error, the rest is reported, and the exit code is 1."""
    records = play(tiny, lambda spec: fake(spec, "failed" if spec.learning_rate == 0.1 else "completed"))
    store = fill(RecordStore(str(tmp_path / "s")), tiny, records)
    code, _, error = call("report", store.url, "--out", "pages")
    assert code == 1
    assert len(error) == sum(record.status == "failed" for record in records) > 0
    assert all(line.startswith("left out: failed: ") and "RuntimeError: out of luck" in line for line in error)
    runs = pd.read_csv("pages/table2.csv").set_index("method")["num_runs"]
    assert runs.to_dict() == {"map-gs": 2, "de-elbo": 1, "elbo": 1}


REFUSED = {
    "twice": (["{storage}", "{storage}"], "a storage is given twice"),
    "twice, otherwise spelled": (["{storage}", "../storage"], "a storage is given twice"),
    "files without columns": (["--published", "bad.csv", "bad.csv"], "bad.csv has no column"),
    "a file where the folder should be": (["{storage}", "--out", "bad.csv"], "bad.csv"),
    "a URI that is none": (["{storage}", "--out", "pages", "--tracking-uri", "gopher://x"], "gopher"),
    "two storages for one run": (["{storage}", "{other}", "--tracking-uri", "sqlite:///a.db"], "needs one storage"),
    "no storage for a run": (["--published", "{tuned}", "{retrained}", "--tracking-uri", "sqlite:///a.db"], "got 0"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, storage: RecordStore, other: RecordStore, publish: Publish, call: Any
) -> None:
    """If nothing can be reported the exit code is 2, one line says why, and nothing is written."""
    Path("bad.csv").write_text("color,shape\nred,round\n")
    tuned, retrained = publish()
    given = {"storage": storage.url, "other": other.url, "tuned": tuned, "retrained": retrained}
    code, out, error = call("report", *(argument.format(**given) for argument in arguments))
    assert (code, out) == (2, [])
    (line,) = error
    assert line.startswith("deelbo-bench: ")
    assert words in line
    assert files() == ["bad.csv"]
    assert not Path(storage.path("report")).exists()


def artifacts(uri: str, benchmark: Benchmark, folder: str = "report") -> set[str]:
    """Return the files of the benchmark's MLflow run in a folder."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(benchmark.name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`deelbo.role` = 'benchmark'")
    return {str(file.path) for file in client.list_artifacts(run.info.run_id, folder)}


def test_a_report_is_logged_to_its_run(storage: RecordStore, tiny: Benchmark, uri: str, call: Any) -> None:
    """`report --tracking-uri` adds the report's files to the benchmark's run, and no other files of the folder."""
    assert call("sync", storage.url, "--tracking-uri", uri)[0] == 0
    assert artifacts(uri, tiny) == set()
    Path("pages").mkdir()
    Path("pages", "diary.txt").write_text("private")
    code, out, error = call("report", storage.url, "--out", "pages", "--tracking-uri", uri)
    assert (code, error) == (0, [])
    names = {line.split()[0] for line in out}
    assert artifacts(uri, tiny) == {f"report/{name}" for name in names}
    assert {path.name for path in Path("pages").iterdir()} == names | {"diary.txt"}


def test_a_report_without_a_run_is_refused(storage: RecordStore, other: RecordStore, uri: str, call: Any) -> None:
    """If MLflow has no run of this storage, one line says so and names `sync`."""
    for _ in range(2):
        code, _, error = call("report", storage.url, "--out", "pages", "--tracking-uri", uri)
        assert code == 2
        (line,) = error
        assert f"has no run of {storage.url}: `sync` makes it" in line
        assert call("sync", other.url, "--tracking-uri", uri)[0] == 0


def test_sync_sends_the_report_of_the_storage(storage: RecordStore, tiny: Benchmark, uri: str, call: Any) -> None:
    """`sync` counts the trials, and logs the report of the storage."""
    assert call("report", storage.url)[0] == 0
    code, out, error = call("sync", storage.url, "--tracking-uri", uri)
    assert (code, out, error) == (0, ["9 trials of tiny are in MLflow"], [])
    assert "report/report.html" in artifacts(uri, tiny)


def test_sync_sends_the_report_of_a_remote_storage(tiny: Benchmark, play: Any, fill: Any, uri: str, call: Any) -> None:
    """A report behind a URL is logged too, without local files."""
    store = fill(RecordStore("memory://viewed/a"), tiny, play(tiny))
    assert call("sync", store.url, "--tracking-uri", uri)[0] == 0
    assert artifacts(uri, tiny) == set()
    store.write_file("report/report.html", b"<html></html>")
    assert call("sync", store.url, "--tracking-uri", uri)[0] == 0
    assert artifacts(uri, tiny) == {"report/report.html"}
    assert files() == []


def test_an_interrupted_sync(storage: RecordStore, uri: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code is 130, and a line says that the same command continues."""

    def interrupted(*arguments: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.tracking.sync.sync", interrupted)
    code, out, error = call("sync", storage.url, "--tracking-uri", uri)
    assert (code, error) == (130, [])
    assert out == ["stopped: what MLflow has stays, and the same command sends the rest"]


def test_ui_needs_a_database(storage: RecordStore, call: Any) -> None:
    """`ui` on a storage without an MLflow database names the command that makes it."""
    code, out, error = call("ui", storage.url)
    assert (code, out) == (2, [])
    (line,) = error
    assert "has no mlflow.db" in line
    assert f"sync {storage.url}" in line


def test_ui_opens_the_trials(storage: RecordStore, call: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """`ui` prints the address of the benchmark's trials, or the front page in a database without that view."""
    assert call("sync", storage.url)[0] == 0
    served: list[list[str]] = []
    monkeypatch.chdir(tmp_path)

    def become(_: str, command: list[str]) -> None:
        served.append(command)
        raise OSError("enough")

    monkeypatch.setattr("bench.cli.mlflow.os.execv", become)
    _, (line,), _ = call("ui", storage.url, "--port", "0")
    assert line.split()[2] == "http://127.0.0.1:0/#/experiments/1/runs?viewStateShareKey=deelbo-trials"
    with closing(sqlite3.connect(storage.path("mlflow.db"))) as database, database:
        database.execute("delete from experiment_tags")
    _, (line,), _ = call("ui", storage.url, "--port", "0")
    assert line.split()[2] == "http://127.0.0.1:0/"
    assert len(served) == 2
