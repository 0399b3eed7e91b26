"""Which models stay in a storage while a benchmark runs, and after."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.models.choice import best_trials
from bench.models.keep import ChosenModels
from bench.results.configurations import selected_trials
from bench.scheduling.queue import TrialQueue
from bench.storage.models import has_model, model_keys
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from tests.helpers.tiny import CONTENT, SPEC

Fake = Callable[..., TrialRecord]
METHODS: dict[str, Any] = {
    "map-gs": {"learning_rates": [0.1, 0.01], "weight_decays": [0.01, 0], "retrain": "all"},
    "random": {"trials": 4, "learning_rates": [0.1, 0.01], "weight_decays": [0.01, 0]},
    "asha": {"trials": 4},
    "deelbo-halving": {"learning_rates": [0.1, 0.01, 0.001]},
    "de-elbo": {"learning_rates": [0.1, 0.01, 0.001]},
    "retrained": {"method": "de-elbo", "learning_rates": [0.1, 0.01], "retrain": True},
}


class Driver:
    """Run a benchmark with made-up records, whose models are written as workers write them."""

    def __init__(self, store: RecordStore, benchmark: Benchmark, fake: Fake, keep_model: Any, **options: Any) -> None:
        self.store, self.benchmark, self.fake, self.keep_model = store, benchmark, fake, keep_model
        self.options, self.lines = options, list[str]()

    def run(self, limit: int | None = None, killed: bool = False, diverged: Iterable[str] = ()) -> None:
        """Run at most ``limit`` trials. The last one's driver may be killed before it is told of the record."""
        records = list(self.store.records())
        queue = TrialQueue(make_methods(self.benchmark), records, self.benchmark.order_seed)
        models = ChosenModels(self.store, self.lines.append, **self.options)
        models.on_run_start(queue, 1)
        for number in count(1):
            if (spec := queue.ask()) is None or (limit is not None and number > limit):
                return
            status = "diverged" if spec.method in diverged and spec.is_tested else "completed"
            record = self.fake(spec, status, state={"weight_decay_backbone": 0.1, "weight_decay_head": 0.01})
            if spec.is_tested and record.status == "completed":
                self.keep_model(self.store, record)
            self.store.write(record, [])
            if killed and number == limit:
                return
            queue.tell(record)
            models.on_trial_end(record)
            self.check()

    def check(self) -> None:
        """Check that the models are those of the best tested trials, and of trials that have no rank yet."""
        records = [record for record in self.store.records() if record.status == "completed"]
        tuned = {replace(record.spec, stage="retrain") for record in records if record.spec.stage == "tune"}
        best = {trial.record.key for trial in best_trials(list(self.store.records()))}
        unranked = {r.key for r in records if r.spec.stage == "retrain" and r.spec not in tuned and r.spec.until == 1}
        completed = {record.key for record in records}
        present = set(model_keys(self.store))
        assert best & completed <= present <= best | unranked

    def chosen(self) -> set[str]:
        return set(selected_trials(self.benchmark, list(self.store.records())))


@pytest.fixture
def driver(tmp_path: Path, fake: Fake, keep_model: Any) -> Callable[..., Driver]:
    benchmark = parse_benchmark(deepcopy(CONTENT) | {"methods": METHODS}, "x")
    store = RecordStore(str(tmp_path / "storage"))
    return lambda **options: Driver(store, benchmark, fake, keep_model, **options)


def test_at_any_time_the_best_tested_models_are_there(driver: Callable[..., Driver]) -> None:
    """After each trial one for each method and cell; in the end those of the choices."""
    one = driver()
    one.run()
    chosen = one.chosen()
    assert len(chosen) == len(METHODS)
    assert set(model_keys(one.store)) == chosen
    assert all(has_model(one.store, key) for key in chosen)


def test_a_run_that_was_stopped_and_killed_ends_alike(driver: Callable[..., Driver]) -> None:
    """Models of trials whose records the driver was never told of are weighed like the others."""
    one = driver()
    for limit in (3, 7, 5, 9):
        one.run(limit, killed=True)
    tested = {record.key for record in one.store.records() if record.spec.is_tested}
    assert len(tested) > 3
    one.run()
    assert set(model_keys(one.store)) == one.chosen()


def test_what_a_killed_process_left_is_removed(driver: Callable[..., Driver], fake: Fake, keep_model: Any) -> None:
    """A model without a record, of a trial that runs again; models of other cells' records stay."""
    one = driver()
    lost, other = (fake(replace(SPEC, n=n, stage="retrain")) for n in (300, 400))
    for record in (lost, other):
        keep_model(one.store, record)
    one.store.write(other, [])
    models = ChosenModels(one.store, print)
    models.on_run_start(TrialQueue(make_methods(one.benchmark)), 1)
    assert model_keys(one.store) == [other.key]


def test_a_choice_that_diverged_has_no_model(driver: Callable[..., Driver]) -> None:
    """Nor has any other trial of that method and cell, as none of them is its choice."""
    one = driver()
    one.run(diverged=["map-gs"])
    assert {one.store.read(key).spec.method for key in model_keys(one.store)} == set(METHODS) - {"map-gs"}  # type: ignore[union-attr]


def test_all_models_are_kept_if_asked_for(tmp_path: Path, tiny: Benchmark, fake: Fake, keep_model: Any) -> None:
    """Every tested trial has its model. A later run with `chosen` removes those that were not chosen."""
    store, lines = RecordStore(str(tmp_path / "storage")), list[str]()
    queue = TrialQueue(make_methods(tiny))
    models = ChosenModels(store, lines.append, keep_all=True)
    models.on_run_start(queue, 1)
    while (spec := queue.ask()) is not None:
        record = fake(spec)
        if spec.is_tested:
            keep_model(store, record)
        store.write(record, [])
        queue.tell(record)
        models.on_trial_end(record)
    records = list(store.records())
    assert set(model_keys(store)) == {record.key for record in records if record.spec.is_tested}
    ChosenModels(store, lines.append).on_run_start(TrialQueue(make_methods(tiny), records), 1)
    assert set(model_keys(store)) == set(selected_trials(tiny, records))


def test_a_model_that_is_lost_is_told_once(tmp_path: Path) -> None:
    lines: list[str] = []
    models = ChosenModels(RecordStore(str(tmp_path)), lines.append)
    for _ in range(2):
        models.on_model_lost(SPEC, "OSError: No space left on device")
    (line,) = lines
    assert line.startswith(f"the model of {SPEC.describe()} is not kept (OSError: No space left on device)")


def test_a_storage_that_fails_stops_nothing(
    driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch, fake: Fake
) -> None:
    """What cannot be removed is left."""
    one = driver()
    one.run()

    def fail(*_: object) -> None:
        raise OSError("unreachable")

    monkeypatch.setattr(RecordStore, "names", fail)
    monkeypatch.setattr(RecordStore, "remove", fail)
    models = ChosenModels(one.store, print)
    queue = TrialQueue(make_methods(one.benchmark))
    models.on_run_start(queue, 1)
    while (spec := queue.ask()) is not None:
        record = fake(spec)
        queue.tell(record)
        models.on_trial_end(record)
