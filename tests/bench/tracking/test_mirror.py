"""MLflow as a view of the records: complete, repeatable, within its limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import ConfigError, RecordError
from bench.results.configurations import selected_trials
from bench.results.frame import to_frame
from bench.storage.records import RecordStore
from bench.tracking.client import tracking_uri
from bench.tracking.mirror import MLflowMirror, sync
from bench.tracking.tracker import Tracker
from bench.tracking.views import saved
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

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
    """A child run has its parent, tags, parameters, series, seconds, learned state, hardware and versions; what there
    is one of is at step 0, and numbers have six digits."""
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
    assert history["test_acc"] == [(0, pytest.approx(record.metrics["test_acc"], rel=1e-5))]
    assert len(repr(history["test_acc"][0][1])) <= len("0.123456")
    assert history["learning_rate"] == [(0, record.spec.learning_rate)]
    assert history["total_seconds"] == [(0, 14.0)]
    assert history["train_seconds"] == [(2, 0.1), (4, pytest.approx(record.seconds["train"], rel=1e-5))]
    assert history["system/seconds_select"] == [(0, 2.0)]
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


def test_what_methods_chose_is_marked(storage: RecordStore, tiny: Benchmark, uri: str) -> None:
    """One trial a method and cell is marked as its choice, with all that the method needed there; where a better one
    comes, that takes the mark over."""
    sync(storage, tiny, uri)
    marked = {key: run for key, run in runs_of(uri, tiny).items() if run.data.tags.get("chosen") == "true"}
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
    now = {key for key, run in runs_of(uri, tiny).items() if run.data.tags.get("chosen") == "true"}
    assert now == set(marked) - {before} | {other.key}


def test_a_choice_that_comes_late_is_marked(storage: RecordStore, tiny: Benchmark, uri: str) -> None:
    """A trial that is sent after the choices, as where a server was away for its turn, has its mark all the same."""
    mirror, records = MLflowMirror(uri, tiny, storage), list(storage.records())
    costs = selected_trials(tiny, records)
    for record in records[:-1]:
        if record.key not in costs:
            mirror.finish(record)
    mirror.choose()
    for record in records:
        mirror.finish(record)
    marked = {key for key, run in runs_of(uri, tiny).items() if run.data.tags.get("chosen") == "true"}
    assert marked == set(costs)


def test_what_a_sync_will_show_is_offered_at_once(storage: RecordStore, tiny: Benchmark, uri: str) -> None:
    """A sync that is ended before its first trial has left the description and the views."""

    class EndedError(Exception):
        pass

    def end(*arguments: Any) -> None:
        raise EndedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MLflowMirror, "finish", end)
        patch.setattr("bench.tracking.mirror._insist", lambda what, *pauses: what())
        with pytest.raises(EndedError):
            sync(storage, tiny, uri)
    runs = MLflowMirror(uri, tiny, storage).runs
    tags = runs.client.get_experiment(runs.experiment).tags
    assert set(saved(tuple(tiny.methods))) < set(tags)
    assert "mnist-digits" in tags["mlflow.note.content"]


def test_a_server_that_is_started_anew_is_waited_for(
    storage: RecordStore, tiny: Benchmark, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync whose server goes away among the trials tries that trial again for a minute, and ends with everything."""
    waited, failures = list[float](), iter([ConnectionError("refused")] * 5)
    finish = MLflowMirror.finish

    def flaky(mirror: MLflowMirror, record: TrialRecord) -> None:
        finish(mirror, record)
        if (error := next(failures, None)) is not None:
            raise error

    monkeypatch.setattr(MLflowMirror, "finish", flaky)
    monkeypatch.setattr("bench.tracking.mirror.wait", waited.append)
    assert sync(storage, tiny, uri) == 9
    assert len(runs_of(uri, tiny)) == 10
    assert waited == [1, 2, 4, 8, 16]


def test_two_storages_are_two_benchmarks(
    storage: RecordStore, tiny: Benchmark, uri: str, tmp_path: Path, play: Any, fill: Any
) -> None:
    """The same trials in another storage are runs of their own, under a parent of their own."""
    other = fill(RecordStore(str(tmp_path / "other")), tiny, play(tiny))
    assert MLflowMirror(uri, tiny, storage).runs.parent != MLflowMirror(uri, tiny, other).runs.parent
    assert MLflowMirror(uri, tiny, storage).runs.parent == MLflowMirror(uri, tiny, storage).runs.parent


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
    mirror.close("FAILED", {"busy": 0.5}, 1014.0)
    runs = runs_of(uri, tiny)
    assert (runs[spec.key].info.status, runs[""].info.status) == ("KILLED", "FAILED")


def test_a_storage_path_may_have_a_quote(tmp_path: Path, tiny: Benchmark, uri: str, play: Any, fill: Any) -> None:
    """A folder whose name has a quote in it, as in o'brien, is mirrored like any other."""
    store = fill(RecordStore(str(tmp_path / "o'brien")), tiny, play(tiny))
    assert sync(store, tiny, uri) == sync(store, tiny, uri) == 9


def states(uri: str, benchmark: Benchmark) -> dict[str, str]:
    return {key: run.info.status for key, run in runs_of(uri, benchmark).items()}


def test_after_a_crash_no_trial_stays_running(
    tiny: Benchmark, uri: str, play: Any, fake: Fake, empty: RecordStore
) -> None:
    """What a dead call left RUNNING is KILLED when the next begins; a trial that is then started again is RUNNING in
    the same run, and ends with its own status and time."""
    one, other, third = (record.spec for record in play(tiny)[:3])
    dead = MLflowMirror(uri, tiny, empty)
    dead.open()
    for trial in (one, other, third):
        dead.start(trial, 1000.0)
    before = runs_of(uri, tiny)
    mirror = MLflowMirror(uri, tiny, empty)
    mirror.open()
    assert states(uri, tiny) == {"": "RUNNING", one.key: "KILLED", other.key: "KILLED", third.key: "KILLED"}
    mirror.start(one, 2000.0)
    assert states(uri, tiny)[one.key] == "RUNNING"
    mirror.finish(fake(one, finished=2020.0))
    mirror.finish(fake(other, "failed"))
    after = runs_of(uri, tiny)
    assert after[one.key].info.run_id == before[one.key].info.run_id
    assert (after[one.key].info.status, after[one.key].info.end_time) == ("FINISHED", 2_020_000)
    assert states(uri, tiny) == {"": "RUNNING", one.key: "FINISHED", other.key: "FAILED", third.key: "KILLED"}


def test_sync_alone_ends_what_a_crash_left(tiny: Benchmark, spec: TrialSpec, uri: str, empty: RecordStore) -> None:
    """After a crash `sync` leaves nothing RUNNING, nor a run that was asked for twice."""
    for mirror in (MLflowMirror(uri, tiny, empty), MLflowMirror(uri, tiny, empty)):
        assert mirror.runs.find(spec.key) is None
    mirror.start(spec, 1000.0)
    twin = MLflowMirror(uri, tiny, empty)
    twin.runs._all_known = True  # as a server that does what it was asked after the answer was given up
    twin.start(spec, 1001.0)
    sync(empty, tiny, uri)
    assert states(uri, tiny) == {"": "KILLED", spec.key: "KILLED"}


@pytest.mark.parametrize("broken", range(5))
def test_an_end_that_is_sent_in_part_is_there_once(
    broken: int, tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake, empty: RecordStore
) -> None:
    """Whichever request of a trial's end fails, and whether or not the server did it, sending it again leaves one run
    with every value once."""
    rows = [{"epoch": 1.0, "step": i, "train_seconds": 0.1, "train_nll": 1 / i, "sigma": 1 / i} for i in range(1, 600)]
    record = fake(spec, versions={"data": "f1a9"})
    empty.write(record, rows)
    mirror, count = MLflowMirror(uri, tiny, empty), iter(range(100))
    assert mirror.runs.find(spec.key) is None
    client = mirror.runs.client

    class Lossy:
        def __getattr__(self, name: str) -> Any:
            def request(*arguments: Any, **named: Any) -> Any:
                answer = getattr(client, name)(*arguments, **named)
                if next(count) == broken:
                    raise ConnectionError("no answer")
                return answer

            return request

    mirror.runs.client = Lossy()
    with pytest.raises(ConnectionError):
        mirror.finish(record)
    mirror.runs.client = client
    mirror.finish(record)
    mirror.finish(record)
    sync(empty, tiny, uri)
    run = runs_of(uri, tiny)[spec.key]
    history = points(uri, run.info.run_id)
    assert history["train_nll"] == [(i, pytest.approx(1 / i, rel=1e-5)) for i in range(1, 600)]
    assert history["test_acc"] == [(0, pytest.approx(record.metrics["test_acc"], rel=1e-5))]
    assert len(run.inputs.dataset_inputs) == 1
    assert run.info.status == "FINISHED"


def test_what_was_deleted_in_the_page_is_made_again(storage: RecordStore, tiny: Benchmark, uri: str) -> None:
    """`sync` makes deleted runs again, a trial's or the benchmark's, and restores a deleted experiment."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    sync(storage, tiny, uri)
    before = runs_of(uri, tiny)
    gone = next(key for key in before if key)
    for key in ("", gone):
        client.delete_run(before[key].info.run_id)
    sync(storage, tiny, uri)
    after = runs_of(uri, tiny)
    assert states(uri, tiny) == dict.fromkeys(before, "FINISHED")
    assert {run.data.tags["mlflow.parentRunId"] for key, run in after.items() if key} == {after[""].info.run_id}
    client.delete_experiment(after[""].info.experiment_id)
    sync(storage, tiny, uri)
    assert states(uri, tiny) == dict.fromkeys(before, "FINISHED")


def test_what_is_deleted_during_a_race_is_made_again(
    storage: RecordStore, tiny: Benchmark, uri: str, play: Any
) -> None:
    """A run or an experiment that is deleted in the page while a race goes on is there at its end."""
    from mlflow.tracking import MlflowClient

    client, records = MlflowClient(uri), list(storage.records())
    tracker = Tracker(lambda: MLflowMirror(uri, tiny, storage), pause=0.05)
    for record in records[:3]:
        tracker.on_trial_start(record.spec)
        tracker.on_trial_end(record)
    tracker.on_trial_start(records[3].spec)
    end = time.monotonic() + 60
    while tracker.left and time.monotonic() < end:
        time.sleep(0.02)
    client.delete_run(runs_of(uri, tiny)[records[3].key].info.run_id)
    tracker.on_trial_end(records[3])
    while tracker.left and time.monotonic() < end:
        time.sleep(0.02)
    client.delete_experiment(runs_of(uri, tiny)[""].info.experiment_id)
    for record in records[4:]:
        tracker.on_trial_end(record)
    assert tracker.stop("FINISHED", {}) is True
    assert states(uri, tiny) == dict.fromkeys(["", *(record.key for record in records)], "FINISHED")


def test_a_new_result_takes_the_place_of_an_old(
    tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake, empty: RecordStore
) -> None:
    """A trial whose record was removed and that ran again is there with the points of its new record alone."""
    empty.write(fake(spec, metrics={"test_acc": 0.25}), [])
    sync(empty, tiny, uri)
    empty.write(fake(spec, metrics={"test_acc": 0.75}, finished=2000.0), [])
    sync(empty, tiny, uri)
    run = runs_of(uri, tiny)[spec.key]
    assert points(uri, run.info.run_id)["test_acc"] == [(0, 0.75)]


@pytest.mark.parametrize("mark", ["1", "completed 1 1014000", "failed 1 1014000", "completed 1 1014000 format 1"])
def test_what_an_earlier_version_sent_is_sent_anew(
    mark: str, tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake, empty: RecordStore
) -> None:
    """A trial that an earlier version sent, with metrics by other names, is there once, with those of now alone."""
    from mlflow.tracking import MlflowClient

    empty.write(fake(spec), [])
    sync(empty, tiny, uri)
    before, client = runs_of(uri, tiny)[spec.key].info.run_id, MlflowClient(uri)
    client.set_tag(before, "deelbo.complete", mark)
    client.log_metric(before, "seconds_train", 9.0)
    sync(empty, tiny, uri)
    run = runs_of(uri, tiny)[spec.key]
    assert run.info.run_id != before
    assert "seconds_train" not in run.data.metrics
    assert "train_seconds" in run.data.metrics
    sync(empty, tiny, uri)
    assert runs_of(uri, tiny)[spec.key].info.run_id == run.info.run_id


def test_damaged_files_do_not_keep_the_rest_out(storage: RecordStore, tiny: Benchmark, uri: str) -> None:
    """With a damaged record and a damaged series `sync` sends all else and names them in one line."""
    records = list(storage.records())
    Path(storage.path("records", f"{records[0].key}.json")).write_text("{")
    Path(storage.path("series", f"{records[1].key}.json")).write_text('[{"epoch": 1.0}]')
    with pytest.raises(RecordError, match=r"all but 2 records are in MLflow.*damaged"):
        sync(storage, tiny, uri)
    runs = states(uri, tiny)
    assert runs.pop("") == "KILLED"  # as a trial is left to run
    assert runs == dict.fromkeys([record.key for record in records[1:]], "FINISHED")
    storage.write(records[0], [])
    storage.write(records[1], [])
    assert sync(storage, tiny, uri) == 9


def test_long_and_odd_words_are_cut(tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake, empty: RecordStore) -> None:
    """What is too long for MLflow, or no name there, is cut and replaced, and the trial is there."""
    odd = {"a" * 300: "b" * 9000, "../up": "1", "is it\u0000\udcff?": "\u0000\udcff"}
    record = fake(replace(spec, head="h" * 7000, backbone="b" * 300), hardware=odd, state={"x=y": 1.0, "z" * 300: 2.0})
    mirror = MLflowMirror(uri, tiny, empty)
    mirror.start(record.spec, 1000.0)
    mirror.finish(record)
    run = runs_of(uri, tiny)[record.key]
    assert (run.info.status, len(run.data.params["head"]), len(run.info.run_name)) == ("FINISHED", 6000, 250)
    assert run.data.metrics["x_y"] == 1.0
    assert {len(value) for name, value in run.data.tags.items() if name.startswith("hardware.aa")} == {8000}


def test_lost_seconds_and_whether_times_count(
    tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake, empty: RecordStore
) -> None:
    """Seconds that earlier attempts ran in vain are a metric where there are any, and `timed` is a tag."""
    other = replace(spec, seed=7)
    mirror = MLflowMirror(uri, tiny, empty)
    mirror.finish(fake(spec, lost_seconds=2.5, timed=False))
    mirror.finish(fake(other))
    runs = runs_of(uri, tiny)
    assert (runs[spec.key].data.metrics["system/lost_seconds"], runs[spec.key].data.tags["timed"]) == (2.5, "false")
    assert "system/lost_seconds" not in runs[other.key].data.metrics
    assert runs[other.key].data.tags["timed"] == "true"


def test_where_mlflow_is_by_default(tmp_path: Path) -> None:
    """MLflow is a sqlite file in a local storage; a storage elsewhere needs a URI, which is said."""
    assert tracking_uri(RecordStore(str(tmp_path))) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(RecordStore("memory://a"), "http://server:5000") == "http://server:5000"
    with pytest.raises(ValueError, match="give --tracking-uri"):
        tracking_uri(RecordStore("memory://a"))


def test_a_start_that_fails_half_way_leaves_one_run(tiny: Benchmark, spec: TrialSpec, uri: str, fake: Fake) -> None:
    """Where the server fails between making a run and its parameters, the retry takes the same run."""
    store = RecordStore("memory://half/way")
    mirror = MLflowMirror(uri, tiny, store)
    log_batch, mirror.runs.client.log_batch = mirror.runs.client.log_batch, unwilling
    with pytest.raises(OSError, match="unwilling"):
        mirror.start(spec, 1000.0)
    mirror.runs.client.log_batch = log_batch
    mirror.start(spec, 1000.0)
    mirror.finish(fake(spec))
    runs = mirror.runs.client.search_runs([mirror.runs.experiment], "tags.`deelbo.role` = 'trial'")
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
    assert third.runs.find(spec.key) == other.runs.find(spec.key)
    assert runs_of(uri, tiny)[spec.key].info.status == "FINISHED"


@pytest.mark.parametrize(
    "uri", ["somewhere", "gopher://x", "file:///tmp/x", "sqlite:////", "sqlite:////no/such/folder/a.db"]
)
def test_a_uri_that_mlflow_does_not_take(uri: str) -> None:
    """A tracking URI of no known kind, or a database that cannot be there, is refused by name."""
    with pytest.raises(ConfigError, match="--tracking-uri"):
        tracking_uri(RecordStore("memory://a"), uri)


@pytest.mark.parametrize("name", ["a?b", "50%20", "#1"])
def test_a_storage_whose_name_no_uri_holds(tmp_path: Path, name: str) -> None:
    """Where the storage's name would be read as another file's, the database is refused, and a URI of its own taken."""
    store = RecordStore(str(tmp_path / name))
    with pytest.raises(ConfigError, match="give --tracking-uri, or choose another --storage"):
        tracking_uri(store)
    elsewhere = f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(store, elsewhere) == elsewhere
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["sqlite:////proc/x.db", "http://", "sqlite:////nowhere/at/all.db"])
def test_where_nothing_can_be_is_refused_at_once(tmp_path: Path, uri: str) -> None:
    """A database that cannot be opened, or a server without a name, is refused before anybody waits for it."""
    with pytest.raises(ConfigError, match="expected"):
        tracking_uri(RecordStore(str(tmp_path)), uri)
