"""Random search: the configurations, their order, and which are retrained."""

import math
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from bench.methods.random_search import RandomSearch
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from tests.helpers.method_trials import FAILED, drive, judged, make, waiting
from tests.helpers.ridge import ridge

NAN = math.nan


def retrained(records: list[TrialRecord]) -> list[int]:
    """Return the numbers of the retrained configurations, in order."""
    return sorted(
        number for record in records if record.spec.stage == "retrain" for number in [record.spec.number or 0]
    )


def play(values: list[float | None], order: int | None = None, **given: Any) -> list[int]:
    """Return the numbers that are retrained if number i has the result ``values[i]``."""
    method = make(RandomSearch, trials=len(values), **given)
    return retrained(drive(method, lambda spec: values[spec.number or 0], order))


@pytest.mark.parametrize(("prior", "untied"), [("l2-zero", []), ("l2-sp", ["l2-sp"]), ("ptyl", [])])
def test_configurations_are_points_of_the_grid(prior: str, untied: list[str]) -> None:
    """The trials are twelve different points of the prior's grid, numbered from 0, which may all run at once."""
    method = make(RandomSearch, prior, untied=untied)
    asked = waiting(method)
    points = list(method.settings.points(prior))
    drawn = [{name: getattr(spec, name) for name in points[0]} for spec in asked]
    assert [spec.number for spec in asked] == list(range(12))
    assert all(point in points for point in drawn)
    assert len({tuple(point.values()) for point in drawn}) == 12
    assert {(spec.stage, spec.until, spec.since, spec.method) for spec in asked} == {("tune", 1.0, 0.0, "random")}


def test_the_order_is_known() -> None:
    """The configurations depend on seed and cell only: they are the same in every process and version."""
    asked = waiting(make(RandomSearch, trials=3))
    assert [(spec.learning_rate, spec.weight_decay) for spec in asked] == KNOWN


KNOWN = [(0.1, 0.01), (0.01, 1e-05), (0.1, 0.001)]


def test_more_trials_begin_with_the_same() -> None:
    """A larger budget begins with the configurations of a smaller one; the whole grid is possible."""
    few, all_of_it = (waiting(make(RandomSearch, trials=count)) for count in (5, 24))
    assert all_of_it[:5] == few
    assert len({(spec.learning_rate, spec.weight_decay) for spec in all_of_it}) == 24


@pytest.mark.parametrize("other", [{"seed": 1}, {"n": 1000}, {"split": 2001}, {"prior": "l2-zero"}])
def test_other_seeds_and_cells_have_another_order(other: dict[str, Any]) -> None:
    """Another seed of the method, or another cell, has another order."""
    one, two = (
        [(spec.learning_rate, spec.weight_decay) for spec in waiting(make(RandomSearch, **given))]
        for given in ({}, other)
    )
    assert one != two


@pytest.mark.parametrize("order", [None, *range(6)])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 4.0, 2.0, 2.0, 5.0, 1.0], [0, 2, 5]),
        ([1.0, 2.0, 3.0], [0]),
        ([NAN, NAN, 3.0, NAN], [0, 2]),
        ([FAILED, 2.0, FAILED, 1.0], [1, 3]),
        ([2.0, FAILED, NAN, 1.0], [0, 3]),
        ([math.inf, NAN, 9e9], [0, 2]),
        ([FAILED, FAILED], []),
    ],
)
def test_incumbents_are_retrained(values: list[float | None], expected: list[int], order: int | None) -> None:
    """Each best configuration so far is retrained; diverged ones if none completed before, failed ones never."""
    assert play(values, order) == expected


def test_only_the_best_or_all_may_be_retrained() -> None:
    """``retrain: best`` retrains only the best of all, ``all`` every one that did not fail."""
    values = [3.0, NAN, 2.0, FAILED, 1.0, 1.0]
    assert play(values, order=0, retrain="best") == [4]
    assert play(values, order=0, retrain="all") == [0, 1, 2, 4, 5]
    assert play([FAILED, FAILED], retrain="best") == []


def test_retraining_is_of_the_same_configuration() -> None:
    """A retraining differs from its tuning trial only in its stage."""
    method = make(RandomSearch, trials=2, name="mine")
    first, _ = waiting(method)
    method.tell(judged(first, 1.0))
    assert waiting(method) == [replace(first, stage="retrain")]
    assert first.method == "mine"


def test_the_bound_shrinks() -> None:
    """Each result that is no incumbent lowers the bound on retrainings by one."""
    method = make(RandomSearch, trials=4)
    bounds = [method.stages()["retrain"]]
    for spec in waiting(method):
        method.tell(judged(spec, 1.0))
        bounds.append(method.stages()["retrain"])
    assert bounds == [4, 4, 3, 2, 1]
    assert method.settings.max_trials("l2-sp") == 8


def test_a_budget_beyond_the_grid_is_refused() -> None:
    """More trials than the grid has points, or none, are refused."""
    settings = make(RandomSearch, trials=24).settings
    assert settings.find_problem("l2-sp") is None
    assert settings.model_copy(update={"trials": 25}).find_problem("l2-sp") == (
        "trials = 25 drawn from a grid of 24 with prior l2-sp, each once: set trials to 24 or fewer, or make the grid "
        "larger"
    )
    assert settings.model_copy(update={"trials": 25}).find_problem("ptyl") is None
    with pytest.raises(ValidationError):
        make(RandomSearch, trials=0)


def test_it_finds_the_strength_of_a_ridge_regression() -> None:
    """Its best ridge strength is near the optimum as often as 1 - C(25, 12) / C(29, 12) = 90 % predicts."""
    problem = ridge()
    optimum = problem.best_alpha_loo()
    decays = [1e-6 * 2.0**i for i in range(29)]
    exact = {decay: problem.loo(decay) for decay in decays}

    def loo(spec: TrialSpec) -> float:
        assert spec.weight_decay is not None
        return exact[spec.weight_decay]

    found = 0
    for seed in range(200):
        records = drive(make(RandomSearch, learning_rates=[0.01], weight_decays=decays, seed=seed), loo)
        best = min((r for r in records if r.spec.stage == "tune"), key=lambda record: record.metrics["val_nll"])
        assert best.spec.weight_decay is not None
        assert max(retrained(records)) == best.spec.number
        found += 1 / 4 < best.spec.weight_decay / optimum < 4
    assert 170 <= found <= 190
