"""The log of attempts: attempts without a result are counted, and the time that they wasted."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import Benchmark
from bench.storage.attempts import AttemptLog
from bench.storage.records import RecordStore


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(str(tmp_path / "a"))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock shows the last of these times."""
    times = [1000.0]
    monkeypatch.setattr("bench.storage.attempts.time.time", lambda: times[-1])
    return times


def test_the_first_attempt_wasted_nothing(store: RecordStore) -> None:
    """A trial that was never begun is at its first attempt; reading the log writes nothing."""
    assert AttemptLog(store).next("a") == (1, 0.0)
    assert not store.exists()


def test_attempts_without_a_result_add_up(store: RecordStore, now: list[float]) -> None:
    """Each attempt that ended without a result adds its seconds; those of other trials do not."""
    attempts = AttemptLog(store)
    for key, seconds in (("a", 10), ("a", 5), ("b", 100)):
        attempts.begin(key)
        now.append(now[-1] + seconds)
        attempts.fail(key)
        now.append(now[-1] + 1000)  # time between two attempts does not count
    for log in (attempts, AttemptLog(store)):  # also as another driver reads it
        assert (log.next("a"), log.next("b")) == ((3, 15.0), (2, 100.0))


@pytest.mark.parametrize(("died", "damaged", "wasted"), [(1030.0, [], 30.0), (990.0, [], 0.0), (1030.0, ["a"], 0.0)])
def test_a_dead_driver_s_attempts_ended_with_it(
    store: RecordStore, now: list[float], died: float, damaged: list[str], wasted: float
) -> None:
    """Attempts of a driver that was killed ended with its last heartbeat, not when the next driver started; those that
    began later, or whose result was damaged, wasted no time."""
    AttemptLog(store).begin("a")
    now.append(90_000.0)
    assert AttemptLog(store, quarantined=damaged, died=died).next("a") == (2, wasted)
    assert AttemptLog(store, died=80_000.0).next("a") == (2, wasted)


def test_trials_with_a_result_are_left_alone(store: RecordStore, now: list[float], tiny: Benchmark, play: Any) -> None:
    """An attempt that gave a result wasted nothing, whenever the driver died."""
    record = play(tiny)[0]
    AttemptLog(store).begin(record.key)
    before = store.read_file(f"attempts/{record.key}.1.json")
    AttemptLog(store, [record], died=1030.0)
    assert store.read_file(f"attempts/{record.key}.1.json") == before


def test_a_failed_record_made_its_attempts(store: RecordStore, tiny: Benchmark, play: Any, fake: Any) -> None:
    """The attempts of a failed record count even if the log does not have them."""
    spec = play(tiny)[0].spec
    assert AttemptLog(store, [fake(spec, "failed", attempt=3)]).next(spec.key) == (4, 0.0)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"started": "noon"}', b'{"started": 1e400, "ended": NaN}', b'{"started": -5, "ended": 9}']
)
def test_a_damaged_file_counts_no_time(store: RecordStore, content: bytes) -> None:
    """A damaged file does not stop a run: its attempt is counted, its seconds are not."""
    store.write_file("attempts/a.1.json", content)
    assert AttemptLog(store, died=1030.0).next("a") == (2, 0.0)


def test_an_absurd_number_is_followed_by_the_next(store: RecordStore) -> None:
    """An attempt with an absurd number is followed by the next one, without a loop over all."""
    store.write_file("attempts/a.999999999.json", json.dumps({"started": 1.0, "ended": 2.0}).encode())
    store.write_file("attempts/b.x.json", b"{}")
    attempts = AttemptLog(store)
    assert attempts.next("a") == (1_000_000_000, 1.0)
    assert attempts.next("b") == (1, 0.0)
