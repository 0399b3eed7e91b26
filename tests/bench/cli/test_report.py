"""What shows what ran: `report` and `sync`, called as a user calls them."""

from __future__ import annotations

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
from bench.storage.records import RecordStore

Publish = Callable[..., tuple[Path, Path]]
pytestmark = pytest.mark.usefixtures("sketch")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run where nothing else is."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], list[str]]]:
    """Runs a command: its exit code, and its lines on stdout and stderr."""

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        code = main([str(argument) for argument in arguments])
        out, error = capsys.readouterr()
        return code, out.splitlines(), error.splitlines()

    return run


@pytest.fixture
def other(tmp_path: Path, tiny: Benchmark, play: Any, fill: Any) -> RecordStore:
    """A second storage of the same benchmark."""
    store: RecordStore = fill(RecordStore(str(tmp_path / "other")), tiny, play(tiny))
    return store


def files() -> list[str]:
    """Every file below the working folder."""
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_what_shows_needs_no_torch() -> None:
    """Neither the commands that show nor the report import torch, which takes seconds."""
    code = (
        "import sys, bench, bench.cli.report, bench.report.build, bench.results.sources; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"


def test_a_report_lies_in_its_storage(storage: RecordStore, call: Any) -> None:
    """Without --out the report of one storage is in its folder, every file of it is named, and the exit code is 0."""
    code, out, error = call("report", storage.url)
    assert (code, error) == (0, [])
    there = {path.name for path in Path(storage.path("report")).iterdir()}
    assert {line.split()[0] for line in out} == there
    assert "report.html" in there
    assert files() == []


def test_several_origins_lie_here(storage: RecordStore, other: RecordStore, publish: Publish, call: Any) -> None:
    """The report of two storages and the authors' files lies in ./report, with all three sources in it; the options
    of subsamples and slots reach it."""
    options = ["--subsamples", 3, "--seed", 5, "--what-if", "concurrency=4"]
    code, _, error = call("report", storage.url, other.url, "--published", *publish(), *options)
    assert (code, error) == (0, [])
    assert set(pd.read_csv("report/table2.csv")["source"]) == {"storage", "other", "published"}
    assert set(pd.read_csv("report/what_if.csv")["slots"]) == {4}
    assert Path("report/curves_sampled.csv").is_file()
    assert not Path(storage.path("report")).exists()


def test_published_files_alone(publish: Publish, call: Any) -> None:
    """--published may be given for several datasets, without any storage."""
    pairs = ["--published", *publish("CIFAR-10"), "--published", *publish("Pet", cells=[(370, 1)])]
    code, _, error = call("report", *pairs, "--out", "pages")
    assert (code, error) == (0, [])
    assert set(pd.read_csv("pages/table2.csv")["dataset"]) == {"CIFAR-10", "Pet"}


PARTS = {
    "no file": lambda good, bad, _: ([good, "--published", "a.csv", "b.csv"], ["a.csv cannot be read"]),
    "all of it": lambda good, bad, spoilt: (
        ["nowhere", good, "--published", *bad, "--published", *spoilt],
        ["nowhere holds no benchmark", "has no column", "left out: l2-sp, N = 100, seed 1"],
    ),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_what_cannot_be_used_is_left_out(part: Any, storage: RecordStore, publish: Publish, call: Any) -> None:
    """Input that cannot be used is a line each on stderr and on the page, the rest is reported, and the exit code
    is 1."""
    bad = Path("tuned_bad.csv"), Path("retrained_bad.csv")
    for path in bad:
        path.write_text("color,shape\nred,round\n")
    spoilt = publish(cells=[(100, 1), (100, 2)], runtime=-1.0)
    arguments, expected = part(storage.url, bad, spoilt)
    code, out, error = call("report", *arguments, "--out", "pages")
    assert code == 1
    assert len(error) == len(expected)
    page = Path("pages", "report.html").read_text()
    for line, words in zip(error, expected, strict=True):
        assert line.startswith("left out: ")
        assert words in line
        assert words in page
    assert any(line.split() == ["table2.csv", "pages/table2.csv"] for line in out)


def test_a_failed_trial_is_named(tiny: Benchmark, fake: Any, play: Any, fill: Any, tmp_path: Path, call: Any) -> None:
    """A trial that failed is a line on stderr with its error, the rest is reported, and the exit code is 1."""
    records = play(tiny, lambda spec: fake(spec, "failed" if spec.learning_rate == 0.1 else "completed"))
    store = fill(RecordStore(str(tmp_path / "s")), tiny, records)
    code, _, error = call("report", store.url, "--out", "pages")
    assert code == 1
    assert len(error) == sum(record.status == "failed" for record in records) > 0
    assert all(line.startswith("left out: failed: ") and "RuntimeError: out of luck" in line for line in error)
    assert pd.read_csv("pages/table2.csv").set_index("method")["num_runs"].to_dict() == {
        "map-gs": 2,
        "de-elbo": 1,
        "elbo": 1,
    }


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
    """Where nothing can be made the exit code is 2, one line says why, and nothing is written or printed."""
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
    """What the benchmark's run in MLflow has in a folder."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(benchmark.name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`deelbo.role` = 'benchmark'")
    return {str(file.path) for file in client.list_artifacts(run.info.run_id, folder)}


def test_a_report_is_logged_to_its_run(storage: RecordStore, tiny: Benchmark, uri: str, call: Any) -> None:
    """After `sync`, `report --tracking-uri` adds the report's files to the benchmark's run, and none that lay in the
    folder before."""
    assert call("sync", storage.url, "--tracking-uri", uri)[0] == 0
    assert artifacts(uri, tiny) == set()
    Path("pages").mkdir()
    Path("pages", "diary.txt").write_text("private")
    code, out, error = call("report", storage.url, "--out", "pages", "--tracking-uri", uri)
    assert (code, error) == (0, [])
    names = {line.split()[0] for line in out}
    assert artifacts(uri, tiny) == {f"report/{name}" for name in names}
    assert {path.name for path in Path("pages").iterdir()} == names | {"diary.txt"}


def test_a_report_without_a_run_says_so(storage: RecordStore, other: RecordStore, uri: str, call: Any) -> None:
    """Where MLflow has no run of this storage, be it that it has another's, one line says so and names `sync`."""
    for _ in range(2):
        code, _, error = call("report", storage.url, "--out", "pages", "--tracking-uri", uri)
        assert code == 2
        (line,) = error
        assert f"has no run of {storage.url}: `sync` makes it" in line
        assert call("sync", other.url, "--tracking-uri", uri)[0] == 0


def test_sync_sends_the_report_of_the_storage(storage: RecordStore, tiny: Benchmark, uri: str, call: Any) -> None:
    """`sync` counts the trials, and takes the report along that lies in the storage."""
    assert call("report", storage.url)[0] == 0
    code, out, error = call("sync", storage.url, "--tracking-uri", uri)
    assert (code, out, error) == (0, ["9 trials of tiny are in MLflow"], [])
    assert "report/report.html" in artifacts(uri, tiny)


def test_sync_sends_the_report_of_a_storage_that_is_no_folder(
    tiny: Benchmark, play: Any, fill: Any, uri: str, call: Any
) -> None:
    """Where `run` left it behind a URL, too; nothing of it stays here."""
    store = fill(RecordStore("memory://viewed/a"), tiny, play(tiny))
    assert call("sync", store.url, "--tracking-uri", uri)[0] == 0
    assert artifacts(uri, tiny) == set()
    store.write_file("report/report.html", b"<html></html>")
    assert call("sync", store.url, "--tracking-uri", uri)[0] == 0
    assert artifacts(uri, tiny) == {"report/report.html"}
    assert files() == []


def test_sync_that_is_stopped_says_so(
    storage: RecordStore, uri: str, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exit code 130, and what the same command will do."""

    def interrupted(*arguments: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.tracking.sync.sync", interrupted)
    code, out, error = call("sync", storage.url, "--tracking-uri", uri)
    assert (code, error) == (130, [])
    assert out == ["stopped: what MLflow has stays, and the same command sends the rest"]


def test_a_page_of_mlflow_needs_its_database(storage: RecordStore, call: Any) -> None:
    """`ui` on a storage without an MLflow database is one line that names the command which makes it."""
    code, out, error = call("ui", storage.url)
    assert (code, out) == (2, [])
    (line,) = error
    assert "has no mlflow.db" in line
    assert f"sync {storage.url}" in line


def test_the_page_opens_at_the_trials(storage: RecordStore, call: Any, monkeypatch: Any) -> None:
    """`ui` names the place of the page where the benchmark's trials are, and the front page in a database that does
    not know that view."""
    assert call("sync", storage.url)[0] == 0
    served: list[list[str]] = []

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
