"""The report's first sentences: what they say, and what they do not claim."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from bench.report.narrative import sentences
from bench.results.grid_comparison import EQUAL
from bench.results.paired_tests import COLUMNS as TESTED

NAN, INF = float("nan"), float("inf")
CELL: dict[str, Any] = {"source": "", "dataset": "Oxford-IIIT_Pet", "backbone": "resnet50", "prior": "l2-sp", "n": 3441}
SHOWN = [*CELL, "method", "mean", "published_mean", "published_total_seconds", "diverged", "failed"]
NO_TABLE: Any = ()


def ran(method: str, percent: float, seconds: float, seed: int = 1, **more: Any) -> dict[str, Any]:
    """What one method came to in one split."""
    return CELL | {"method": method, "test_acc": percent / 100, "total_seconds": seconds, "seed": seed} | more


def row(method: str, mean: float, **more: Any) -> dict[str, Any]:
    """A row of the overview; the paper's DE ELBo has no mean."""
    return CELL | dict.fromkeys(SHOWN[7:9], NAN) | {"method": method, "mean": mean, "diverged": 0, "failed": 0} | more


def equal(times_as_long: float, origin: str = "run", **more: Any) -> dict[str, Any]:
    return {"times_as_long": times_as_long, "de_elbo_from": origin, "cost": "train", "source": ""} | more


def compared(unit: str, cells: int, **more: Any) -> dict[str, Any]:
    shared = {"method": "de-elbo", "against": "map-gs", "prior": "all", "measure": "accuracy", "source": ""}
    shared |= {"median": -0.25, "least": -1.0, "most": 0.5, "p": 0.03, "least_p": 2.0 ** (1 - cells)}
    return shared | {"unit": unit, "cells": cells} | more


def told(*runs: dict[str, Any], overview: Any = None, met: Any = NO_TABLE, tests: Any = NO_TABLE) -> list[str]:
    """The sentences of such tables; the overview has what ran if it is not given."""
    shown = [row(run["method"], 0.0, source=run["source"]) for run in runs] if overview is None else overview
    return sentences(
        pd.DataFrame(runs, columns=[*CELL, "seed", "method", "test_acc", "total_seconds"]),
        pd.DataFrame(shown, columns=SHOWN),
        pd.DataFrame(met, columns=EQUAL),
        pd.DataFrame(tests, columns=TESTED),
    )


GRID = row("map-gs", 92.0)


def test_a_problem_is_told_in_full() -> None:
    """Dataset, N, Model, both accuracies, both times and their ratio; the plain ELBo where it was run."""
    runs = [ran("map-gs", 92.34, 7200), ran("de-elbo", 92.5, 600), ran("elbo", 88.0, 500)]
    assert told(*runs) == [
        "Oxford-IIIT Pet, N = 3,441, L2-SP: DE ELBo reaches 92.5 % in 10 min 0 s of training, MAP + grid search 92.3 % "
        "in 2 h 0 min: 12.0 times as long; the plain ELBo (kappa = 1) 88.0 %. Mean over 1 split."
    ]
    assert "plain ELBo" not in told(*runs[:2])[0]


def test_methods_are_compared_over_the_splits_that_they_share() -> None:
    """A split that one of the two methods does not have, as in an interrupted race, counts for neither."""
    runs = [ran(method, 90.0 + seed, 60.0 * seed, seed) for method in ("map-gs", "de-elbo") for seed in (1, 2)]
    assert "DE ELBo reaches 91.5 % in 1 min 30 s of training, MAP + grid search 91.5 %" in told(*runs)[0]
    assert told(*runs)[0].endswith("Mean over 2 splits.")
    assert told(*runs, ran("de-elbo", 10.0, 9999, 3)) == told(*runs)
    assert told(*runs, ran("map-gs", 10.0, 9999, 3)) == told(*runs)


def test_what_cannot_be_compared_is_not_told() -> None:
    """A grid alone, a DE ELBo alone, two methods in different splits, or nothing at all gives no sentence."""
    assert told(ran("map-gs", 92.0, 60)) == told(ran("de-elbo", 92.0, 60)) == told() == []
    assert told(ran("map-gs", 92.0, 60, seed=1), ran("de-elbo", 92.0, 60, seed=2)) == []


def many(count: int) -> list[dict[str, Any]]:
    runs = []
    for i in range(count):
        runs += [ran("map-gs", 90.0, 200.0 + 100 * i, n=100 + i), ran("de-elbo", 90.0 + i, 100, n=100 + i)]
    return runs


def test_many_problems_are_summed_up() -> None:
    """Up to four comparisons are told one by one; of more, the range and the median."""
    assert len(told(*many(4))) == 4
    assert told(*many(5)) == [
        "Over 5 combinations of dataset, N and Model the DE ELBo's mean test accuracy lies +0.0 to +4.0 points from "
        "that of MAP + grid search (median +2.0), whose training takes 2.0 to 6.0 times as long (median 4.0)."
    ]


PRINTED = {"published_mean": 97.1, "published_total_seconds": 7200.0}


def test_the_papers_numbers_are_said_to_be_the_papers() -> None:
    """Where the paper's DE ELBo stands in, it is compared with the paper's grid and named as the paper prints it; a
    time is told only of those whose time is printed."""
    first = [row("map-gs", 97.1, **PRINTED), row("de-elbo", NAN, published_mean=96.8, published_total_seconds=3600.0)]
    other = [row("map-gs", 90.0, n=100, published_mean=90.0), row("de-elbo", NAN, n=100, published_mean=92.5)]
    (sentence,) = told(overview=[*first, *other])
    assert sentence == (
        "As the paper prints both, the DE ELBo's mean test accuracy lies -0.3 to +2.5 points from that of MAP + grid "
        "search, over 2 combinations of dataset, N and Model; in the 1 whose time is printed, the grid takes 2.0 times "
        "as long."
    )
    (sentence,) = told(overview=other)
    assert "+2.5 points" in sentence
    assert "time" not in sentence


def test_ones_own_runs_are_not_mixed_with_the_papers() -> None:
    """Printed numbers beside one's own runs are not told, nor does a DE ELBo that was run count as the paper's."""
    shown = [row("map-gs", 97.1, **PRINTED), row("de-elbo", 90.0, published_mean=96.8)]
    (sentence,) = told(ran("map-gs", 97.1, 60), ran("de-elbo", 90.0, 60), overview=shown)
    assert "paper" not in sentence
    assert "DE ELBo reaches 90.0 %" in sentence


def test_files_that_differ_from_the_print_are_named() -> None:
    """Where the grid's recomputed mean is not the printed one within its rounding, both are told."""
    paper = row("de-elbo", NAN, published_mean=96.8)
    assert len(told(overview=[row("map-gs", 97.2, **PRINTED), paper])) == 1
    _, sentence = told(overview=[row("map-gs", 96.5, **PRINTED), paper])
    assert sentence.endswith("Oxford-IIIT Pet, N = 3,441, L2-SP: 96.5 against 97.1 %.")


def test_lost_runs_are_told() -> None:
    """How many runs failed and diverged, of which method and where; of many the first are named."""
    (sentence,) = told(overview=[row("map-gs", 92.0, failed=2, diverged=1), row("elbo", 92.0)])
    assert sentence == (
        "Lost runs: 2 failed (MAP + GS, Oxford-IIIT Pet, N = 3,441, L2-SP); 1 diverged (MAP + GS, Oxford-IIIT Pet, "
        "N = 3,441, L2-SP). Failed runs do not count; diverged ones do, as they ended."
    )
    (sentence,) = told(overview=[row("map-gs", 92.0, failed=1, n=100 + i) for i in range(6)])
    assert sentence.count("1 failed") == 4
    assert "; 2 more, see table 3." in sentence
    assert told(overview=[row("de-elbo", NAN, failed=NAN, diverged=NAN)]) == []


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([3.0], "after 3.0 times its compute time (1 cell). A cell"),
        ([3.0, 5.0], "after 4.0 times its compute time (median of 2 cells; 3.0 to 5.0). A cell"),
        ([3.0, INF], "after 3.0 times its compute time (1 cell), and never in 1 cell. A cell"),
        ([INF, INF], "never in 2 cells. A cell"),
        ([INF, NAN], "never in 1 cell. A cell"),
    ],
)
def test_equal_compute_in_one_sentence(ratios: list[float], words: str) -> None:
    """How long the grid takes to the DE ELBo's accuracy, in how many cells, and in how many it never gets there."""
    (sentence,) = told(overview=[GRID], met=[equal(ratio) for ratio in ratios])
    assert f"is expected to reach the DE ELBo's accuracy {words}" in sentence


def test_equal_compute_without_a_curve_is_not_told() -> None:
    """Where no cell has a curve, or evaluation was counted, the sentence is left out."""
    assert told(overview=[GRID], met=[equal(NAN), equal(2.0, cost="full")]) == []


def test_equal_compute_with_the_papers_de_elbo_says_so() -> None:
    """Beside the paper's DE ELBo the sentence says that it is the paper's; beside one that was run it does not."""
    for origin in ("paper", "run"):
        (sentence,) = told(overview=[GRID], met=[equal(2.0, origin), equal(3.0, origin)])
        assert ("as the paper prints it" in sentence) == (origin == "paper")


def test_one_cell_is_no_claim() -> None:
    """A single cell is not tested, and the report says so; without any there is no sentence."""
    one = [compared(unit, 1, p=NAN, least_p=1.0) for unit in ("split", "mean")]
    assert told(overview=[GRID], tests=one) == ["DE ELBo against MAP + GS: one cell, from which no claim can be made."]
    others = [
        compared("split", 9, method="elbo"),
        compared("split", 9, prior="ptyl"),
        compared("split", 9, measure="time"),
    ]
    assert told(overview=[GRID], tests=others) == []


def test_few_cells_show_nothing() -> None:
    """With so few cells that p cannot fall below 0.05 the sentence says that nothing is shown."""
    (sentence,) = told(overview=[GRID], tests=[compared("split", 5, p=0.0625), compared("mean", 2)])
    assert "paired over 5 cells (splits, which share their test images)" in sentence
    assert sentence.endswith("p cannot fall below 0.062, so nothing is shown either way.")


def test_enough_cells_are_a_test() -> None:
    """With enough cells the sentence has their number, median, range and p; by means over splits if these suffice."""
    (sentence,) = told(overview=[GRID], tests=[compared("split", 18), compared("mean", 6, median=-0.5)])
    assert sentence == (
        "DE ELBo against MAP + GS, paired over 6 cells (means over splits): median difference -0.50 points "
        "(-1.00 to +0.50), Wilcoxon p = 0.03."
    )
    (sentence,) = told(overview=[GRID], tests=[compared("split", 18), compared("mean", 5)])
    assert "paired over 18 cells (splits, which share their test images)" in sentence
    assert sentence.endswith("as these cells are not independent, p is too small by an unknown amount.")


def test_sources_are_told_apart() -> None:
    """Of several sources each sentence begins with its own; of one it does not, and none hears of another's numbers."""
    runs = [ran(name, 90.0 + i, 60, source=source) for i, source in enumerate("ab") for name in ("map-gs", "de-elbo")]
    both = told(*runs, met=[equal(2.0, source="b")], tests=[compared("split", 18, source="a")])
    assert [sentence[:3] for sentence in both] == ["a: ", "a: ", "b: ", "b: "]
    for sentence, words in zip(both, ("90.0 %", "Wilcoxon", "91.0 %", "2.0 times"), strict=True):
        assert words in sentence
    (alone,) = told(*(run for run in runs if run["source"] == "a"))
    assert not alone.startswith("a: ")
