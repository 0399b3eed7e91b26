"""The thread that keeps MLflow up to date during a run: complete, and never waited for by a trial."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.scheduling.queue import TrialQueue
from bench.storage.records import RecordStore
from bench.tracking.mirror import MLflowMirror
from bench.tracking.sync import sync
from bench.tracking.tracker import MLflowTracker
from bench.trials.record import TrialRecord
from tests.faults.processes import until

Fake = Callable[..., TrialRecord]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that a hanging request waits for; set at the end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def follow(uri: str, tiny: Benchmark, storage: RecordStore) -> Callable[..., MLflowTracker]:
    """A tracker of a run whose trials are all finished already."""

    def make(**seconds: float) -> MLflowTracker:
        options = {"interval_seconds": 0.02, "grace_seconds": 30.0} | seconds
        tracker = MLflowTracker(MLflowMirror(uri, tiny, storage), **options)
        tracker.on_run_start(TrialQueue(make_methods(tiny), storage.records()), 2)
        return tracker

    return make


def test_a_run_is_followed_as_it_goes(
    tiny: Benchmark, uri: str, fake: Fake, empty: RecordStore, find_runs: Any
) -> None:
    """A trial is in MLflow while it runs and after its end; the tracker leaves what `sync` would."""
    tracker = MLflowTracker(MLflowMirror(uri, tiny, empty), interval_seconds=0.02)
    queue = TrialQueue(make_methods(tiny))
    tracker.on_run_start(queue, 2)
    until(lambda: tracker._mirror.runs)
    first = True
    while (spec := queue.ask()) is not None:
        tracker.on_trial_start(spec)
        if first:
            until(lambda spec=spec: find_runs().get(spec.key))
        record = fake(spec)
        empty.write(record, [])
        queue.tell(record)
        tracker.on_trial_end(record)
        if first:
            until(lambda spec=spec: find_runs()[spec.key].info.status == "FINISHED")
        first = False
    assert tracker.stop("FINISHED", {"busy": 0.9}) is True
    assert tracker.problem is None
    runs = find_runs()
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(runs) == 10
    assert runs[""].data.metrics["busy"] == 0.9
    assert len([run for run in runs.values() if run.data.tags.get("chosen")]) == 3
    sync(empty, tiny, uri)
    assert {key: run.info.run_id for key, run in find_runs().items()} == {k: run.info.run_id for k, run in runs.items()}


@pytest.mark.parametrize("kind", ["raises", "hangs"])
def test_a_dead_server_delays_nothing(
    kind: str, gate: threading.Event, tiny: Benchmark, uri: str, storage: RecordStore, requests: Any
) -> None:
    """With a dead server no callback takes 50 ms; the end is in time and names the failure, without the password."""

    def fail(method: str, argument: Any) -> None:
        if kind == "hangs":
            gate.wait()
        raise ConnectionError("no server at http://me:secret@host:5000\nanywhere" * 100)

    requests.before = fail
    record = next(iter(storage.records()))
    queue = TrialQueue(make_methods(tiny))
    tracker = MLflowTracker(MLflowMirror(uri, tiny, storage), interval_seconds=0.05, grace_seconds=0.3)
    calls: list[Callable[[], None]] = [
        lambda: tracker.on_run_start(queue, 2),
        lambda: tracker.on_trial_start(record.spec),
        lambda: tracker.on_trial_end(record),
    ]
    for call in calls:
        since = time.perf_counter()
        call()
        assert time.perf_counter() - since < 0.05
    since = time.perf_counter()
    assert tracker.stop("FINISHED", {}) is False
    assert 0.3 < time.perf_counter() - since < 2
    assert tracker.problem
    assert "1 trial not sent in time" in tracker.problem
    assert len(tracker.problem.splitlines()) == 1
    assert "secret" not in tracker.problem
    assert len(tracker.problem) <= 200


def test_a_server_that_comes_back_gets_everything(follow: Any, requests: Any, find_runs: Any) -> None:
    """If every seventh request fails, all is sent in the end, once, and no problem is left."""
    count = iter(range(10_000))

    def fail(method: str, argument: Any) -> None:
        if next(count) % 7 == 6:
            raise ConnectionError("not now")

    requests.before = fail
    tracker = follow()
    assert tracker.stop("FINISHED", {}) is True
    assert tracker.problem is None
    requests.before = lambda method, argument: None
    assert {run.info.status for run in find_runs().values()} == {"FINISHED"}
    assert len(find_runs()) == 10


def test_a_trial_that_never_succeeds_is_given_up(
    follow: Any, storage: RecordStore, requests: Any, find_runs: Any
) -> None:
    """A trial whose run is made again and again, but never completed, is no progress; all others are sent."""
    bad = next(iter(storage.records()))
    storage.write(replace(bad, versions={"data": "f1a9"}), [])
    requests.fail(ConnectionError("500 for this one alone"), at="log_inputs")
    tracker = follow(grace_seconds=3.0)
    assert tracker.stop("FINISHED", {}) is False
    assert tracker.problem == "1 trial not sent in time: 500 for this one alone"
    statuses = {key: run.info.status for key, run in find_runs().items()}
    assert statuses.pop(bad.key) == "KILLED"
    assert set(statuses.values()) == {"FINISHED"}


def test_a_slow_server_is_waited_for(follow: Any, requests: Any) -> None:
    """The end goes on as long as something gets through, however long that takes in all."""
    requests.before = lambda method, argument: time.sleep(0.1)
    tracker = follow(grace_seconds=2.0)
    since = time.perf_counter()
    assert tracker.stop("FINISHED", {}) is True
    assert time.perf_counter() - since > 3


def test_a_killed_run_is_closed_first(follow: Any, gate: threading.Event, requests: Any, find_runs: Any) -> None:
    """A killed run is closed in MLflow before waiting trials are sent; a trial that was interrupted is sent again."""
    inside, ends = threading.Event(), list[str]()

    def hang(method: str, argument: Any) -> None:
        if method == "log_inputs" or (method == "log_batch" and not inside.is_set()):
            inside.set()
            gate.wait()
        if method == "set_terminated":
            ends.append(argument)

    requests.before = hang
    tracker = follow(kill_seconds=20.0)
    inside.wait()
    threading.Timer(0.1, gate.set).start()
    assert tracker.stop("KILLED", {}) is True
    runs = find_runs()
    assert ends[0] == runs.pop("").info.run_id
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


@pytest.mark.parametrize("how", ["slow", "hangs", "refuses"])
def test_a_killed_run_ends_within_its_seconds(
    how: str, gate: threading.Event, follow: Any, requests: Any, find_runs: Any
) -> None:
    """A killed run waits for its server no longer than it may, and says what is missing."""
    tracker = follow(kill_seconds=2.0, interval_seconds=10.0)
    until(lambda: tracker._mirror.num_missing(tracker._target()) == 0)
    for key in tracker._marks:  # as if new records had come
        tracker._marks[key] = f"{tracker._marks[key]}0"

    def disturb(method: str, argument: Any) -> None:
        if how == "refuses":
            raise ConnectionError("refused")
        gate.wait(0.1 if how == "slow" else None)

    requests.before = disturb
    since = time.perf_counter()
    assert tracker.stop("KILLED", {}) is False
    assert time.perf_counter() - since < 2.4
    assert "not sent in time" in (tracker.problem or "")
    if how == "slow":
        requests.before = lambda method, argument: None
        statuses = [run.info.status for run in find_runs().values()]
        assert "RUNNING" not in statuses
        assert statuses.count("KILLED") <= 2
