"""The comparison of MLflow with its target: complete, repeatable, each trial once whatever request fails."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bench.config.benchmark import Benchmark
from bench.exceptions import RecordError
from bench.results.configurations import selected_trials
from bench.storage.records import RecordStore
from bench.tracking.conversion import record_mark
from bench.tracking.mirror import MLflowMirror, Target
from bench.tracking.sync import sync
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

Fake = Callable[..., TrialRecord]
ROWS = [{"epoch": 1.0, "step": i, "train_seconds": 0.1, "train_nll": 1 / i, "sigma": 1 / i} for i in range(1, 600)]


def marks_of(*records: TrialRecord) -> dict[str, str]:
    return {record.key: record_mark(record) for record in records}


def running(*specs: TrialSpec, since: float = 1000.0) -> dict[str, tuple[TrialSpec, float]]:
    return {spec.key: (spec, since) for spec in specs}


def states(find_runs: Any) -> dict[str, str]:
    return {key: run.info.status for key, run in find_runs().items()}


@pytest.fixture
def mirror(uri: str, tiny: Benchmark, empty: RecordStore, requests: Any) -> MLflowMirror:
    return MLflowMirror(uri, tiny, empty)


def test_a_pass_without_a_difference_makes_no_request(
    mirror: MLflowMirror, spec: TrialSpec, fake: Fake, empty: RecordStore, requests: Any
) -> None:
    """A start takes two requests, an end three, a new result five; a pass without a difference takes none."""
    mirror.reconcile(Target({}))
    record = fake(spec, versions={"data": "f1a9"})
    empty.write(record, [])
    started = Target({}, running(spec))
    assert requests.count(lambda: mirror.reconcile(started)) == ["create_run", "log_batch"]
    ended = Target(marks_of(record))
    assert requests.count(lambda: mirror.reconcile(ended)) == ["log_inputs", "log_batch", "set_terminated"]
    for target in (started, ended):
        assert requests.count(lambda target=target: mirror.reconcile(target)) == []
    other = fake(spec, versions={"data": "f1a9"}, finished=2000.0)
    empty.write(other, [])
    made = ["delete_run", "create_run", "log_inputs", "log_batch", "set_terminated"]
    assert requests.count(lambda: mirror.reconcile(Target(marks_of(other)))) == made


def test_trials_that_run_are_shown(mirror: MLflowMirror, spec: TrialSpec, tiny: Benchmark, find_runs: Any) -> None:
    """A trial that runs is RUNNING below the benchmark's run, and KILLED when the benchmark has ended."""
    assert mirror.reconcile(Target({}, running(spec))) is None
    runs = find_runs()
    assert {run.info.status for run in runs.values()} == {"RUNNING"}
    assert runs[spec.key].data.tags["mlflow.parentRunId"] == runs[""].info.run_id
    assert runs[spec.key].data.params["learning_rate"] == str(spec.learning_rate)
    assert mirror.reconcile(Target({}, status="FAILED", metrics={"busy": 0.5}, finished=1014.0)) is None
    assert states(find_runs) == {"": "FAILED", spec.key: "KILLED"}
    assert find_runs()[""].data.metrics == {"busy": 0.5}


def test_after_a_crash_no_trial_stays_running(
    uri: str, mirror: MLflowMirror, tiny: Benchmark, play: Any, fake: Fake, empty: RecordStore, find_runs: Any
) -> None:
    """Trials that a dead call left RUNNING are KILLED; one that starts again continues in the same run."""
    one, other, third = (record.spec for record in play(tiny)[:3])
    MLflowMirror(uri, tiny, empty).reconcile(Target({}, running(one, other, third)))
    before = find_runs()
    mirror.reconcile(Target({}))
    assert states(find_runs) == {"": "RUNNING", one.key: "KILLED", other.key: "KILLED", third.key: "KILLED"}
    mirror.reconcile(Target({}, running(one, since=2000.0)))
    assert states(find_runs)[one.key] == "RUNNING"
    records = fake(one, finished=2020.0), fake(other, "failed")
    for record in records:
        empty.write(record, [])
    mirror.reconcile(Target(marks_of(*records)))
    after = find_runs()
    assert after[one.key].info.run_id == before[one.key].info.run_id
    assert (after[one.key].info.status, after[one.key].info.end_time) == ("FINISHED", 2_020_000)
    assert states(find_runs) == {"": "RUNNING", one.key: "FINISHED", other.key: "FAILED", third.key: "KILLED"}


def test_an_earlier_result_stays_until_there_is_a_new_one(
    mirror: MLflowMirror, spec: TrialSpec, fake: Fake, empty: RecordStore, find_runs: Any, points: Any
) -> None:
    """A finished trial that runs again, as its record was damaged, stays FINISHED; its new record takes its place."""
    for seconds, accuracy in ((1014.0, 0.25), (2000.0, 0.75)):
        mirror.reconcile(Target({}, running(spec)))
        record = fake(spec, metrics={"test_acc": accuracy}, finished=seconds)
        empty.write(record, [])
        mirror.reconcile(Target(marks_of(record)))
        run = find_runs()[spec.key]
        assert (run.info.status, run.data.metrics["test_acc"]) == ("FINISHED", accuracy)
        assert len(points(run.info.run_id)["test_acc"]) == 1


@pytest.mark.parametrize("took_effect", [True, False])
@pytest.mark.parametrize("broken", range(6))
def test_whatever_request_fails_a_trial_is_there_once(
    broken: int,
    took_effect: bool,
    mirror: MLflowMirror,
    spec: TrialSpec,
    fake: Fake,
    empty: RecordStore,
    requests: Any,
    find_runs: Any,
    points: Any,
) -> None:
    """Whichever request fails, before or after it took effect, the next pass leaves one run with every value once."""
    mirror.reconcile(Target({}))
    record = fake(spec, versions={"data": "f1a9"})
    empty.write(record, ROWS)
    failures = iter([*[False] * broken, True])

    def fail(method: str, argument: Any) -> None:
        if next(failures, False):
            raise ConnectionError("no answer")

    setattr(requests, "after" if took_effect else "before", fail)
    targets = [Target({}, running(spec)), Target(marks_of(record)), Target(marks_of(record), status="FINISHED")]
    errors = [mirror.reconcile(target) for target in targets]
    assert [str(error) for error in errors if error is not None] == ["no answer"]
    assert mirror.reconcile(targets[-1]) is None
    run = find_runs()[spec.key]
    history = points(run.info.run_id)
    assert history["train_nll"] == [(i, pytest.approx(1 / i, rel=1e-5)) for i in range(1, 600)]
    assert history["test_acc"] == [(0, pytest.approx(record.metrics["test_acc"], rel=1e-5))]
    assert len(run.inputs.dataset_inputs) == 1
    assert run.data.params["learning_rate"] == str(spec.learning_rate)
    assert states(find_runs) == {"": "FINISHED", spec.key: "FINISHED"}


def test_of_two_runs_of_one_trial_one_stays(
    uri: str, tiny: Benchmark, spec: TrialSpec, fake: Fake, empty: RecordStore, find_runs: Any
) -> None:
    """A run that a server made after the answer was given up is deleted by the end of the benchmark, and by `sync`."""
    first, late = MLflowMirror(uri, tiny, empty), MLflowMirror(uri, tiny, empty)
    late.reconcile(Target({}))
    record = fake(spec)
    empty.write(record, [])
    first.reconcile(Target(marks_of(record)))
    complete = find_runs()[spec.key].info.run_id
    assert late.runs is not None
    late.runs.create(spec, 1000.0)
    assert first.reconcile(Target(marks_of(record), status="KILLED")) is None
    assert find_runs()[spec.key].info.run_id == complete
    late.runs.create(spec, 1000.0)
    sync(empty, tiny, uri)
    assert find_runs()[spec.key].info.run_id == complete
    assert set(states(find_runs).values()) == {"KILLED", "FINISHED"}


def test_what_is_deleted_in_the_page_is_made_again(
    storage: RecordStore, tiny: Benchmark, uri: str, find_runs: Any
) -> None:
    """A run or an experiment that is deleted while trials run is there at the end."""
    records = list(storage.records())
    mirror = MLflowMirror(uri, tiny, storage)
    mirror.reconcile(Target(marks_of(*records[:3]), running(records[3].spec)))
    assert mirror.runs is not None
    client = mirror.runs.client
    client.delete_run(find_runs()[records[3].key].info.run_id)
    target = Target(marks_of(*records[:4]))
    assert mirror.reconcile(target) is not None
    assert mirror.reconcile(target) is None
    client.delete_experiment(find_runs()[""].info.experiment_id)
    target = Target(marks_of(*records), status="FINISHED")
    assert mirror.reconcile(target) is not None
    assert mirror.reconcile(target) is None
    assert states(find_runs) == dict.fromkeys(["", *(record.key for record in records)], "FINISHED")


def test_what_methods_chose_is_marked_also_late(
    storage: RecordStore, tiny: Benchmark, uri: str, find_runs: Any
) -> None:
    """A trial that is sent after the choices has its mark all the same; a target without choices leaves them."""
    mirror, records = MLflowMirror(uri, tiny, storage), list(storage.records())
    costs = selected_trials(tiny, records)
    mirror.reconcile(Target(marks_of(*(record for record in records if record.key not in costs)), costs=costs))
    for target in (Target(marks_of(*records), costs=costs), Target(marks_of(*records))):
        mirror.reconcile(target)
        assert {key for key, run in find_runs().items() if run.data.tags.get("chosen") == "true"} == set(costs)


@pytest.mark.parametrize(
    "poison", [RecordError("series damaged"), ValueError("not a number"), ConnectionError("500 for this one alone")]
)
def test_a_trial_that_fails_does_not_block_the_others(
    poison: Exception, storage: RecordStore, tiny: Benchmark, uri: str, requests: Any, find_runs: Any
) -> None:
    """A refused trial is skipped and named, one that fails for another reason is tried again; others are sent."""
    records = list(storage.records())
    mirror = MLflowMirror(uri, tiny, storage)

    requests.fail(poison, at="log_inputs")
    storage.write(replace(records[3], versions={"data": "f1a9"}), [])
    target = Target(marks_of(*records), status="FINISHED")
    refused = not isinstance(poison, ConnectionError)
    for _ in range(2):
        assert (mirror.reconcile(target) is None) == refused
    assert list(mirror.refused.values()) == [str(poison)] * refused
    assert mirror.num_missing(target) == 1
    found = states(find_runs)
    assert found.pop(records[3].key) == "KILLED"
    assert set(found.values()) == {"FINISHED"}


def test_a_server_that_does_not_answer_ends_a_pass(
    storage: RecordStore, tiny: Benchmark, uri: str, requests: Any
) -> None:
    """After some failures in a row the trials that are left are not tried."""
    records = list(storage.records())
    mirror = MLflowMirror(uri, tiny, storage)
    mirror.reconcile(Target({}))
    requests.fail(ConnectionError("refused"))
    made = requests.count(lambda: mirror.reconcile(Target(marks_of(*records), status="FINISHED")))
    assert len(made) == 8 < len(records) + 2


def test_an_interruption_ends_a_pass_at_its_next_request(
    storage: RecordStore, tiny: Benchmark, uri: str, requests: Any
) -> None:
    """An interrupted pass, and one past its deadline, makes no request."""
    mirror = MLflowMirror(uri, tiny, storage)
    mirror.reconcile(Target({}))
    target = Target(marks_of(*storage.records()), status="FINISHED")
    mirror.interrupted.set()
    assert requests.count(lambda: mirror.reconcile(target)) == []
    assert isinstance(mirror.error, InterruptedError)
    mirror.interrupted.clear()
    mirror.deadline = time.monotonic() - 1
    assert requests.count(lambda: mirror.reconcile(target)) == []
