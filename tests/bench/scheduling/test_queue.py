"""All methods as one stream of trials, from the beginning or from where it stopped."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.scheduling.queue import TrialQueue, split_finished
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

Fake = Callable[..., TrialRecord]
quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(data=st.data())
def test_trials_may_end_in_any_order(data: st.DataObject, tiny: Benchmark, fake: Fake, play: Any) -> None:
    """Several at a time and ending in any order, a queue asks for the same trials, and counts them right."""
    queue = TrialQueue(make_methods(tiny))
    out: list[TrialSpec] = []
    told = 0
    while not queue.finished:
        while len(out) < 3 and (spec := queue.ask()) is not None:
            out.append(spec)
        assert (queue.num_completed, queue.num_remaining, queue.total) == (told, 9 - told, 9)
        spec = out.pop(data.draw(st.integers(0, len(out) - 1)))
        queue.tell(fake(spec))
        told += 1
    assert (queue.num_completed, queue.num_remaining, queue.reused) == (9, 0, [])
    assert queue.ask() is None


@quick
@given(stop=st.integers(0, 9), order=st.integers(0, 100))
def test_an_interrupted_race_goes_on(stop: int, order: int, tiny: Benchmark, play: Any) -> None:
    """Continued from any set of existing records, a queue asks for the others alone: together they are all."""
    everything = play(tiny)
    existing = random.Random(order).sample(everything, stop)  # noqa: S311
    rest = play(tiny, known=existing)
    assert len({record.key for record in everything}) == len(everything) == 4 + 1 + 2 + 2
    assert not {record.key for record in rest} & {record.key for record in existing}
    assert {record.key for record in [*rest, *existing]} == {record.key for record in everything}
    assert len(rest) + stop == len(everything)


def test_existing_records_are_counted(tiny: Benchmark, play: Any) -> None:
    """Records that were there count as told and reused; with all of them there a queue is finished at once."""
    records = play(tiny)
    queue = TrialQueue(make_methods(tiny), records)
    assert (queue.finished, len(queue.reused), queue.num_completed, queue.num_remaining) == (True, 9, 9, 0)
    assert queue.ask() is None


def test_records_of_other_trials_are_ignored(tiny: Benchmark, play: Any) -> None:
    """Records of trials that no method asks for are neither reused nor told."""
    others = play(tiny.model_copy(update={"seeds": (7,)}))
    queue = TrialQueue(make_methods(tiny), others)
    assert (queue.reused, queue.num_completed, queue.num_remaining) == ([], 0, 9)


def test_failed_trials_are_tried_again(tiny: Benchmark, fake: Fake, play: Any) -> None:
    """A record of status failed from an earlier run is asked for again; a diverged one is not."""
    records = play(tiny)
    runs = [i for i, record in enumerate(records) if record.spec.stage == "run"]
    records[runs[0]] = fake(records[runs[0]].spec, "failed")
    records[runs[1]] = fake(records[runs[1]].spec, "diverged")
    assert [record.key for record in play(tiny, known=records)] == [records[runs[0]].key]


@pytest.mark.parametrize(("method", "count"), [("elbo", 2), ("map-gs", 4)])
def test_failures_are_kept_in_sight(method: str, count: int, tiny: Benchmark, fake: Fake) -> None:
    """Failed trials are listed and do not hold up the queue; without a tuning run nothing is retrained."""
    queue = TrialQueue(make_methods(tiny))
    while (spec := queue.ask()) is not None:
        queue.tell(fake(spec, "failed" if spec.method == method else "completed"))
    assert queue.finished
    assert [record.spec.method for record in queue.failed] == [method] * count
    assert queue.num_remaining == 0


def test_order_depends_on_its_seed_alone(tiny: Benchmark, play: Any) -> None:
    """The same order_seed gives the same order, another gives another one of the same trials."""

    def order(seed: int) -> list[str]:
        return [record.key for record in play(tiny.model_copy(update={"order_seed": seed}))]

    assert order(3) == order(3)
    assert order(3) != order(4)
    assert sorted(order(3)) == sorted(order(4))


def test_methods_are_mixed(tiny: Benchmark) -> None:
    """No method gets the first or the last hours to itself: over order seeds, every trial comes first sometimes."""
    first = set()
    for seed in range(60):
        spec = TrialQueue(make_methods(tiny), order_seed=seed).ask()
        assert spec is not None
        first.add(spec.method)
    assert first == {"map-gs", "de-elbo", "elbo"}


def test_settle_keeps_what_is_done_and_asked_for(tiny: Benchmark, play: Any, fake: Any) -> None:
    """Records count where their method is done with the cell, failed ones too; elsewhere what is left is counted."""
    records = play(tiny)
    methods = make_methods(tiny)
    assert sorted(r.key for r in split_finished(methods, records)[0]) == sorted(r.key for r in records)
    lost = next(record for record in records if record.spec.method == "elbo")
    kept, left, held = split_finished(make_methods(tiny), [record for record in records if record is not lost])
    assert left == {("elbo", lost.spec.cell): 1}
    assert held == sum(record.spec.method == "elbo" for record in records) - 1
    assert {record.spec.method for record in kept} == {"map-gs", "de-elbo"}
    failed = [fake(record.spec, "failed") if record is lost else record for record in records]
    assert split_finished(make_methods(tiny), failed)[1] == {}
    stranger = fake(replace(lost.spec, learning_rate=0.5))
    assert stranger not in split_finished(make_methods(tiny), [*records, stranger])[0]


@pytest.fixture
def adaptive(content: dict[str, Any]) -> Benchmark:
    """One cell of the methods that let results decide what is tried next."""
    methods = {
        "asha": {"trials": 6, "eta": 2, "weight_decays": [0.01, 0.001, 0]},
        "bo": {"trials": 6, "startup": 3, "sampler": "tpe"},
        "deelbo-halving": {},
        "hypergradient": {"learning_rates": [0.1, 0.01]},
        "random": {"trials": 6},
    }
    return parse_benchmark(content | {"methods": methods}, "x")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_decisions_are_the_same_after_an_interruption(data: st.DataObject, adaptive: Benchmark, fake: Fake) -> None:
    """From any part of its records a queue asks for the same rest, and leaves no snapshot that nobody needs."""
    learned = {f"mean_weight_decay_{group}": 1e-3 for group in ("backbone", "head")}

    def answer(spec: TrialSpec) -> TrialRecord:
        chance = int(spec.key, 16) % 10
        return fake(spec, "diverged" if chance == 0 else "completed", state=learned)

    def run(known: list[TrialRecord]) -> tuple[dict[str, TrialRecord], set[str]]:
        queue = TrialQueue(make_methods(adaptive), known, order_seed=data.draw(st.integers(0, 99)))
        out, done = [], {record.key: record for record in known}
        kept = {record.spec.snapshot_key(record.spec.until) for record in known if record.spec.until < 1}
        while not queue.finished:
            while len(out) < 3 and (spec := queue.ask()) is not None:
                out.append(spec)
            record = answer(out.pop(data.draw(st.integers(0, len(out) - 1))))
            done[record.key] = record
            kept |= {record.spec.snapshot_key(record.spec.until)} if record.spec.until < 1 else set()
            queue.tell(record)
            kept -= set(queue.pop_unneeded_snapshots())
        return done, kept - set(queue.pop_unneeded_snapshots())

    everything, kept = run([])
    assert kept == set()
    part = [record for record in everything.values() if data.draw(st.booleans())]
    again, kept = run(part)
    assert again.keys() == everything.keys()
    assert kept == set()


def test_what_is_decided_one_by_one_is_spread_over_the_race(content: dict[str, Any], play: Any) -> None:
    """Trials that wait for one another are started throughout a queue, and not when all else has ended."""
    methods = {"bo": {"trials": 20, "sampler": "tpe", "retrain": "best"}, "map-gs": {"retrain": "all"}}
    queue = play(parse_benchmark(content | {"methods": methods, "seeds": [1, 2, 3, 4]}, "x"))
    places = [place / len(queue) for place, record in enumerate(queue) if record.spec.method == "bo"]
    assert len(places) == 4 * 21
    assert 0.35 < sum(places) / len(places) < 0.65
    assert max(b - a for a, b in pairwise([0.0, *places, 1.0])) < 0.15


def test_a_part_that_failed_later_is_kept(adaptive: Benchmark, fake: Fake) -> None:
    """A part of a run from which another started that failed is not named obsolete: the next run tries again."""
    methods = [method for method in make_methods(adaptive) if method.name == "deelbo-halving"]
    queue = TrialQueue(methods)
    named: list[str] = []
    failed = None
    while (spec := queue.ask()) is not None:
        fails = failed is None and spec.since > 0
        failed = spec if fails else failed
        queue.tell(fake(spec, "failed" if fails else "completed"))
        named += queue.pop_unneeded_snapshots()
    assert failed is not None
    assert named
    assert failed.snapshot_key(failed.since) not in named
