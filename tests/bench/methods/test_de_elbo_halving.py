"""The trials of the DE ELBo with halving, and with an optimizer without a learning rate."""

import math
import random
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from bench.methods.de_elbo_halving import DEELBoHalving
from bench.methods.de_elbo_lr_free import DEELBoLRFree
from bench.trials.record import TrialRecord
from tests.helpers.method_trials import FAILED, drive, make, waiting

NAN = math.nan
RATES = (0.1, 0.01, 0.001, 0.0001)


def play(values: dict[tuple[float, float], float | None], order: int | None = None, **given: Any) -> list[TrialRecord]:
    """Run it with the objectives of ``values``, by learning rate and share of the run; 1 for others."""
    return drive(make(DEELBoHalving, **given), lambda spec: values.get((spec.learning_rate, spec.until), 1.0), order)


def segments(records: list[TrialRecord]) -> dict[float, list[tuple[float, float]]]:
    """Return the segments that each learning rate was trained, in order."""
    found: dict[float, list[tuple[float, float]]] = {}
    for record in records:
        found.setdefault(record.spec.learning_rate, []).append((record.spec.since, record.spec.until))
    return {rate: sorted(parts) for rate, parts in found.items()}


@pytest.mark.parametrize("order", [None, *range(5)])
def test_half_of_the_rates_continue(order: int | None) -> None:
    """Of four rates two continue from the first rung and one from the second, whatever the order of results."""
    values = {(0.01, 0.125): 0.5, (0.0001, 0.125): 0.7, (0.0001, 0.25): 0.3, (0.01, 0.25): 0.4, (0.1, 0.25): 0.0}
    records = play(values, order)
    assert segments(records) == {
        0.1: [(0.0, 0.125)],
        0.01: [(0.0, 0.125), (0.125, 0.25)],
        0.001: [(0.0, 0.125)],
        0.0001: [(0.0, 0.125), (0.125, 0.25), (0.25, 1.0)],
    }
    assert sum(record.spec.until - record.spec.since for record in records) == 1.5
    assert {(record.spec.stage, record.spec.kappa, record.spec.number) for record in records} == {("run", None, None)}


def test_it_waits_for_all_of_a_rung() -> None:
    """No rate continues from a rung before the results of all at that rung are known."""
    method = make(DEELBoHalving)
    for i, spec in enumerate(specs := waiting(method)):
        assert waiting(method) == []
        method.tell(TrialRecord(spec, "completed", {"objective": float(i)}, {}, {"train": 1.0}, 1.0, 2.0))
    assert [spec.learning_rate for spec in waiting(method)] == [spec.learning_rate for spec in specs[:2]]


@pytest.mark.parametrize("order", range(3))
def test_ties_go_to_the_first_in_the_list(order: int) -> None:
    """With equal objectives the order of the configuration decides, not that of the results."""
    assert segments(play({}, order))[0.1][-1] == (0.25, 1.0)
    assert segments(play({}, order, learning_rates=RATES[::-1]))[0.0001][-1] == (0.25, 1.0)


def test_diverged_and_failed_runs_stop() -> None:
    """A diverged or failed rate does not continue if any other completed the rung, even if fewer continue then."""
    values = {(0.1, 0.125): NAN, (0.01, 0.125): FAILED, (0.001, 0.125): NAN}
    assert segments(play(values)) == {
        rate: [(0.0, 0.125), *([(0.125, 0.25), (0.25, 1.0)] if rate == 0.0001 else [])] for rate in RATES
    }


def test_if_all_diverge_one_continues() -> None:
    """If no rate completed the rung the first that diverged continues to the end; if all failed none does."""
    diverged = {(rate, 0.125): NAN for rate in RATES} | {(0.01, share): NAN for share in (0.25, 1.0)}
    records = play(diverged | {(0.1, 0.125): FAILED})
    assert segments(records)[0.01] == [(0.0, 0.125), (0.125, 0.25), (0.25, 1.0)]
    assert len(records) == 4 + 2
    assert len(play({(rate, 0.125): FAILED for rate in RATES})) == 4


@pytest.mark.parametrize(
    ("given", "entrants"),
    [
        ({}, [4, 2, 1]),
        ({"rungs": [0.1]}, [4, 1]),
        ({"rungs": [0.1, 0.2, 0.4]}, [4, 2, 1, 1]),
        ({"learning_rates": [1, 2, 3, 4, 5], "eta": 3}, [5, 2, 1]),
        ({"learning_rates": [1, 2, 3, 4, 5]}, [5, 3, 1]),
    ],
)
def test_trials_are_counted_beforehand(given: dict[str, Any], entrants: list[int]) -> None:
    """The number of rates at each rung, of trials and of run equivalents is known before anything runs."""
    method = make(DEELBoHalving, **given)
    expected = method.stages()
    parts = [b - a for a, b in zip([0.0, *method.settings.rungs], [*method.settings.rungs, 1.0], strict=True)]
    assert method.settings.num_at_rungs() == entrants
    assert method.settings.max_trials("l2-sp") == expected["run"] == sum(entrants)
    assert method.run_equivalents()["run"] == pytest.approx(sum(a * b for a, b in zip(entrants, parts, strict=True)))
    records = drive(method, lambda spec: random.Random(spec.describe()).random())  # noqa: S311
    assert Counter(record.spec.stage for record in records) == expected


def test_kappa_and_groups_reach_every_trial() -> None:
    """All rungs, and the run without a learning rate, have the configured kappa and groups."""
    for kind in (DEELBoHalving, DEELBoLRFree):
        specs = [r.spec for r in drive(make(kind, kappa="0.1 D/N", groups="layer"), lambda _: 1.0)]
        assert {(spec.kappa, spec.kappa_share, spec.groups) for spec in specs} == {(None, 0.1, "layer")}


def test_settings_that_make_no_sense_are_refused() -> None:
    """Fewer rates than eta, rungs that do not rise, and what the DE ELBo refuses, are refused."""
    assert make(DEELBoHalving, learning_rates=[0.1]).settings.find_problem("l2-sp") == (
        "learning_rates = [0.1] with eta = 2, of which one in 2 continues from a rung: give 2 learning_rates or more, "
        "or use de-elbo"
    )
    assert make(DEELBoHalving).settings.find_problem("ptyl") is None
    for kind in (DEELBoHalving, DEELBoLRFree):
        assert "groups = layer" in (make(kind, groups="layer").settings.find_problem("ptyl") or "")
    for wrong in ({"rungs": []}, {"rungs": [0.5, 0.25]}, {"rungs": [1.0]}, {"eta": 1}, {"eta": 2.5}):
        with pytest.raises(ValidationError):
            make(DEELBoHalving, **wrong)


@pytest.mark.parametrize(
    ("given", "optimizer", "package"),
    [({}, "prodigy", "prodigyopt"), ({"optimizer": "schedule-free"}, "schedule-free", "schedulefree")],
)
def test_one_run_without_a_rate(given: dict[str, Any], optimizer: str, package: str) -> None:
    """There is one run on all images, with a learning rate of 1 and an optimizer whose package is named."""
    method = make(DEELBoLRFree, **given)
    (spec,) = (record.spec for record in drive(method, lambda _: 1.0))
    assert (spec.stage, spec.learning_rate, spec.optimizer, spec.until) == ("run", 1.0, optimizer, 1.0)
    assert (method.settings.packages, method.settings.max_trials("l2-sp")) == ((package,), 1)
