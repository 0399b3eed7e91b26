"""A benchmark from Python: run, run again, from a thread, opened, refused and interrupted."""

import json
import signal
import subprocess
import sys
import threading
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import bench
from bench.config.loading import load_benchmark
from bench.exceptions import ConfigError, RecordError, ReportError
from bench.session.run import draw_report
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from tests.helpers.tiny import CONTENT, TRIALS


def test_import_is_cheap() -> None:
    """`import bench` loads nothing beside the standard library, and names what it exports."""
    code = (
        "import sys, bench; print({'pydantic', 'rich', 'yaml', 'torch', 'pandas', 'ray'} & set(sys.modules)); "
        "print({'run', 'load', 'Result'} <= set(dir(bench)), hasattr(bench, 'walk'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nTrue False\n"


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A subset is run from a dict, then all of it from a thread; tables agree with the report, the dict stays."""
    content, storage = deepcopy(CONTENT), tmp_path / "storage"
    handler = signal.getsignal(signal.SIGINT)
    first = bench.run(content, storage=storage, only="method=de-elbo", overrides=["training.steps=3"])
    assert "2 trials in " in capsys.readouterr().out
    assert content == CONTENT
    assert set(first.records["method"]) == {"de-elbo"}
    assert RecordStore(str(storage)).read_benchmark()["training"]["steps"] == 3  # type: ignore[index]
    results: list[bench.Result] = []
    arguments = {"storage": str(storage), "overrides": ["training.steps=3"], "quiet": True}
    thread = threading.Thread(target=lambda: results.append(bench.run(content, **arguments)))  # type: ignore[arg-type]
    thread.start()
    thread.join()
    (result,) = results
    assert capsys.readouterr().out == ""
    assert signal.getsignal(signal.SIGINT) is handler
    assert (len(result.records), result.failures) == (TRIALS, [])
    assert set(first.records["key"]) < set(result.records["key"])  # those were not run again
    third = pd.read_csv(storage / "report" / "table3.csv")
    assert result.table3()["mean"].tolist() == pytest.approx(third["mean"].tolist())
    assert len(result.curves) == len(pd.read_csv(storage / "report" / "curves.csv"))


def test_load(storage: RecordStore, tmp_path: Path) -> None:
    """A storage is opened as tables: each method's choice is its best trial, and a notebook gets a PNG."""
    result = bench.load(Path(storage.url))
    assert len(result.records) == TRIALS
    assert f"tiny: {TRIALS} trials in {storage.url}" in repr(result)
    chosen = result.chosen()
    assert chosen["method"].tolist() == ["map-gs", "de-elbo", "elbo"]
    assert chosen["trials"].tolist() == [5, 2, 2]
    records = result.records.set_index("key")
    grid, run, _ = chosen.to_dict("records")
    tuned = records[records["stage"] == "tune"]
    assert grid["key"] == records.index[records["stage"] == "retrain"][0]
    assert records.loc[grid["key"], "learning_rate"] == tuned.loc[tuned["val_nll"].idxmin(), "learning_rate"]
    assert grid["train_seconds"] == pytest.approx(records.loc[records["method"] == "map-gs", "train_seconds"].sum())
    own = records[records["method"] == "de-elbo"]
    assert run["key"] == own["objective"].idxmin()
    assert (run["lambda"], run["sigma"]) == (0.5, 0.01)
    assert run["test_acc"] == own.loc[run["key"], "test_acc"]
    assert run["full_seconds"] > run["train_seconds"]
    assert result.figure2()._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    with pytest.raises(RecordError, match="holds no benchmark"):
        bench.load(tmp_path / "nothing")


def test_a_storage_without_results(tmp_path: Path, content: dict[str, Any]) -> None:
    """A run that was stopped early has empty tables, and no figure."""
    store = RecordStore(str(tmp_path / "storage"))
    store.write_benchmark(load_benchmark(content).content())
    result = bench.load(store.url)
    assert [len(table) for table in (result.records, result.chosen(), result.curves, result.table3())] == [0] * 4
    with pytest.raises(ReportError, match="no curve to draw yet"):
        result.figure2()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {}}, "the configuration: keys name, datasets"),
        ({"config": "quickstat"}, "no preset or file 'quickstat'"),
        ({"config": Path("nowhere.yaml")}, "no preset or file 'nowhere.yaml'"),
        ({"config": "quickstart", "only": "n=7"}, "this benchmark has n 100"),
        ({"config": "quickstart", "overrides": ["training.steps=0"]}, "training.steps = 0"),
        ({"config": CONTENT | {"color": "red"}}, "the configuration: unknown key color"),
    ],
)
def test_bad_input(
    arguments: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is raised in one line, nothing is printed, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
        bench.run(**arguments)
    assert message in str(caught.value)
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reason", "error", "message"),
    [("", KeyboardInterrupt, "with 3 trials left: the same call continues"), ("the disk is full", RecordError, "full")],
)
def test_a_run_that_was_stopped(
    reason: str, error: type[BaseException], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is KeyboardInterrupt, and a run that cannot go on is a RecordError with its reason."""
    outcome = SimpleNamespace(summary=SimpleNamespace(stop_reason=reason, left=3))
    monkeypatch.setattr("bench.api.run_session", lambda *_: outcome)
    with pytest.raises(error, match=message):
        bench.run("quickstart")


def test_a_lost_storage_stops_no_other_thread(
    storage: RecordStore, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]
) -> None:
    """Outside the main thread a storage that another run took over sends no signal, which would end the process."""
    calls = []

    def refuse(store: RecordStore, on_lost: Any, say: Any) -> None:
        calls.append(on_lost)
        raise RecordError("enough")

    monkeypatch.setattr("bench.session.run.StorageLock", refuse)

    def call() -> None:
        with pytest.raises(RecordError, match="enough"):
            bench.run(content, storage=storage.url)

    call()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert calls[0] is not None
    assert calls[1] is None


@pytest.mark.usefixtures("sketch", "cache")
def test_run_as_json(
    storage: RecordStore, tmp_path: Path, content: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """`run --json` prints one document and nothing else on stdout; notes are on stderr."""
    from bench.cli.main import main

    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(content))
    assert main(["run", str(file), "--storage", storage.url, "--json"]) == 0
    out, error = capfd.readouterr()
    document = json.loads(out)
    assert document["trials"] == {"ran": 0, "reused": TRIALS, "failed": 0, "left": 0}
    assert (document["exit_status"], document["storage"], document["failures"]) == (0, storage.url, [])
    assert Path(document["report"], "report.html").exists()
    assert [row["method"] for row in document["chosen"]] == ["map-gs", "de-elbo", "elbo"]
    assert [row["published_mean"] for row in document["table3"]] == [None] * 3
    assert f"nothing left to run, {TRIALS} trials done before" in error
    assert "test accuracy (%, class-balanced)" in error


@pytest.mark.usefixtures("sketch")
def test_a_report_without_a_test_set(tmp_path: Path, content: dict[str, Any], play: Any, fake: Any, fill: Any) -> None:
    """Trials without test metrics are reported: what was chosen and what it took, without an accuracy."""

    def judge(spec: TrialSpec) -> TrialRecord:
        record: TrialRecord = fake(spec)
        return replace(record, metrics={k: v for k, v in record.metrics.items() if not k.startswith("test_")})

    benchmark = load_benchmark(content | {"methods": {"deelbo-halving": {}, "de-elbo": {}}})
    store = fill(RecordStore(str(tmp_path / "storage")), benchmark, play(benchmark, judge))
    notes: list[str] = []
    folder = draw_report(store, benchmark, notes.append)
    assert folder is not None, notes
    assert len(pd.read_csv(folder / "table3.csv")) == 0
    chosen = bench.load(store.url).chosen()
    assert chosen["test_acc"].isna().all()
    assert chosen["method"].tolist() == ["de-elbo", "deelbo-halving"]
