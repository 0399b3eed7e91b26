"""The thread that follows a race in MLflow: complete, and never in anybody's way, whatever the mirror does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import RecordError
from bench.scheduling.queue import TrialQueue
from bench.storage.records import RecordStore
from bench.tracking.mirror import MLflowMirror, sync
from bench.tracking.tracker import Tracker
from bench.trials.record import TrialRecord

Fake = Callable[..., TrialRecord]
LAST = ["close", "tidy", "publish", "choose"]


def runs_of(uri: str, benchmark: Benchmark) -> dict[str, Any]:
    """Every run in MLflow, by the trial's key, the parent as ''."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(benchmark.name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    assert len({run.data.tags.get("deelbo.key", "") for run in found}) == len(found)
    return {run.data.tags.get("deelbo.key", ""): run for run in found}


@pytest.fixture
def records(tiny: Benchmark, play: Any) -> list[TrialRecord]:
    """A whole race's."""
    made: list[TrialRecord] = play(tiny)
    return made


@pytest.fixture
def empty(tmp_path: Path, tiny: Benchmark, fill: Any) -> RecordStore:
    store: RecordStore = fill(RecordStore(str(tmp_path / "empty")), tiny, [])
    return store


def test_a_run_is_followed_as_it_goes(tiny: Benchmark, uri: str, fake: Fake, empty: RecordStore) -> None:
    """Told of a whole race, the tracker leaves what `sync` would have made, and says that all was sent."""
    tracker = Tracker(lambda: MLflowMirror(uri, tiny, empty))
    race = TrialQueue(make_methods(tiny))
    tracker.on_run_start(race, 2)
    while (spec := race.ask()) is not None:
        tracker.on_trial_start(spec)
        record = fake(spec)
        empty.write(record, [])
        race.tell(record)
        tracker.on_trial_end(record)
    assert tracker.stop("FINISHED", {"busy": 0.9}) is True
    assert tracker.problem is None
    runs = runs_of(uri, tiny)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(runs) == 10
    assert runs[""].data.metrics["busy"] == 0.9
    sync(empty, tiny, uri)
    assert set(runs_of(uri, tiny)) == set(runs)


def test_what_an_interrupted_call_did_not_send_is_sent(tiny: Benchmark, uri: str, storage: RecordStore) -> None:
    """Records that were there before a race are in MLflow after it, although nobody told of their end."""
    race = TrialQueue(make_methods(tiny), storage.records())
    tracker = Tracker(lambda: MLflowMirror(uri, tiny, storage))
    tracker.on_run_start(race, 2)
    assert tracker.stop("FINISHED", {})
    runs = runs_of(uri, tiny)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert len(runs) == len(race.reused) + 1


class Mirror:
    """Takes note of what it is told, as a name and a key; each takes two requests, before which ``request`` is called
    with the name and the key."""

    def __init__(self, request: Callable[[str, str], None] = lambda name, key: None) -> None:
        self.request = request
        self.before_call: Callable[[], None] = lambda: None
        self.got: list[tuple[str, str]] = []
        self.left = False

    def leave(self) -> None:
        self.left = True

    def __getattr__(self, name: str) -> Callable[..., None]:
        def event(*arguments: Any) -> None:
            key = getattr(arguments[0], "key", "") if arguments else ""
            what = name
            if name == "resend":  # of what is in the storage
                what, key = "finish", str(arguments[0])
            for _ in range(2):
                self.before_call()
                self.request(what, key)
            self.got.append((what, key))

        return event

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.got]


def follow(mirror: Mirror, **given: Any) -> Tracker:
    return Tracker(lambda: mirror, **({"pause": 0.01, "grace": 5.0} | given))  # type: ignore[arg-type, return-value]


def until(true: Callable[[], object]) -> None:
    """Waits for it."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a server that hangs waits for; opened at the end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("kind", ["raises", "hangs"])
def test_a_dead_server_is_in_nobodys_way(
    kind: str, gate: threading.Event, tiny: Benchmark, records: list[TrialRecord]
) -> None:
    """With a server that refuses or hangs no call takes 50 ms or raises; the end says what failed."""

    def dead() -> MLflowMirror:
        if kind == "hangs":
            gate.wait()
        raise ConnectionError("no server at http://me:secret@host:5000\nanywhere" * 100)

    tracker = Tracker(dead, pause=0.05, grace=0.3)
    for call in (
        lambda: tracker.on_run_start(TrialQueue(make_methods(tiny)), 2),
        lambda: tracker.on_trial_start(records[0].spec),
        lambda: tracker.on_trial_end(records[0]),
    ):
        since = time.perf_counter()
        call()
        assert time.perf_counter() - since < 0.05
    since = time.perf_counter()
    assert tracker.stop("FINISHED", {}) is False
    assert 0.3 < time.perf_counter() - since < 2
    assert tracker.problem
    assert len(tracker.problem.splitlines()) == 1
    assert "secret" not in tracker.problem
    assert len(tracker.problem) <= 200


def test_a_server_that_comes_back_gets_everything(records: list[TrialRecord]) -> None:
    """After errors the tracker goes on where it was: every event arrives once, in order, and no problem is left."""
    tries: list[str] = []

    def flaky(name: str, key: str) -> None:
        tries.append(name)
        if len(tries) % 3 == 1:
            raise ConnectionError("not now")

    mirror = Mirror(flaky)
    tracker = follow(mirror)
    for record in records[:2]:
        tracker.on_trial_start(record.spec)
    until(lambda: not tracker.left)
    tracker.on_trial_end(records[0])
    assert tracker.stop("FINISHED", {}) is True
    assert mirror.names == ["start", "start", "finish", *LAST]
    assert tracker.problem is None


@pytest.mark.parametrize(
    "poison", [RecordError("series damaged"), ValueError("not a number"), ConnectionError("500 for this one alone")]
)
def test_one_event_does_not_block_the_others(poison: Exception, records: list[TrialRecord]) -> None:
    """What a server never takes, be it at once or try by try, is left out; all others arrive, and the end says so."""
    bad = records[3].key

    def request(name: str, key: str) -> None:
        if key == bad:
            raise poison

    mirror = Mirror(request)
    tracker = follow(mirror, grace=0.5)
    for record in records:
        tracker.on_trial_end(record)
    until(lambda: len(mirror.got) == len(records) - 1)
    assert tracker.stop("FINISHED", {}) is False
    assert mirror.names[-len(LAST) :] == LAST
    assert str(poison) in (tracker.problem or "")


class GoneError(Exception):
    error_code = "RESOURCE_DOES_NOT_EXIST"


def test_where_runs_are_gone_all_is_sent_again(tiny: Benchmark, records: list[TrialRecord]) -> None:
    """A server that no longer knows its runs gets all that this call sent, once more, by a mirror that starts anew."""
    first, second = Mirror(), Mirror()
    mirrors = iter([first, second])
    tracker = Tracker(lambda: next(mirrors), pause=0.01)  # type: ignore[arg-type, return-value]
    tracker.on_run_start(TrialQueue(make_methods(tiny), records[:4]), 2)
    tracker.on_trial_end(records[4])
    tracker.on_trial_start(records[5].spec)
    until(lambda: not tracker.left)

    def gone(name: str, key: str) -> None:
        raise GoneError("no such run")

    first.request = gone
    tracker.on_trial_end(records[6])
    until(lambda: ("start", records[5].key) in second.got)
    assert tracker.stop("FINISHED", {}) is True
    assert tracker.problem is None
    finishes = [key for name, key in second.got if name == "finish"]
    assert set(finishes) >= {key for name, key in first.got if name == "finish"} | {records[4].key, records[6].key}
    assert second.names[0] == "open"
    assert second.names[-len(LAST) :] == LAST


def test_runs_that_are_gone_again_and_again(records: list[TrialRecord]) -> None:
    """A trial whose run is gone after every new start is given up, and the others are sent."""

    def request(name: str, key: str) -> None:
        if key == records[0].key:
            raise GoneError("no such run")

    made: list[Mirror] = []

    def make() -> Any:
        made.append(Mirror(request))
        return made[-1]

    tracker = Tracker(make, pause=0.01, grace=1.0)
    for record in reversed(records):
        tracker.on_trial_end(record)
    assert tracker.stop("FINISHED", {}) is False
    assert "no such run" in (tracker.problem or "")
    assert [mirror.left for mirror in made] == [True] * (len(made) - 1) + [made[-1].left]
    assert len(made) > 1
    assert {key for mirror in made for name, key in mirror.got if name == "finish"} == {
        record.key for record in records[1:]
    }
    assert made[-1].names[-2:] == ["publish", "choose"]


def test_a_slow_server_is_waited_for(records: list[TrialRecord]) -> None:
    """The end goes on as long as something gets through, however long that takes in all."""
    mirror = Mirror(lambda name, key: time.sleep(0.03))
    tracker = follow(mirror, grace=0.2)
    for record in records:
        tracker.on_trial_end(record)
    since = time.perf_counter()
    assert tracker.stop("FINISHED", {}) is True
    assert time.perf_counter() - since > 0.4
    assert mirror.names == ["finish"] * len(records) + LAST


def test_a_killed_race_is_closed_first(gate: threading.Event, records: list[TrialRecord]) -> None:
    """Of a race that was killed the benchmark's run is closed before the trials that wait are sent, the one under way
    put aside; starts are left out."""
    inside = threading.Event()

    def request(name: str, key: str) -> None:
        inside.set()
        gate.wait()

    mirror = Mirror(request)
    tracker = follow(mirror)
    tracker.on_trial_end(records[0])
    inside.wait()
    for record in records[1:4]:
        tracker.on_trial_start(record.spec)
    tracker.on_trial_end(records[1])
    threading.Timer(0.1, gate.set).start()
    assert tracker.stop("KILLED", {}) is True
    assert mirror.names[0] == "close"
    assert sorted(mirror.names[1:]) == ["finish", "finish", "publish", "tidy"]


@pytest.mark.parametrize("how", ["slow", "hangs", "refuses"])
def test_a_killed_race_ends_within_its_seconds(how: str, gate: threading.Event, records: list[TrialRecord]) -> None:
    """Killed, a race waits for a slow, hanging or refusing server no longer than it may, and says what is left; a
    slow one's run is closed, and no trial is left half-way."""

    def request(name: str, key: str) -> None:
        if how == "refuses":
            raise ConnectionError("refused")
        gate.wait(0.1 if how == "slow" else None)

    mirror = Mirror(request)
    tracker = follow(mirror, hurry=1.0)
    for record in records:
        tracker.on_trial_end(record)
    since = time.perf_counter()
    assert tracker.stop("KILLED", {}) is False
    assert time.perf_counter() - since < 1.3
    assert "not sent in time" in (tracker.problem or "")
    if how == "slow":
        assert mirror.names[0] == "close"
        assert "finish" in mirror.names[: mirror.names.index("tidy")]
        assert "finish" not in mirror.names[mirror.names.index("tidy") :]
