"""Findings in sentences: what they state and what they leave out."""

from typing import Any

import pandas as pd
import pytest

from bench.report.narrative import describe_findings
from bench.results.budgets import compute_budgets
from bench.results.grid_comparison import EQUAL
from bench.results.paired_tests import COLUMNS as TESTED
from tests.bench.results.test_anytime import Curve
from tests.bench.results.test_budgets import CURVES, TEN, key, problem

NAN, INF = float("nan"), float("inf")
CELL: dict[str, Any] = {"source": "", "dataset": "Oxford-IIIT_Pet", "backbone": "resnet50", "prior": "l2-sp", "n": 3441}
SHOWN = [*CELL, "method", "mean", "published_mean", "published_total_seconds", "diverged", "failed"]


def ran(method: str, percent: float, seconds: float, seed: int = 1, **more: Any) -> dict[str, Any]:
    """Result of a method in one split."""
    return CELL | {"method": method, "test_acc": percent / 100, "total_seconds": seconds, "seed": seed} | more


def row(method: str, mean: float, **more: Any) -> dict[str, Any]:
    """Row of the overview; the paper's DE ELBo has no mean."""
    return CELL | dict.fromkeys(SHOWN[7:9], NAN) | {"method": method, "mean": mean, "diverged": 0, "failed": 0} | more


def equal(times_as_long: float, origin: str = "run", **more: Any) -> dict[str, Any]:
    return {"times_as_long": times_as_long, "de_elbo_from": origin, "cost": "train", "source": ""} | more


def tried(unit: str, cells: int, **more: Any) -> dict[str, Any]:
    shared = {"method": "de-elbo", "against": "map-gs", "prior": "all", "measure": "accuracy", "source": ""}
    shared |= {"median": -0.25, "least": -1.0, "most": 0.5, "p": 0.03, "least_p": 2.0 ** (1 - cells)}
    return shared | {"unit": unit, "cells": cells} | more


def describe(*runs: dict[str, Any], overview: Any = (), met: Any = (), tests: Any = (), **more: Any) -> list[str]:
    return describe_findings(
        more
        | {
            "results": pd.DataFrame(runs, columns=[*CELL, "seed", "method", "test_acc", "total_seconds"]),
            "overview": pd.DataFrame(overview, columns=SHOWN),
            "equal_compute": pd.DataFrame(met, columns=EQUAL),
            "paired_tests": pd.DataFrame(tests, columns=TESTED),
        }
    )


def test_accuracy_and_time_over_all_problems() -> None:
    """The range and median of accuracy differences and of time ratios, over problems that both methods have."""
    one = [ran("map-gs", 92.34, 7200), ran("de-elbo", 92.5, 600), ran("elbo", 88.0, 500)]
    two = [ran("map-gs", 90.0, 200, n=100), ran("de-elbo", 94.0, 100, n=100), ran("map-gs", 80.0, 200, n=7)]
    assert describe(*one) == [
        "The DE ELBo's mean test accuracy lies +0.2 points (median +0.2) from that of MAP + grid search, over 1 "
        "combination of dataset, N and Model; the grid's training takes 12.0 times as long."
    ]
    assert describe(*one, *two) == [
        "The DE ELBo's mean test accuracy lies +0.2 to +4.0 points (median +2.1) from that of MAP + grid search, over "
        "2 combinations of dataset, N and Model; the grid's training takes 2.0 to 12.0 times as long."
    ]


def test_only_shared_splits_are_compared() -> None:
    """A split that one of the two methods lacks is not used; without shared splits there is no finding."""
    runs = [ran(method, 90.0 + seed, 60.0 * seed, seed) for method in ("map-gs", "de-elbo") for seed in (1, 2)]
    for method in ("map-gs", "de-elbo"):
        assert describe(*runs, ran(method, 10.0, 9999, 3)) == describe(*runs)
    assert describe(ran("map-gs", 92.0, 60, seed=1), ran("de-elbo", 92.0, 60, seed=2)) == describe() == []


PRINTED = {"published_mean": 97.1, "published_total_seconds": 7200.0}
PAPER = [row("map-gs", 97.1, **PRINTED), row("de-elbo", NAN, published_mean=96.8, published_total_seconds=3600.0)]


def test_printed_numbers_are_attributed_to_the_paper() -> None:
    """Printed DE ELBo results are compared with the printed grid, times only where both are printed."""
    untimed = [row("map-gs", 90.0, n=100, published_mean=90.0), row("de-elbo", NAN, n=100, published_mean=92.5)]
    assert describe(overview=[*PAPER, *untimed]) == [
        "As printed in the paper, the DE ELBo's mean test accuracy lies -0.3 to +2.5 points (median +1.1) from that of "
        "MAP + grid search, over 2 combinations of dataset, N and Model; the grid's training takes 2.0 times as long."
    ]
    (sentence,) = describe(overview=untimed)
    assert "times as long" not in sentence
    assert describe(overview=[row("map-gs", 97.1, **PRINTED), row("de-elbo", 90.0, published_mean=96.8)]) == []


def test_differences_from_the_print_are_counted() -> None:
    """Recomputed means that differ from the printed ones by more than rounding are counted."""
    assert len(describe(overview=PAPER)) == 1
    _, sentence = describe(overview=[PAPER[0] | {"mean": 96.5}, PAPER[1]])
    assert sentence == "The files and the printed table 3 differ by more than rounding in 1 row."


def test_lost_runs_are_counted() -> None:
    """Failed and diverged runs are counted over all methods and problems."""
    assert describe(overview=[row("map-gs", 92.0, failed=2, diverged=1), row("elbo", 92.0, diverged=1)]) == [
        "Lost runs: 2 failed, which are not counted, and 2 diverged, which are."
    ]


@pytest.mark.parametrize(
    ("ratios", "text"),
    [
        ([3.0], "accuracy in 1 of 1 cell, after 3.0 times its compute time. A cell"),
        ([3.0, 5.0], "accuracy in 2 of 2 cells, after 3.0 to 5.0 times its compute time. A cell"),
        ([3.0, INF], "accuracy in 1 of 2 cells, after 3.0 times its compute time. A cell"),
        ([INF, NAN], "accuracy in 0 of 1 cell. A cell"),
        ([NAN], None),
    ],
)
@pytest.mark.parametrize("origin", ["run", "paper"])
def test_equal_compute(ratios: list[float], text: str | None, origin: str) -> None:
    """The grid's time to the DE ELBo's accuracy, in cells with a curve, by training steps; the paper's is named so."""
    lines = describe(met=[*(equal(ratio, origin) for ratio in ratios), equal(2.0, cost="full")])
    assert len(lines) == (text is not None)
    if text is not None:
        paper = "accuracy (as printed in the paper)" if origin == "paper" else "accuracy"
        assert f"the DE ELBo's {text.replace('accuracy', paper)}" in lines[0]


@pytest.mark.parametrize(
    ("tests", "ending"),
    [
        ([tried("split", 18), tried("mean", 6)], "6 cells (means over splits): median difference -0.25 points "
         "(-1.00 to +0.50), Wilcoxon p = 0.03; with so many cells p cannot fall below 0.031."),
        ([tried("split", 18), tried("mean", 5)], "18 cells (splits, which share test images: the true p is higher): "
         "median difference -0.25 points (-1.00 to +0.50), Wilcoxon p = 0.03; with so many cells p cannot fall below "
         "7.6e-06."),
        ([tried(unit, 1, p=NAN, least_p=1.0) for unit in ("split", "mean")], None),
        ([tried("split", 9, **other) for other in ({"method": "elbo"}, {"prior": "ptyl"}, {"measure": "time"})], None),
    ],
    ids=["means", "splits", "one cell", "other tests"],
)  # fmt: skip
def test_significance(tests: list[dict[str, Any]], ending: str | None) -> None:
    """The test is by means over at least six splits, else by splits with its limits; one cell is not tested."""
    lines = describe(tests=tests)
    assert [line.endswith(ending or "") for line in lines] == [True] * (ending is not None)


def test_sources_are_distinguished() -> None:
    """With several sources each finding begins with its source and uses its rows only."""
    runs = [ran(name, 90.0 + i, 60, source=source) for i, source in enumerate("ab") for name in ("map-gs", "de-elbo")]
    both = describe(*runs, met=[equal(2.0, source="b")], tests=[tried("split", 18, source="a")])
    assert [sentence[:3] for sentence in both] == ["a: ", "a: ", "b: ", "b: "]
    for sentence, text in zip(both, ("mean test accuracy", "Wilcoxon", "mean test accuracy", "2.0 times"), strict=True):
        assert text in sentence


def test_best_at_each_budget() -> None:
    """Budgets with the same best method are joined; of several problems the mean decides."""
    assert describe(budgets=compute_budgets(problem(CURVES), TEN)) == [
        "Best at each budget over 1 combination of dataset, N and Model: DE ELBo (1-2 runs), MAP + GS (4-32 runs)."
    ]
    assert describe(budgets=compute_budgets(problem(CURVES).iloc[:0], {})) == []
    late: dict[str, list[Curve]] = {"map-gs": [[(40.0, 0.5)]], "x": [[(40.0, 0.6)]]}
    steps = pd.concat([problem(late), problem(late | {"laplace": [[(40.0, 0.7)]]}, n=7)])
    assert describe(budgets=compute_budgets(steps, TEN | {key(n=7): 10.0})) == [
        "Best at each budget over 2 combinations of dataset, N and Model: x (4 runs)."
    ]
