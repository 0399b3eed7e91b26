"""ASHA: which configurations continue from a rung, compared with Ray's scheduler, and the trials that follow."""

import math
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from ray.tune.schedulers import AsyncHyperBandScheduler

from bench.methods.asha import ASHA, passes_rung
from bench.methods.random_search import RandomSearch
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from tests.helpers.method_trials import FAILED, drive, judged, make, waiting
from tests.helpers.ridge import ridge

NAN = math.nan
Curve = Callable[[int, int], float]
"""Validation NLL of a configuration, by its number, at a level: 0 and 1 are rungs, 2 is the end."""
LEVELS = (0.1, 0.3, 1.0)


def play(curve: Callable[[int, int], float | None], order: int | None = None, **given: Any) -> list[TrialRecord]:
    """Run ASHA with the values of the curve."""
    method = make(ASHA, **given)
    return drive(method, lambda spec: curve(spec.number or 0, method.levels.index(spec.until)), order)


def reached(records: list[TrialRecord]) -> dict[int, float]:
    """Return the share of its run up to which each configuration was tuned."""
    ends: dict[int, float] = {}
    for record in records:
        if record.spec.stage == "tune":
            number = record.spec.number or 0
            ends[number] = max(ends.get(number, 0.0), record.spec.until)
    return ends


def ray_reached(curve: Curve, count: int, eta: int) -> dict[int, float]:
    """Return the same by Ray's scheduler, one configuration after the other: rungs at 1 and eta of eta^2 - 1."""
    scheduler: Any = AsyncHyperBandScheduler(
        time_attr="t", metric="loss", mode="min", max_t=eta**2 - 1, grace_period=1, reduction_factor=eta
    )
    assert [milestone for milestone, _ in scheduler._brackets[0]._rungs] == [eta, 1]
    ends = {}
    for number in range(count):
        trial = SimpleNamespace(trial_id=str(number))
        scheduler.on_trial_add(None, trial)
        for level, t in enumerate((1, eta, eta**2 - 1)):
            ends[number] = LEVELS[level]
            if scheduler.on_trial_result(None, trial, {"t": t, "loss": curve(number, level)}) == "STOP":
                break
    return ends


def crossing(seed: int) -> Curve:
    """Return learning curves that cross, with a little noise: the best at the end may be slow at first."""
    random = np.random.default_rng(seed)
    end, speed, noise = random.uniform(0.2, 1.2, 60), random.uniform(2, 15, 60), random.normal(size=(60, 3))
    return lambda i, level: float(end[i] + 2 * np.exp(-speed[i] * LEVELS[level]) + 0.02 * noise[i, level])


@pytest.mark.parametrize("eta", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_decisions_are_rays(seed: int, eta: int) -> None:
    """Configurations stop where Ray's scheduler stops them on the same values, whatever the order of results."""
    values = np.random.default_rng(seed).normal(size=(24, 3))
    curves: list[Curve] = [
        lambda i, level: float(values[i, level]),
        lambda i, level: float(np.round(values[i, level])),
        crossing(seed),
    ]
    for curve in curves:
        expected = ray_reached(curve, 24, eta)
        assert len(set(expected.values())) == 3
        for order in (None, 0, 1):
            assert reached(play(curve, order, eta=eta)) == expected


def test_a_rung_continues_from_the_one_before() -> None:
    """The trials of a configuration are segments of one run, from 0 to the end, with one number and one setting."""
    records = play(lambda i, _: float(i))
    chain = [record.spec for record in records if record.spec.number == 0 and record.spec.stage == "tune"]
    assert [(spec.since, spec.until) for spec in chain] == [(0.0, 0.1), (0.1, 0.3), (0.3, 1.0)]
    assert len({(spec.learning_rate, spec.weight_decay, spec.head_weight_decay) for spec in chain}) == 1
    (retraining,) = (record.spec for record in records if record.spec.stage == "retrain")
    assert (retraining.number, retraining.since, retraining.until) == (0, 0.0, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_results_does_not_matter(seed: int) -> None:
    """The trials are the same whatever the order of results, also with diverged and failed ones."""
    values = np.random.default_rng(seed).choice([1.0, 2.0, 3.0, NAN, -1.0], size=(24, 3), p=[0.3, 0.3, 0.2, 0.1, 0.1])

    def curve(i: int, level: int) -> float | None:
        return FAILED if values[i, level] < 0 else float(values[i, level])

    keys = [{record.key for record in play(curve, order)} for order in (None, *range(5))]
    assert keys.count(keys[0]) == len(keys)


def test_it_waits_for_those_before_only() -> None:
    """A configuration waits only for those of lower number at its rung."""
    method = make(ASHA, trials=6)
    first = waiting(method)
    assert [(spec.number, spec.until) for spec in first] == [(i, 0.1) for i in range(6)]
    method.tell(judged(first[1], 0.5))
    assert waiting(method) == []
    method.tell(judged(first[0], 1.0))
    assert [(spec.number, spec.until) for spec in waiting(method)] == [(0, 0.3), (1, 0.3)]


def test_a_diverged_run_stops_and_does_not_count() -> None:
    """A configuration that diverges at a rung stops there, even the first, and later ones are not compared with it."""
    records = play(lambda i, _: NAN if i in (0, 2) else float(i), trials=5)
    assert reached(records) == {0: 0.1, 1: 1.0, 2: 0.1, 3: 0.1, 4: 0.1}
    assert passes_rung(5.0, [NAN, math.inf], 3)
    assert not passes_rung(math.inf, [], 3)
    assert not passes_rung(5.0, [4.0, NAN], 3)


def test_a_failed_run_ends_its_configuration() -> None:
    """A configuration that fails at a rung stops there and is not retrained."""
    records = play(lambda i, _: FAILED if i == 0 else float(i), trials=4)
    assert reached(records) == {0: 0.1, 1: 1.0, 2: 0.1, 3: 0.1}
    assert [record.spec.number for record in records if record.spec.stage == "retrain"] == [1]


def test_where_all_diverge_one_is_retrained() -> None:
    """If all configurations diverge the first is retrained, so that the cell has a result."""
    records = play(lambda *_: NAN, trials=5)
    assert [record.spec.number for record in records if record.spec.stage == "retrain"] == [0]


def test_only_full_runs_are_compared_by_value() -> None:
    """A configuration that reached the end is preferred to one that stopped early with a lower NLL."""
    records = play(lambda i, level: [1.0, 5.0, 9.0][level] if i == 0 else 1.5, trials=4)
    assert reached(records) == {0: 1.0, 1: 0.1, 2: 0.1, 3: 0.1}
    assert [record.spec.number for record in records if record.spec.stage == "retrain"] == [0]


def test_incumbents_are_those_of_full_length() -> None:
    """Exactly the configurations that are the best of all full runs up to themselves are retrained."""
    records = play(crossing(5), order=2)
    full = {r.spec.number or 0: r.metrics["val_nll"] for r in records if r.spec.stage == "tune" and r.spec.until == 1}
    best = [i for i in sorted(full) if all(full[i] < full[j] for j in full if j < i)]
    assert sorted(r.spec.number or 0 for r in records if r.spec.stage == "retrain") == best
    assert len(full) > len(best) > 1


def test_remaining_work_is_counted_in_runs() -> None:
    """The run equivalents are those of 24 full runs at first, and those of the trained segments at the end."""
    method = make(ASHA)
    assert (method.stages(), method.run_equivalents()["tune"]) == (Counter(tune=72, retrain=24), pytest.approx(24))
    assert method.settings.max_trials("l2-sp") == 96
    records = drive(method, lambda spec: float(spec.number or 0), 1)
    tuned = [record.spec for record in records if record.spec.stage == "tune"]
    assert method.run_equivalents()["tune"] == pytest.approx(sum(spec.until - spec.since for spec in tuned))
    assert method.run_equivalents()["tune"] == pytest.approx(1 + 23 * 0.1)
    assert method.stages() == Counter(tune=26, retrain=1)


def test_without_rungs_it_is_random_search() -> None:
    """With ``rungs: []`` the trials are those of random search with the same seed."""
    one = drive(make(ASHA, trials=12, rungs=[], name="x"), lambda spec: 1 / (1 + (spec.number or 0)))
    other = drive(make(RandomSearch, trials=12, name="x"), lambda spec: 1 / (1 + (spec.number or 0)))
    assert [record.key for record in one] == [record.key for record in other]


def test_settings_that_make_no_sense_are_refused() -> None:
    """Fewer configurations than eta, or rungs that do not rise or reach 1, are refused."""
    assert make(ASHA, trials=2).settings.find_problem("l2-sp") == (
        "2 configurations with prior l2-sp, of which one in eta = 3 continues from each rung: set trials and the grid "
        "to 3 or more, or eta lower"
    )
    small = make(ASHA, learning_rates=[0.1], weight_decays=[0.0, 1.0])
    assert small.size == 2
    assert small.settings.find_problem("l2-sp") is not None
    assert small.settings.find_problem("ptyl") is None
    assert make(ASHA, trials=3).settings.find_problem("l2-sp") is None
    for wrong in ({"rungs": [0.3, 0.1]}, {"rungs": [0.1, 0.1]}, {"rungs": [0.1, 1.0]}, {"rungs": [0]}, {"eta": 1}):
        with pytest.raises(ValidationError):
            make(ASHA, **wrong)


def test_it_finds_the_strength_of_a_ridge_regression() -> None:
    """ASHA finds a ridge strength within a factor of 4 of the optimum, in less than half of all epochs."""
    problem = ridge()

    def loo(spec: TrialSpec) -> float:
        assert spec.weight_decay is not None
        return problem.loo(spec.weight_decay) + math.exp(-10 * spec.until)

    grid = {"learning_rates": [0.01], "weight_decays": [1e-6 * 2.0**i for i in range(29)]}
    records = drive(make(ASHA, trials=29, **grid), loo)
    (*_, last) = (record for record in records if record.spec.stage == "retrain")
    assert last.spec.weight_decay is not None
    assert 1 / 4 < last.spec.weight_decay / problem.best_alpha_loo() < 4
    assert sum(record.spec.until - record.spec.since for record in records if record.spec.stage == "tune") < 29 / 2
