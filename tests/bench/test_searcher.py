"""The searcher between a race and Ray Tune, without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ray.tune.search import Searcher

from bench.benchmark import Benchmark
from bench.methods import make_methods
from bench.race import Race, Watcher
from bench.records import RecordStore
from bench.runner import MethodSearcher
from bench.trials import TrialRecord, TrialSpec

Fake = Callable[..., TrialRecord]


class Notes(Watcher):
    def __init__(self) -> None:
        self.ended: list[TrialRecord] = []

    def finished(self, record: TrialRecord) -> None:
        self.ended.append(record)


@pytest.fixture
def store(tmp_path: Any) -> RecordStore:
    return RecordStore(str(tmp_path / "s"))


@pytest.fixture
def race(tiny: Benchmark) -> Race:
    return Race(make_methods(tiny))


def test_never_more_at_once_than_it_may(race: Race, store: RecordStore, fake: Fake) -> None:
    """At most ``most`` trials are out; when one ends the next may start."""
    searcher = MethodSearcher(race, [], store, most=2)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert first is not None
    assert second is not None
    assert searcher.suggest("c") is None
    record = fake(TrialSpec(**first["spec"]))
    searcher.on_trial_complete("a", {"record": record.to_json(), "series": []})
    assert searcher.suggest("c") is not None


def test_it_says_when_nothing_more_will_come(race: Race, store: RecordStore, fake: Fake) -> None:
    """While trials are out there may be more, None; afterwards FINISHED."""
    searcher = MethodSearcher(race, [], store, most=100)
    out = {}
    while (suggestion := searcher.suggest(str(len(out)))) is not None:
        out[str(len(out))] = TrialSpec(**suggestion["spec"])
    assert len(out) == 8  # the grid's 4 and twice 2; the retraining waits for the grid
    for trial, spec in out.items():
        searcher.on_trial_complete(trial, {"record": fake(spec).to_json(), "series": []})
    last = searcher.suggest("last")
    assert last is not None
    searcher.on_trial_complete("last", {"record": fake(TrialSpec(**last["spec"])).to_json(), "series": []})
    assert searcher.suggest("no more") == Searcher.FINISHED


def test_a_record_written_elsewhere_is_kept_here(race: Race, store: RecordStore, fake: Fake) -> None:
    """Where the worker's storage was another one, the driver writes the record and its series."""
    searcher = MethodSearcher(race, [], store, most=1)
    suggestion = searcher.suggest("a")
    assert suggestion is not None
    record = fake(TrialSpec(**suggestion["spec"]))
    searcher.on_trial_complete("a", {"record": record.to_json(), "series": [{"step": 1.0}]})
    assert store.read(record.key) == record
    assert store.series(record.key) == [{"step": 1.0}]


def test_a_trial_whose_process_died_is_failed(race: Race, store: RecordStore) -> None:
    """A trial that ends without a result has a failed record that says what may have happened."""
    notes = Notes()
    searcher = MethodSearcher(race, [notes], store, most=1)
    suggestion = searcher.suggest("a")
    assert suggestion is not None
    key = TrialSpec(**suggestion["spec"]).key
    store.begin(key)
    store.begin(key)
    searcher.on_trial_complete("a", error=True)
    (record,) = notes.ended
    assert (record.key, record.status, record.attempt) == (key, "failed", 2)
    assert "killed, out of memory" in (record.error or "")
    assert store.read(key) == record


def test_what_a_trial_wrote_before_it_died_counts(race: Race, store: RecordStore, fake: Fake) -> None:
    """A record written by the attempt that then died is taken; a failed one of an earlier call is not."""
    notes = Notes()
    searcher = MethodSearcher(race, [notes], store, most=2)
    for trial, attempt in (("a", 1), ("b", 2)):
        suggestion = searcher.suggest(trial)
        assert suggestion is not None
        spec = TrialSpec(**suggestion["spec"])
        for _ in range(attempt):
            store.begin(spec.key)
        store.write(replace(fake(spec, "failed"), error="of attempt 1", attempt=1), [])
        searcher.on_trial_complete(trial, error=True)
    assert [record.error == "of attempt 1" for record in notes.ended] == [True, False]
