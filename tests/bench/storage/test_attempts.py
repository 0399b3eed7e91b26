"""Attempts that came to nothing: counted, and what they cost."""

from __future__ import annotations

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
    """What time it is: the last of these."""
    times = [1000.0]
    monkeypatch.setattr("bench.storage.attempts.time.time", lambda: times[-1])
    return times


def test_the_first_attempt_has_lost_nothing(store: RecordStore) -> None:
    """A trial that was never begun is at its first attempt; asking writes nothing."""
    assert AttemptLog(store).next("a") == (1, 0.0)
    assert not store.exists()


def test_what_died_is_lost(store: RecordStore, now: list[float]) -> None:
    """Each attempt that ended without a result adds its seconds; those of other trials do not."""
    attempts = AttemptLog(store)
    for key, seconds in (("a", 10), ("a", 5), ("b", 100)):
        attempts.begin(key)
        now.append(now[-1] + seconds)
        attempts.fail(key)
        now.append(now[-1] + 1000)  # what happens between two attempts is nobody's
    assert attempts.next("a") == (3, 15.0)
    assert attempts.next("b") == (2, 100.0)


def test_another_call_knows_what_was_lost(store: RecordStore, now: list[float]) -> None:
    """The account is in the storage: another driver goes on with it."""
    attempts = AttemptLog(store)
    attempts.begin("a")
    now.append(1007.0)
    attempts.fail("a")
    assert AttemptLog(store).next("a") == (2, 7.0)


def test_a_dead_driver_s_attempts_ended_with_it(store: RecordStore, now: list[float]) -> None:
    """What was running when the driver was killed ended with its last sign of life, not when the next one came."""
    AttemptLog(store).begin("a")
    now.append(90_000.0)
    assert AttemptLog(store, died=1030.0).next("a") == (2, 30.0)
    assert AttemptLog(store, died=80_000.0).next("a") == (2, 30.0)


def test_a_sign_of_life_before_the_start_costs_nothing(store: RecordStore, now: list[float]) -> None:
    """An attempt that began after the last sign of life lost no time that anybody knows of."""
    AttemptLog(store).begin("a")
    assert AttemptLog(store, died=990.0).next("a") == (2, 0.0)


def test_trials_with_a_result_are_left_alone(store: RecordStore, now: list[float], tiny: Benchmark, play: Any) -> None:
    """The attempt that gave a result was not in vain, whenever the driver died."""
    record = play(tiny)[0]
    AttemptLog(store).begin(record.key)
    before = store.read_file(f"attempts/{record.key}.1.json")
    AttemptLog(store, [record], died=1030.0)
    assert store.read_file(f"attempts/{record.key}.1.json") == before


def test_a_result_that_was_damaged_later_lost_nothing(store: RecordStore, now: list[float]) -> None:
    """Where a result was there and is damaged, the attempt that gave it counts no second until the driver's death."""
    AttemptLog(store).begin("a")
    assert AttemptLog(store, set_aside=["a"], died=1030.0).next("a") == (2, 0.0)


def test_a_failed_record_made_its_attempts(store: RecordStore, tiny: Benchmark, play: Any, fake: Any) -> None:
    """A failed record counts its attempts also where nobody noted when they began."""
    spec = play(tiny)[0].spec
    assert AttemptLog(store, [fake(spec, "failed", attempt=3)]).next(spec.key) == (4, 0.0)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"started": "noon"}', b'{"started": 1e400, "ended": NaN}', b'{"started": -5, "ended": 9}']
)
def test_a_damaged_account_counts_nothing(store: RecordStore, content: bytes) -> None:
    """A file of attempts that is none costs no run: the attempt is counted, its seconds are not."""
    store.write_file("attempts/a.1.json", content)
    assert AttemptLog(store, died=1030.0).next("a") == (2, 0.0)


def test_numbers_made_up_by_somebody(store: RecordStore) -> None:
    """An attempt with an absurd number is followed by the next one, at once."""
    store.write_file("attempts/a.999999999.json", json.dumps({"started": 1.0, "ended": 2.0}).encode())
    store.write_file("attempts/b.x.json", b"{}")
    attempts = AttemptLog(store)
    assert attempts.next("a") == (1_000_000_000, 1.0)
    assert attempts.next("b") == (1, 0.0)
