"""Paired tests: against scipy, against all signs of the differences, and Holm's correction by hand."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, wilcoxon

from bench.results.paired_tests import compute_paired_tests, select_results
from tests.helpers.result_frames import make_frame, trial

pytestmark = pytest.mark.filterwarnings("error")


def results(*rows: dict[str, Any]) -> pd.DataFrame:
    """Make a table of trials from the columns that matter."""
    return make_frame(*rows, stage="run", objective=0.0, train_seconds=1.0)


def runs(method: str, accuracy: Sequence[float], first: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Make a run of a method on each of the datasets d0, d1, ..., or from ``first`` on."""
    return [{"method": method, "dataset": f"d{first + i}", "test_acc": acc} | more for i, acc in enumerate(accuracy)]


def timed(method: str, seconds: Sequence[float]) -> list[dict[str, Any]]:
    return [row | {"train_seconds": s} for row, s in zip(runs(method, [0.5] * len(seconds)), seconds, strict=True)]


def rows(frame: pd.DataFrame, **where: Any) -> list[dict[str, Any]]:
    """Return the rows of the paired tests with some values; default: over splits, of accuracy, for all priors."""
    table = compute_paired_tests(select_results(frame))
    for name, value in ({"unit": "split", "measure": "accuracy", "prior": "all"} | where).items():
        table = table[table[name] == value]
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def p_over_all_signs(difference: Sequence[float]) -> float:
    """Return the p of the signed-rank test over all 2^n signs of the differences; zeros are left out."""
    values = [round(value, 9) for value in difference if round(value, 9)]
    ranks = rankdata(np.abs(values))
    seen = ranks[np.array(values) > 0].sum()
    sums = np.array([ranks[np.array(signs, dtype=bool)].sum() for signs in product((0, 1), repeat=len(values))])
    return float(min(1.0, 2 * min((sums >= seen - 1e-9).mean(), (sums <= seen + 1e-9).mean())))


def test_selected_results() -> None:
    """A grid's accuracy is that of its retrained best; its time is that of all tuning and of this retraining."""
    tuned = [trial("map-gs", "tune", nll, s, learning_rate=s) for nll, s in ((2.0, 10.0), (1.0, 20.0))]
    retrained = trial("map-gs", "retrain", 0.7, 40.0, learning_rate=20.0)
    elbo = [trial("elbo", "run", loss, 1.0, test_acc=accuracy) for loss, accuracy in ((2.0, 0.8), (1.0, 0.6))]
    table = select_results(make_frame(*tuned, retrained, *elbo))[["method", "test_acc", "total_seconds"]]
    assert table.to_numpy().tolist() == [["elbo", 0.6, 2], ["map-gs", 0.7, 70]]
    assert select_results(make_frame(*tuned, *elbo))["method"].tolist() == ["elbo"]


@pytest.mark.parametrize("cells", [2, 5, 9, 20, 60])
def test_p_agrees_with_scipy(cells: int) -> None:
    """p is that of scipy's Wilcoxon test of the differences in accuracy, and of the logarithms of time ratios."""
    random = np.random.default_rng(cells)
    a, b = random.uniform(0, 1, (2, cells))
    frame = results(*runs("map-gs", a), *runs("de-elbo", b))
    (row,) = rows(frame)
    assert row["p"] == pytest.approx(wilcoxon(b - a).pvalue, rel=1e-12)
    assert (row["method"], row["against"], row["cells"]) == ("de-elbo", "map-gs", cells)
    assert [row["median"], row["least"], row["most"]] == pytest.approx(
        [100 * np.median(b - a), 100 * min(b - a), 100 * max(b - a)]
    )
    assert (row["better"], row["worse"]) == ((b > a).sum(), (b < a).sum())
    assert row["least_p"] == pytest.approx(2 / 2**cells)
    (row,) = rows(results(*timed("map-gs", a), *timed("de-elbo", b)), measure="time")
    assert row["p"] == pytest.approx(wilcoxon(np.log(b / a)).pvalue, rel=1e-12)
    assert [row["least"], row["most"]] == pytest.approx([min(b / a), max(b / a)])
    assert (row["better"], row["worse"]) == ((b < a).sum(), (b > a).sum())


DISTINCT = ([1, 2], [1, -2, 4, 8], [5, 6, 7, 8, 9], [-1, 2, 3, 4, 5, 6])
TIED = ([1, 1, 1, -1], [2, 2, -2, 3, 3, 7], [0, 0, 4, 5, -1], [0, 3, 3, -1, 2, 8, -8])


@pytest.mark.parametrize("points", [*DISTINCT, *TIED])
def test_p_agrees_with_all_signs(points: list[int]) -> None:
    """For few cells p is exact, with ties and with zeros, which are left out as Wilcoxon does."""
    frame = results(*runs("map-gs", [0.5] * len(points)), *runs("de-elbo", [0.5 + i / 100 for i in points]))
    (row,) = rows(frame)
    assert row["p"] == pytest.approx(p_over_all_signs(points))


def test_zeros_are_left_out_of_many_cells_too() -> None:
    """Ten cells without a difference change nothing about the five with one."""
    ours = [0.5] * 10 + [0.51, 0.52, 0.53, 0.54, 0.55]
    (row,) = rows(results(*runs("map-gs", [0.5] * 15), *runs("de-elbo", ours)))
    assert row["p"] == pytest.approx(p_over_all_signs([1, 2, 3, 4, 5])) == pytest.approx(2 / 32)


def test_holms_correction_by_hand() -> None:
    """p = 5/32, 1/32 and 1/32 of six cells become 5/32, 3/32, and 3/32 again, not 2/32."""
    de_elbo = 0.5 + np.array([0.01, 0.02, -0.03, 0.04, 0.05, 0.06])
    elbo = de_elbo + np.array([0.11, 0.12, 0.13, 0.14, 0.15, 0.16])
    found = rows(results(*runs("map-gs", [0.5] * 6), *runs("de-elbo", de_elbo), *runs("elbo", elbo)))
    pairs = [(row["method"], row["against"]) for row in found]
    assert pairs == [("de-elbo", "map-gs"), ("elbo", "map-gs"), ("elbo", "de-elbo")]
    assert [row["p"] for row in found] == pytest.approx([5 / 32, 1 / 32, 1 / 32])
    assert [row["p_holm"] for row in found] == pytest.approx([5 / 32, 3 / 32, 3 / 32])


def test_holms_correction_counts_existing_tests() -> None:
    """It is over all rows of a source, measure and unit; pairs without a test do not count."""
    random = np.random.default_rng(0)
    frame = results(
        *[row for method in ("map-gs", "de-elbo", "elbo") for row in runs(method, random.uniform(0, 1, 7))],
        *[row for method in ("map-gs", "de-elbo") for row in runs(method, random.uniform(0, 1, 7), prior="ptyl")],
        *runs("elbo", [0.5], prior="ptyl"),
    )
    table = compute_paired_tests(select_results(frame))
    assert set(table["prior"]) == {"all", "l2-sp", "ptyl"}
    assert len(table) == 2 * 2 * 3 * 3
    assert table["p"].isna().sum() == 2 * 2 * 2
    for _, group in table.groupby(["source", "measure", "unit"]):
        known, highest = group.dropna(subset="p").sort_values("p", kind="stable"), 0.0
        for place, row in enumerate(known.itertuples()):
            highest = max(highest, min(1.0, (len(known) - place) * row.p))
            assert row.p_holm == pytest.approx(highest)
        assert group.loc[group["p"].isna(), "p_holm"].isna().all()


def test_one_cell_has_no_p() -> None:
    """With one cell there is a difference, and no p."""
    (row,) = rows(results(*runs("map-gs", [0.5]), *runs("de-elbo", [0.6])))
    assert row["median"] == row["least"] == row["most"] == pytest.approx(10)
    assert math.isnan(row["p"])
    assert math.isnan(row["p_holm"])
    assert (row["cells"], row["better"], row["worse"], row["least_p"]) == (1, 1, 0, 1)


def test_no_difference_gives_p_of_1() -> None:
    """If all differences are zero but for rounding, p = 1, and neither is better."""
    for ours in ([0.3] * 4, [0.1 + 0.2] * 4):
        (row,) = rows(results(*runs("map-gs", [0.3] * 4), *runs("de-elbo", ours)))
        assert (row["p"], row["p_holm"], row["better"], row["worse"]) == (1, 1, 0, 0)


@pytest.mark.parametrize("cells", [2, 5, 10, 14, 60])
def test_ties_and_zeros_raise_no_warning(cells: int) -> None:
    """Accuracies on few test images tie often: p is a number, and there is no warning."""
    ours = [0.5 + (i % 3) / 10 for i in range(cells)]
    for found in (ours, [0.5] * (cells - 1) + [0.6], [0.6] * cells):
        (row,) = rows(results(*runs("map-gs", [0.5] * cells), *runs("de-elbo", found)))
        assert row["least_p"] <= row["p"] <= 1


@pytest.mark.parametrize("other", [{"backbone": "c"}, {"n": 10}, {"prior": "ptyl"}, {"source": "s"}])
def test_only_shared_cells_are_compared(other: dict[str, Any]) -> None:
    """A dataset, backbone, prior, N or source that one method lacks is left out."""
    shared = [*runs("map-gs", [0.5] * 4), *runs("de-elbo", [0.6] * 4, first=2)]
    for unit in ("split", "mean"):
        (row,) = rows(results(*shared), unit=unit)
        assert (row["cells"], row["better"]) == (2, 2)
        assert rows(results(*runs("map-gs", [0.5] * 4), *runs("de-elbo", [0.6] * 4, **other)), unit=unit) == []


def test_sources_are_tested_apart() -> None:
    """Each source has rows and a correction of its own."""
    grids = [*runs("map-gs", [0.5] * 3, source="a"), *runs("map-gs", [0.5] * 3, source="b")]
    found = rows(results(*grids, *runs("elbo", [0.6] * 3, source="a"), *runs("elbo", [0.4] * 3, source="b")))
    wins = [(row["source"], row["cells"], row["better"], row["worse"]) for row in found]
    assert wins == [("a", 3, 3, 0), ("b", 3, 0, 3)]
    assert [row["p_holm"] for row in found] == [row["p"] for row in found] == pytest.approx([0.25, 0.25])


def test_means_over_splits() -> None:
    """By means two seeds of a dataset are one cell: the mean of accuracies, the geometric mean of times."""
    grids = [*runs("map-gs", [0.5] * 2), *runs("map-gs", [0.5] * 2, seed=2)]
    ours = [*runs("elbo", [0.6] * 2), *runs("elbo", [0.8] * 2, seed=2, train_seconds=16.0)]
    frame = results(*grids, *ours)
    (split,), (mean,) = rows(frame), rows(frame, unit="mean")
    assert (split["cells"], mean["cells"]) == (4, 2)
    assert (split["least"], split["most"]) == (pytest.approx(10), pytest.approx(30))
    assert (mean["least"], mean["most"]) == (pytest.approx(20), pytest.approx(20))
    (time,) = rows(frame, unit="mean", measure="time")
    assert (time["least"], time["most"], time["worse"]) == (pytest.approx(4), pytest.approx(4), 2)


def test_means_are_over_shared_splits() -> None:
    """A split that one method lacks is left out of the mean of the other."""
    frame = results(*runs("map-gs", [0.5]), *runs("map-gs", [0.9], seed=2), *runs("de-elbo", [0.6]))
    (row,) = rows(frame, unit="mean")
    assert row["median"] == pytest.approx(10)
    assert (row["better"], row["worse"]) == (1, 0)


def test_time_ratios_are_symmetric() -> None:
    """Half the time in one cell and twice in another has the median 1."""
    (row,) = rows(results(*timed("map-gs", [1, 2]), *timed("de-elbo", [2, 1])), measure="time")
    assert (row["least"], row["median"], row["most"]) == (pytest.approx(0.5), pytest.approx(1), pytest.approx(2))


POINTS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=5)


@settings(max_examples=10, deadline=None)
@given(POINTS)
def test_tests_are_two_sided(points: list[tuple[int, int]]) -> None:
    """Exchanging the methods' results turns the sign and keeps p; least_p <= p <= p_holm <= 1."""
    accuracy = [[0.3 + one / 100 for one in both] for both in zip(*points, strict=True)]
    seconds = [[2.0**one for one in both] for both in zip(*points, strict=True)]
    for (a, b), measure, make in ((accuracy, "accuracy", runs), (seconds, "time", timed)):
        (there,) = rows(results(*make("map-gs", a), *make("de-elbo", b)), measure=measure)
        (back,) = rows(results(*make("map-gs", b), *make("de-elbo", a)), measure=measure)
        turned = [-there["most"], -there["least"]] if measure == "accuracy" else [1 / there["most"], 1 / there["least"]]
        assert [back["least"], back["most"]] == pytest.approx(turned)
        assert (back["better"], back["worse"], back["p"]) == (
            there["worse"],
            there["better"],
            pytest.approx(there["p"]),
        )
        assert 0 < there["least_p"] <= there["p"] <= there["p_holm"] <= 1


def test_no_results_give_no_rows() -> None:
    """No results, or those of one method, give an empty table with its columns."""
    for frame in (results(*runs("elbo", [0.5])).iloc[:0], results(*runs("elbo", [0.5, 0.6]))):
        assert compute_paired_tests(select_results(frame)).empty
        assert {"p", "p_holm", "median"} <= set(compute_paired_tests(select_results(frame)).columns)
