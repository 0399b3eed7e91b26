"""MLflow as a view of the records: complete, repeatable, and never in anybody's way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.benchmark import Benchmark
from bench.config import ConfigError
from bench.methods import make_methods
from bench.mirror import MLflowMirror, sync, tracking_uri
from bench.race import Race
from bench.records import RecordStore
from bench.tracking import Tracker
from bench.trials import TrialRecord, TrialSpec

Fake = Callable[..., TrialRecord]
NAN = float("nan")


def runs_of(uri: str, benchmark: Benchmark) -> dict[str, Any]:
    """Every run in MLflow, by the trial's key, the parent as ''."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(benchmark.name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    assert len({run.data.tags.get("deelbo.key", "") for run in found}) == len(found)
    return {run.data.tags.get("deelbo.key", ""): run for run in found}


def points(uri: str, run: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric's points of a run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    names = client.get_run(run).data.metrics
    return {name: sorted((p.step, p.value) for p in client.get_metric_history(run, name)) for name in names}


def test_a_trial_is_a_child_of_its_benchmark(storage: RecordStore, tiny: Benchmark, uri: str) -> None:
    """A child run has its parent, tags, parameters, series, seconds, learned state, hardware and versions."""
    assert sync(storage, tiny, uri) == 9
    runs = runs_of(uri, tiny)
    record = next(record for record in storage.records() if record.spec.method == "de-elbo")
    run, parent = runs[record.key], runs[""]
    tags = run.data.tags
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert (tags["method"], tags["prior"], tags["stage"], tags["status"]) == ("de-elbo", "l2-sp", "run", "completed")
    assert (tags["hardware.device"], tags["version.python"], tags["attempt"]) == ("cpu", "3.11", "1")
    assert run.data.params["learning_rate"] == str(record.spec.learning_rate)
    assert run.data.params["steps"] == "4"
    assert "weight_decay" not in run.data.params
    history = points(uri, run.info.run_id)
    assert history["train_nll"] == [(2, 2.0), (4, 1.5)]
    assert history["sigma"] == [(2, 0.01), (4, 0.02)]
    assert history["test_acc"] == [(4, record.metrics["test_acc"])]
    assert history["seconds_train"] == [(4, record.seconds["train"])]
    assert history["lambda"] == [(4, 0.5)]
    assert (run.info.start_time, run.info.end_time) == (1_000_000, 1_014_000)


def test_a_benchmark_is_one_finished_run(storage: RecordStore, tiny: Benchmark, uri: str, tmp_path: Path) -> None:
    """All 9 trials and the benchmark are FINISHED; the account of the last run is on the parent."""
    account = {"wall_seconds": 24.0, "busy": 0.8, "slots": 2}
    storage.write_run("20250101", account)
    sync(storage, tiny, uri)
    runs = runs_of(uri, tiny)
    assert len(runs) == 10
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs[""].data.metrics == account


def test_sync_twice_changes_nothing(storage: RecordStore, tiny: Benchmark, uri: str) -> None:
    """Sent again, there are the same runs with the same points, and no more."""
    sync(storage, tiny, uri)
    before = runs_of(uri, tiny)
    first = {key: points(uri, run.info.run_id) for key, run in before.items()}
    assert sync(storage, tiny, uri) == 9
    after = runs_of(uri, tiny)
    assert {key: run.info.run_id for key, run in after.items()} == {k: run.info.run_id for k, run in before.items()}
    assert {key: points(uri, run.info.run_id) for key, run in after.items()} == first


def test_two_storages_are_two_benchmarks(
    storage: RecordStore, tiny: Benchmark, uri: str, tmp_path: Path, play: Any, fill: Any
) -> None:
    """The same trials in another storage are runs of their own, under a parent of their own."""
    other = fill(RecordStore(str(tmp_path / "other")), tiny, play(tiny))
    assert MLflowMirror(uri, tiny, storage).parent != MLflowMirror(uri, tiny, other).parent
    assert MLflowMirror(uri, tiny, storage).parent == MLflowMirror(uri, tiny, storage).parent


@pytest.fixture
def spec(tiny: Benchmark) -> TrialSpec:
    found = make_methods(tiny)[1].ask()
    assert found is not None
    return found


@pytest.fixture
def empty(tmp_path: Path, tiny: Benchmark, fill: Any) -> RecordStore:
    store: RecordStore = fill(RecordStore(str(tmp_path / "empty")), tiny, [])
    return store


def test_numbers_that_are_none_are_tags(tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake, empty: Any) -> None:
    """A final metric that is NaN or infinite, which MLflow's charts cannot show, is a tag, in the series or not."""
    rows = [{"epoch": 1.0, "step": 4.0, "train_seconds": 0.1, "train_nll": NAN, "sigma": 0.1}]
    record = fake(spec, "diverged", metrics={"test_nll": NAN, "train_nll": NAN, "objective": float("inf")})
    empty.write(record, rows)
    sync(empty, tiny, uri)
    run = runs_of(uri, tiny)[spec.key]
    assert run.info.status == "FINISHED"
    assert run.data.tags["status"] == "diverged"
    assert (run.data.tags["test_nll"], run.data.tags["objective"]) == ("nan", "inf")
    assert run.data.tags["train_nll"] == "nan"
    assert not {"test_nll", "objective", "train_nll"} & set(run.data.metrics)


def test_a_failed_trial_is_failed(tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake, empty: RecordStore) -> None:
    """A failed trial's run is FAILED and keeps the error; a benchmark with trials left is KILLED."""
    empty.write(fake(spec, "failed"), [])
    sync(empty, tiny, uri)
    runs = runs_of(uri, tiny)
    assert (runs[spec.key].info.status, runs[""].info.status) == ("FAILED", "KILLED")
    assert "out of luck" in runs[spec.key].data.tags["error"]


def test_a_trial_that_succeeds_later_is_finished(
    tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake, empty: RecordStore
) -> None:
    """A trial that failed and then succeeded in a later call is FINISHED, in the same run, with its metrics."""
    empty.write(fake(spec, "failed"), [])
    sync(empty, tiny, uri)
    empty.write(fake(spec, attempt=2), [])
    sync(empty, tiny, uri)
    run = runs_of(uri, tiny)[spec.key]
    assert (run.info.status, run.data.tags["status"], run.data.tags["attempt"]) == ("FINISHED", "completed", "2")
    assert "test_acc" in run.data.metrics


def test_children_that_never_ended_are_killed(tiny: Benchmark, spec: TrialSpec, uri: str, empty: RecordStore) -> None:
    """A trial that was under way when the benchmark ended is KILLED; when it is run after all, FINISHED."""
    mirror = MLflowMirror(uri, tiny, empty)
    mirror.open()
    mirror.start(spec, 1000.0)
    assert {run.info.status for run in runs_of(uri, tiny).values()} == {"RUNNING"}
    mirror.close("FAILED", {"busy": 0.5})
    runs = runs_of(uri, tiny)
    assert (runs[spec.key].info.status, runs[""].info.status) == ("KILLED", "FAILED")


def test_a_run_is_followed_as_it_goes(tiny: Benchmark, uri: str, fake: Fake, empty: RecordStore) -> None:
    """Told of a whole race, the tracker leaves what `sync` would have made, and says that all was sent."""
    tracker = Tracker(lambda: MLflowMirror(uri, tiny, empty))
    race = Race(make_methods(tiny))
    tracker.began(race, 2)
    while (spec := race.ask()) is not None:
        tracker.started(spec)
        record = fake(spec)
        empty.write(record, [])
        race.tell(record)
        tracker.finished(record)
    assert tracker.stop("FINISHED", {"busy": 0.9}) is True
    assert tracker.problem is None
    runs = runs_of(uri, tiny)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(runs) == 10
    assert runs[""].data.metrics["busy"] == 0.9
    sync(empty, tiny, uri)
    assert set(runs_of(uri, tiny)) == set(runs)


def test_a_storage_path_may_have_a_quote(tmp_path: Path, tiny: Benchmark, uri: str, play: Any, fill: Any) -> None:
    """A folder whose name has a quote in it, as in o'brien, is mirrored like any other."""
    store = fill(RecordStore(str(tmp_path / "o'brien")), tiny, play(tiny))
    assert sync(store, tiny, uri) == sync(store, tiny, uri) == 9


def test_where_mlflow_is_by_default(tmp_path: Path) -> None:
    """MLflow is a sqlite file in a local storage; a storage elsewhere needs a URI, which is said."""
    assert tracking_uri(RecordStore(str(tmp_path))) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(RecordStore("memory://a"), "http://server:5000") == "http://server:5000"
    with pytest.raises(ValueError, match="give --tracking-uri"):
        tracking_uri(RecordStore("memory://a"))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a server that hangs waits for; opened at the end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


def raises() -> MLflowMirror:
    raise ConnectionError("no server\nanywhere")


@pytest.mark.parametrize("kind", ["raises", "hangs"])
def test_a_dead_server_is_in_nobodys_way(
    kind: str, gate: threading.Event, tiny: Benchmark, spec: TrialSpec, fake: Fake
) -> None:
    """With a server that refuses or hangs no call takes 50 ms or raises; the end says what failed."""

    def hangs() -> MLflowMirror:
        gate.wait()
        return raises()

    tracker = Tracker(raises if kind == "raises" else hangs, pause=0.05, grace=0.3)
    for call in (
        lambda: tracker.began(Race(make_methods(tiny)), 2),
        lambda: tracker.started(spec),
        lambda: tracker.finished(fake(spec)),
    ):
        since = time.perf_counter()
        call()
        assert time.perf_counter() - since < 0.05
    since = time.perf_counter()
    assert tracker.stop("FINISHED", {}) is False
    assert time.perf_counter() - since < 5
    assert tracker.problem
    assert len(tracker.problem.splitlines()) == 1


def test_a_server_that_comes_back_gets_everything(spec: TrialSpec, fake: Fake) -> None:
    """After errors the tracker goes on where it was: every event arrives once, in order."""
    got: list[str] = []

    class Flaky:
        tries = 0

        def __getattr__(self, name: str) -> Callable[..., None]:
            def event(*_: object) -> None:
                Flaky.tries += 1
                if Flaky.tries % 2:
                    raise ConnectionError("not now")
                got.append(name)

            return event

    tracker = Tracker(Flaky, pause=0.01, grace=10)  # type: ignore[arg-type]
    tracker.started(spec)
    tracker.finished(fake(spec))
    assert tracker.stop("FINISHED", {}) is True
    assert got == ["start", "finish", "close"]


def test_a_start_that_fails_half_way_leaves_one_run(tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake) -> None:
    """Where the server fails between making a run and its parameters, the retry takes the same run."""
    store = RecordStore("memory://half/way")
    mirror = MLflowMirror(uri, tiny, store)
    log_batch, mirror.client.log_batch = mirror.client.log_batch, unwilling
    with pytest.raises(OSError, match="unwilling"):
        mirror.start(spec, 1000.0)
    mirror.client.log_batch = log_batch
    mirror.start(spec, 1000.0)
    mirror.finish(fake(spec))
    runs = mirror.client.search_runs([mirror.experiment], "tags.`deelbo.role` = 'trial'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert runs[0].data.params["learning_rate"] == str(spec.learning_rate)


def unwilling(*_: Any, **__: Any) -> None:
    raise OSError("unwilling")


def test_of_two_runs_of_one_trial_one_stays(tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake) -> None:
    """Two calls at once may both make a run for a trial; the next one keeps the complete one."""
    store = RecordStore("memory://two/runs")
    one, other = MLflowMirror(uri, tiny, store), MLflowMirror(uri, tiny, store)
    for mirror in (one, other):
        mirror.start(spec, 1000.0)
    other.finish(fake(spec))
    third = MLflowMirror(uri, tiny, store)
    assert third.runs == {spec.key: other.runs[spec.key]}
    assert third.complete == {spec.key}


@pytest.mark.parametrize(
    "uri", ["somewhere", "gopher://x", "file:///tmp/x", "sqlite:////", "sqlite:////no/such/folder/a.db"]
)
def test_a_uri_that_mlflow_does_not_take(uri: str) -> None:
    """A tracking URI of no known kind, or a database that cannot be there, is refused by name."""
    with pytest.raises(ConfigError, match="--tracking-uri"):
        tracking_uri(RecordStore("memory://a"), uri)


def test_what_an_interrupted_call_did_not_send_is_sent(tiny: Benchmark, uri: str, storage: RecordStore) -> None:
    """Records that were there before a race are in MLflow after it, although nobody told of their end."""
    race = Race(make_methods(tiny), storage.records())
    tracker = Tracker(lambda: MLflowMirror(uri, tiny, storage))
    tracker.began(race, 2)
    assert tracker.stop("FINISHED", {})
    runs = runs_of(uri, tiny)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(runs) == len(race.reused) + 1
