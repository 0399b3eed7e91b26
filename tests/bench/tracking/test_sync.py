"""`sync`: MLflow is what the records say, within MLflow's limits, however often it is called."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import Benchmark
from bench.exceptions import ConfigError, RecordError
from bench.results.configurations import selected_trials
from bench.results.frame import to_frame
from bench.storage.records import RecordStore
from bench.tracking.client import tracking_uri
from bench.tracking.conversion import run_content, run_params
from bench.tracking.runs import MLflowRuns
from bench.tracking.sync import sync
from bench.tracking.views import saved_views
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

Fake = Callable[..., TrialRecord]
NAN = float("nan")


def test_a_trial_is_a_child_of_its_benchmark(
    storage: RecordStore, tiny: Benchmark, uri: str, find_runs: Any, points: Any
) -> None:
    """A trial's run has its parent, tags, parameters, series, seconds and state, in six digits."""
    assert sync(storage, tiny, uri) == 9
    runs = find_runs()
    record = next(record for record in storage.records() if record.spec.method == "de-elbo")
    run, parent = runs[record.key], runs[""]
    tags = run.data.tags
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert (tags["method"], tags["prior"], tags["stage"], tags["status"]) == ("de-elbo", "l2-sp", "run", "completed")
    assert (tags["hardware.device"], tags["version.python"], tags["attempt"]) == ("cpu", "3.11", "1")
    assert run.data.params["learning_rate"] == str(record.spec.learning_rate)
    assert run.data.params["steps"] == "4"
    assert "weight_decay" not in run.data.params
    history = points(run.info.run_id)
    assert history["train_nll"] == [(2, 2.0), (4, 1.5)]
    assert history["sigma"] == [(2, 0.01), (4, 0.02)]
    assert history["test_acc"] == [(0, pytest.approx(record.metrics["test_acc"], rel=1e-5))]
    assert len(repr(history["test_acc"][0][1])) <= len("0.123456")
    assert history["learning_rate"] == [(0, record.spec.learning_rate)]
    assert history["total_seconds"] == [(0, 14.0)]
    assert history["train_seconds"] == [(2, 0.1), (4, pytest.approx(record.seconds["train"], rel=1e-5))]
    assert history["system/seconds_select"] == [(0, 2.0)]
    assert history["lambda"] == [(4, 0.5)]
    assert (run.info.start_time, run.info.end_time) == (1_000_000, 1_014_000)


def test_sync_twice_changes_nothing(
    storage: RecordStore, tiny: Benchmark, uri: str, find_runs: Any, points: Any
) -> None:
    """Runs are FINISHED, with the last summary; a second sync leaves the same runs with the same points."""
    storage.write_run("20250101", {"wall_seconds": 24.0, "utilization": 0.8, "slots": 2})
    sync(storage, tiny, uri)
    before = find_runs()
    assert len(before) == 10
    assert {run.info.status for run in before.values()} == {"FINISHED"}
    assert before[""].data.metrics == {"wall_seconds": 24.0, "busy": 0.8, "slots": 2}
    first = {key: points(run.info.run_id) for key, run in before.items()}
    assert sync(storage, tiny, uri) == 9
    after = find_runs()
    assert {key: run.info.run_id for key, run in after.items()} == {k: run.info.run_id for k, run in before.items()}
    assert {key: points(run.info.run_id) for key, run in after.items()} == first


def test_what_methods_chose_is_marked(storage: RecordStore, tiny: Benchmark, uri: str, find_runs: Any) -> None:
    """One trial per method and cell is marked as its choice, with its cost; a better one takes the mark over."""
    sync(storage, tiny, uri)
    marked = {key: run for key, run in find_runs().items() if run.data.tags.get("chosen") == "true"}
    frame = to_frame(list(storage.records())).set_index("key")
    assert sorted(frame.loc[list(marked), "method"]) == ["de-elbo", "elbo", "map-gs"]
    assert {key: run.data.metrics["cost_seconds"] for key, run in marked.items()} == pytest.approx(
        selected_trials(tiny, list(storage.records())), rel=1e-5
    )
    before = next(key for key in marked if frame.loc[key, "method"] == "elbo")
    other = next(r for r in storage.records() if r.spec.method == "elbo" and r.key != before)
    better = replace(other, metrics=other.metrics | {"objective": -1.0}, finished=2000.0)
    storage.write(better, storage.series(other.key))
    sync(storage, tiny, uri)
    now = {key for key, run in find_runs().items() if run.data.tags.get("chosen") == "true"}
    assert now == set(marked) - {before} | {other.key}


def test_descriptions_and_views_are_sent_first(storage: RecordStore, tiny: Benchmark, uri: str, requests: Any) -> None:
    """A sync that is ended before its first trial has left the description and the views."""
    requests.fail(KeyboardInterrupt(), at="log_batch")
    with pytest.raises(KeyboardInterrupt):
        sync(storage, tiny, uri)
    runs = MLflowRuns(uri, tiny, storage)
    tags = runs.client.get_experiment(runs.experiment).tags
    assert set(saved_views(tuple(tiny.methods))) < set(tags)
    assert "mnist-digits" in tags["mlflow.note.content"]


@pytest.mark.parametrize(
    ("fails_at", "pauses"), [("create_experiment", [1, 2, 4]), ("log_batch", [1, 2, 4, 8, 16, 30])]
)
def test_a_server_that_restarts_is_waited_for(
    fails_at: str,
    pauses: list[int],
    storage: RecordStore,
    tiny: Benchmark,
    uri: str,
    requests: Any,
    find_runs: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that goes away is waited for a minute, one that never answered for seconds; a retry sends the rest."""
    slept = list[float]()
    monkeypatch.setattr("bench.tracking.sync.time.sleep", slept.append)
    requests.fail(ConnectionError("refused"), at=fails_at)
    with pytest.raises(ConnectionError):
        sync(storage, tiny, uri)
    assert slept[-len(pauses) :] == pauses
    assert len(slept) <= len(pauses) + 1
    slept.clear()
    requests.fail(ConnectionError("refused"), at="nothing")
    assert sync(storage, tiny, uri) == 9
    assert slept == []
    assert {run.info.status for run in find_runs().values()} == {"FINISHED"}


def test_two_storages_are_two_benchmarks(
    storage: RecordStore, tiny: Benchmark, uri: str, tmp_path: Path, play: Any, fill: Any
) -> None:
    """The same trials in another storage are runs of their own; its name may contain a quote."""
    other = fill(RecordStore(str(tmp_path / "o'brien")), tiny, play(tiny))
    for store in (storage, other, other):
        assert sync(store, tiny, uri) == 9
    one, two = (MLflowRuns(uri, tiny, store) for store in (storage, other))
    one.load()
    two.load()
    assert one.parent != two.parent
    assert len({run.run_id for run in [*one.trials.values(), *two.trials.values()]}) == 18


def test_numbers_that_are_not_finite_are_tags(
    tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake, empty: RecordStore, find_runs: Any
) -> None:
    """A final metric that is NaN or infinite, which MLflow's charts cannot show, is a tag, in the series or not."""
    rows = [{"epoch": 1.0, "step": 4.0, "train_seconds": 0.1, "train_nll": NAN, "sigma": 0.1}]
    record = fake(spec, "diverged", metrics={"test_nll": NAN, "train_nll": NAN, "objective": float("inf")})
    empty.write(record, rows)
    sync(empty, tiny, uri)
    run = find_runs()[spec.key]
    assert run.info.status == "FINISHED"
    assert run.data.tags["status"] == "diverged"
    assert (run.data.tags["test_nll"], run.data.tags["objective"]) == ("nan", "inf")
    assert run.data.tags["train_nll"] == "nan"
    assert not {"test_nll", "objective", "train_nll"} & set(run.data.metrics)


def test_a_failed_trial_that_later_succeeds(
    tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake, empty: RecordStore, find_runs: Any
) -> None:
    """A failed trial's run is FAILED with its error; after another attempt it is FINISHED, without the error."""
    empty.write(fake(spec, "failed"), [])
    sync(empty, tiny, uri)
    runs = find_runs()
    assert (runs[spec.key].info.status, runs[""].info.status) == ("FAILED", "KILLED")
    assert "out of luck" in runs[spec.key].data.tags["error"]
    empty.write(fake(spec, attempt=2), [])
    sync(empty, tiny, uri)
    run = find_runs()[spec.key]
    assert (run.info.status, run.data.tags["status"], run.data.tags["attempt"]) == ("FINISHED", "completed", "2")
    assert "test_acc" in run.data.metrics
    assert "error" not in run.data.tags


def test_what_was_deleted_in_the_page_is_made_again(
    storage: RecordStore, tiny: Benchmark, uri: str, find_runs: Any
) -> None:
    """`sync` makes deleted runs again, a trial's or the benchmark's, and restores a deleted experiment."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    sync(storage, tiny, uri)
    before = find_runs()
    gone = next(key for key in before if key)
    for key in ("", gone):
        client.delete_run(before[key].info.run_id)
    sync(storage, tiny, uri)
    after = find_runs()
    assert {key: run.info.status for key, run in after.items()} == dict.fromkeys(before, "FINISHED")
    assert {run.data.tags["mlflow.parentRunId"] for key, run in after.items() if key} == {after[""].info.run_id}
    client.delete_experiment(after[""].info.experiment_id)
    sync(storage, tiny, uri)
    assert {key: run.info.status for key, run in find_runs().items()} == dict.fromkeys(before, "FINISHED")


def test_damaged_files_do_not_keep_the_rest_out(
    storage: RecordStore, tiny: Benchmark, uri: str, find_runs: Any
) -> None:
    """With a damaged record and a damaged series `sync` sends all else and names them in one line."""
    records = list(storage.records())
    Path(storage.path("records", f"{records[0].key}.json")).write_text("{")
    Path(storage.path("series", f"{records[1].key}.json")).write_text('[{"epoch": 1.0}]')
    with pytest.raises(RecordError, match=r"all but 2 records are in MLflow.*damaged"):
        sync(storage, tiny, uri)
    runs = {key: run.info.status for key, run in find_runs().items()}
    assert runs.pop("") == "KILLED"  # as a trial is left to run
    assert runs == dict.fromkeys([record.key for record in records[1:]], "FINISHED")
    storage.write(records[0], [])
    storage.write(records[1], [])
    assert sync(storage, tiny, uri) == 9


def test_long_and_odd_text_is_cut(
    tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake, empty: RecordStore, find_runs: Any
) -> None:
    """Text that is too long for MLflow, or not allowed as a name there, is cut and replaced."""
    odd = {"a" * 300: "b" * 9000, "../up": "1", "is it\u0000\udcff?": "\u0000\udcff"}
    record = fake(replace(spec, head="h" * 7000, backbone="b" * 300), hardware=odd, state={"x=y": 1.0, "z" * 300: 2.0})
    runs = MLflowRuns(uri, tiny, empty)
    content = run_content(record, [])
    run = runs.create(record.spec, 1000.0, content.tags)
    runs.log(run.run_id, content.metrics, run_params(record.spec), content.tags)
    found = find_runs()[record.key]
    assert (len(found.data.params["head"]), len(found.info.run_name)) == (6000, 250)
    assert found.data.metrics["x_y"] == 1.0
    assert {len(value) for name, value in found.data.tags.items() if name.startswith("hardware.aa")} == {8000}


def test_the_default_is_a_file_in_the_storage(tmp_path: Path) -> None:
    """MLflow is a sqlite file in a local storage; a storage elsewhere needs a URI, which the error says."""
    assert tracking_uri(RecordStore(str(tmp_path))) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(RecordStore("memory://a"), "http://server:5000") == "http://server:5000"
    with pytest.raises(ValueError, match="give --tracking-uri"):
        tracking_uri(RecordStore("memory://a"))


@pytest.mark.parametrize(
    "uri",
    [
        *("somewhere", "gopher://x", "file:///tmp/x", "http://", "sqlite:////", "sqlite:////no/such/folder/a.db"),
        "sqlite:////proc/x.db",
    ],
)
def test_a_uri_that_mlflow_cannot_use_is_refused(uri: str, tmp_path: Path) -> None:
    """A tracking URI of an unknown kind, a server without a name, or a database that cannot be there, is refused."""
    for store in (RecordStore(str(tmp_path)), RecordStore("memory://a")):
        with pytest.raises(ConfigError, match=r"--tracking-uri.*expected"):
            tracking_uri(store, uri)


@pytest.mark.parametrize("name", ["a?b", "50%20", "#1"])
def test_a_storage_whose_name_no_uri_can_contain(tmp_path: Path, name: str) -> None:
    """A storage whose name would be read as another file's is refused as default; another URI is taken."""
    store = RecordStore(str(tmp_path / name))
    with pytest.raises(ConfigError, match="give --tracking-uri, or choose another --storage"):
        tracking_uri(store)
    elsewhere = f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(store, elsewhere) == elsewhere
    assert list(tmp_path.iterdir()) == []
