"""Best method at each budget, and time to the best accuracy, by hand on small curves."""

import math
from typing import Any

import pandas as pd
import pytest

from bench.report.all_methods import best_methods_table, relative_accuracy_table, time_to_target_table
from bench.results.budgets import compute_budgets, compute_run_seconds, compute_time_to_target
from tests.bench.results.test_anytime import CELL, Curve, stepped
from tests.helpers.result_frames import make_frame, trial

pytestmark = pytest.mark.filterwarnings("error")
INF, NAN = math.inf, math.nan


def key(**more: Any) -> tuple[Any, ...]:
    return tuple((CELL | more).values())


def problem(curves: dict[str, list[Curve]], **more: Any) -> pd.DataFrame:
    """Make the steps of several methods in one problem, a curve per seed."""
    return pd.concat([stepped(*parts, method=name, **more) for name, parts in curves.items()], ignore_index=True)


CURVES = {
    "map-gs": [[(20.0, 0.5), (40.0, 0.7), (240.0, 0.8)], [(20.0, 0.7), (40.0, 0.9), (240.0, 0.8)]],
    "de-elbo": [[(11.0, 0.7), (44.0, 0.796)], [(10.0, 0.6), (44.0, 0.8)]],
    "bo": [[(30.0, 0.4), (80.0, 0.75)], [(30.0, 0.5), (60.0, 0.805)]],
}
TEN = {key(): 10.0}


def test_time_to_target() -> None:
    """It is the first time at which the mean is within 0.5 points of the best final mean, or infinite."""
    table = compute_time_to_target(problem(CURVES), TEN).set_index("method")
    assert set(table["target_acc"].round(6)) == {0.795}
    assert table["seconds"].to_dict() == {"map-gs": 40.0, "de-elbo": 44.0, "bo": INF}
    assert table["runs"].to_dict() == {"map-gs": 4.0, "de-elbo": 4.4, "bo": INF}
    wide = compute_time_to_target(problem(CURVES), TEN, 0.05).set_index("method")["seconds"]
    assert wide.to_dict() == {"map-gs": 40.0, "de-elbo": 44.0, "bo": 80.0}


def test_a_method_that_lacks_a_split_is_not_compared() -> None:
    """It neither sets the target nor has a time or a budget, except in problems where it has all splits."""
    curves = CURVES | {"lucky": [[(1.0, 1.0)]], "lost": [[(1.0, NAN)], [(1.0, 0.9)]]}
    times = compute_time_to_target(problem(curves), TEN).set_index("method")
    assert times["target_acc"].round(6).eq(0.795).all()
    assert times["seconds"].isna().to_dict() == {name: name in ("lucky", "lost") for name in times.index}
    assert set(compute_budgets(problem(curves), TEN)["method"]) == {"map-gs", "de-elbo", "bo"}
    other = problem({"lucky": [[(1.0, 1.0)]]}, n=200)
    both = compute_budgets(pd.concat([problem(curves), other]), TEN | {key(n=200): 10.0})
    assert set(both.loc[both["n"] == 200, "method"]) == {"lucky"}


def test_budgets_by_hand() -> None:
    """At 1, 2, 4, ... runs and 10 % more there is the mean of each method with a result, and the best is marked."""
    made = compute_budgets(problem(CURVES), TEN)
    found = {
        runs: {row["method"]: (round(row["test_acc"], 4), row["best"]) for row in group.to_dict("records")}
        for runs, group in made.groupby("budget_runs")
    }
    assert found == {
        1: {"de-elbo": (0.65, True)},
        2: {"map-gs": (0.6, False), "de-elbo": (0.65, True)},
        4: {"map-gs": (0.8, True), "de-elbo": (0.798, False), "bo": (0.45, False)},
        8: {"map-gs": (0.8, True), "de-elbo": (0.798, False), "bo": (0.7775, False)},
        16: {"map-gs": (0.8, True), "de-elbo": (0.798, False), "bo": (0.7775, False)},
        32: {"map-gs": (0.8, True), "de-elbo": (0.798, False), "bo": (0.7775, False)},
    }
    assert made["relative_acc"].tolist() == pytest.approx((made["test_acc"] / 0.8).tolist())
    assert made["budget_seconds"].tolist() == pytest.approx((11 * made["budget_runs"]).tolist())


def test_means_over_problems() -> None:
    """Relative accuracies are averaged over problems in which a method has a result in every one, and by prior."""
    tables = [problem(CURVES), problem({"map-gs": [[(10.0, 0.5)]], "x": [[(10.0, 0.6)]]}, prior="ptyl")]
    tables += [problem({"map-gs": [[(40.0, 0.4)]], "x": [[(10.0, 0.3)]]}, prior="ptyl", n=7)]
    units = TEN | {key(prior="ptyl"): 10.0, key(prior="ptyl", n=7): 10.0}
    made = compute_budgets(pd.concat(tables), units)
    total = made[made["dataset"] == "all"].set_index(["prior", "budget_runs", "method"])
    assert {name for *_, name in total.loc["all"].index} == {"map-gs"}
    assert total.loc[("all", 4, "map-gs"), "relative_acc"] == pytest.approx((1 + 1 + 1) / 3)
    assert total.loc[("ptyl", 2, "x"), "relative_acc"] == pytest.approx((1.2 + 0.75) / 2)
    assert ("ptyl", 2, "map-gs") not in total.index
    assert total.loc[("ptyl", 4, "x"), ["best", "problems"]].tolist() == [False, 2]
    assert "l2-sp" not in total.index.get_level_values("prior")  # one problem is no mean


def test_without_a_grid_the_best_method_is_the_reference() -> None:
    """Without a grid, accuracies are relative to the best final one; ties are all best."""
    made = compute_budgets(problem({"a": [[(10.0, 0.4)]], "b": [[(10.0, 0.8)]], "c": [[(11.0, 0.8)]]}), TEN)
    assert made["relative_acc"].tolist() == [0.5, 1, 1]
    assert made["best"].tolist() == [False, True, True]
    (row,) = best_methods_table(made).to_dict("records")
    assert row["1 run"] == "b = c 80.0"


def test_mean_seconds_of_a_run() -> None:
    """They are of the grid's tuning runs at a cost, or without a grid of runs that were trained to their end."""
    rows = [
        trial("map-gs", "tune", 1.0, 3.0, evaluate_seconds=1.0),
        trial("map-gs", "tune", 1.0, 5.0, seed=2, evaluate_seconds=1.0),
        trial("map-gs", "retrain", 0.5, 99.0),
        trial("de-elbo", "run", 1.0, 50.0),
        trial("de-elbo", "run", 1.0, 8.0, n=7),
        trial("halving", "run", 1.0, 1.0, n=7, until=0.1),
    ]
    assert compute_run_seconds(make_frame(*rows)) == {key(): 5.0, key(n=7): 8.0}
    assert compute_run_seconds(make_frame(*rows), "train")[key()] == 4.0


def test_tables_of_the_page() -> None:
    """They have the best methods per problem, relative accuracies with a star at the best, and times in runs."""
    tables = pd.concat([problem(CURVES), problem(CURVES, n=1000)])
    units = TEN | {key(n=1000): 10.0}
    made = compute_budgets(tables, units)
    won = best_methods_table(made)
    assert list(won.columns)[5:] == ["1 run", *(f"{2**i} runs" for i in range(1, 6))]
    assert won["1 run"].tolist() == ["DE ELBo 65.0", "DE ELBo 65.0", "DE ELBo 81.2"]
    share = relative_accuracy_table(made).set_index("method")
    assert share.loc["map-gs", ["1 run", "2 runs", "32 runs"]].tolist() == ["-", "75.0", "100.0 *"]
    (near, _) = time_to_target_table(compute_time_to_target(tables, units)).to_dict("records")
    assert near["MAP + GS"] == "40.0 s = 4.0 runs"
    assert "never" in near.values()


def test_no_steps_give_no_rows() -> None:
    """Without steps, or without a known run, the tables are empty and have their columns."""
    empty = problem(CURVES).iloc[:0]
    for table in (compute_budgets(empty, {}), compute_budgets(problem(CURVES), {}), compute_time_to_target(empty, {})):
        assert table.empty
        assert {"method", "source", "prior"} <= set(table.columns)
    assert best_methods_table(compute_budgets(empty, {})).empty
    assert relative_accuracy_table(compute_budgets(empty, {})).empty
