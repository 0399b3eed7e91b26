"""Best method at each compute budget, and the compute that each method needs to come near the best final accuracy."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from bench.labels import PRIOR_NAMES
from bench.results.anytime import MeanCurve, iterate_mean_curves
from bench.results.configurations import PROBLEM, iterate_configurations
from bench.results.frame import sort_rows

GRID = "map-gs"
BUDGET_TOLERANCE = 1.1
"""A budget of k runs is 10 % more than k mean runs, as the durations of equal runs vary by that much."""
MAX_DOUBLINGS = 16
TIMES = ["dataset", "prior", "method", "n", "final_acc", "target_acc", "seconds", "runs", "seeds", "backbone", "source"]
BUDGETS = ["dataset", "prior", "method", "n", "budget_runs", "budget_seconds", "test_acc", "relative_acc", "best"]
BUDGETS += ["problems", "backbone", "source"]
RunSeconds: TypeAlias = Mapping[tuple[Any, ...], float]
"""Mean seconds of one run on each problem, by the values of `PROBLEM`."""


def compute_run_seconds(frame: pd.DataFrame, cost: str = "full") -> dict[tuple[Any, ...], float]:
    """Compute `RunSeconds` from the grid's tuning runs, or without a grid from all runs trained to their end."""
    grids, others = dict[tuple[Any, ...], list[float]](), dict[tuple[Any, ...], list[float]]()
    for cell, tried in iterate_configurations(frame, cost):
        group = grids if cell["method"] == GRID else others
        group.setdefault(_key(cell), []).extend(tried.tuning_seconds[~tried.stopped_early])
    return {problem: float(np.mean(seconds)) for problem, seconds in (others | grids).items() if seconds}


def select_comparable(curves: Mapping[str, MeanCurve]) -> dict[str, MeanCurve]:
    """Select the curves of methods that have every split seed of the problem and a known final accuracy."""
    seeds = frozenset[int]().union(*(curve.seeds for curve in curves.values()))
    return {name: curve for name, curve in curves.items() if curve.seeds == seeds and math.isfinite(curve.final)}


def compute_time_to_target(steps: pd.DataFrame, run_seconds: RunSeconds, tolerance: float = 0.005) -> pd.DataFrame:
    """Compute the first time at which each method's mean is within ``tolerance`` of the best final one: time_to.csv.

    It is infinite if never, and missing if the method lacks a split seed or its final accuracy is unknown.
    """
    rows = []
    for problem, curves in iterate_mean_curves(steps):
        comparable = select_comparable(curves)
        target = max((curve.final for curve in comparable.values()), default=math.nan) - tolerance
        for method, curve in curves.items():
            reached = curve.seconds[curve.accuracy >= target - 1e-9]
            seconds = (float(reached[0]) if len(reached) else math.inf) if method in comparable else math.nan
            row = {"method": method, "final_acc": curve.final, "target_acc": target, "seeds": len(curve.seeds)}
            row |= {"seconds": seconds, "runs": seconds / run_seconds.get(_key(problem), math.nan)}
            rows.append(problem | row)
    return sort_rows(pd.DataFrame(rows, columns=TIMES))


def compute_budgets(steps: pd.DataFrame, run_seconds: RunSeconds) -> pd.DataFrame:
    """Compute the accuracy of each method with the compute of 1, 2, 4, 8, ... runs: budgets.csv.

    Its relative accuracy is the ratio to the final accuracy of MAP + grid search, or without a grid of the best method.
    Further rows with dataset "all" are means over all problems, and over those of each prior if there are several, of
    methods that have a result in each. Methods that lack a split seed are left out.
    """
    problems = [
        (problem, curves, seconds)
        for problem, all_curves in iterate_mean_curves(steps)
        if (curves := select_comparable(all_curves)) and (seconds := run_seconds.get(_key(problem)))
    ]
    longest = max([1.0, *(curve.ends / seconds for _, curves, seconds in problems for curve in curves.values())])
    doublings = min(max(math.ceil(math.log2(longest / BUDGET_TOLERANCE)), 0), MAX_DOUBLINGS)
    rows = []
    for problem, curves, seconds in problems:
        reference = curves[GRID].final if GRID in curves else max(curve.final for curve in curves.values())
        for runs in (2**i for i in range(doublings + 1)):
            budget = runs * BUDGET_TOLERANCE * seconds
            for method, curve in curves.items():
                accuracy = float(curve.at(np.array([budget]))[0])
                row = {"method": method, "budget_runs": runs, "budget_seconds": budget, "problems": 1}
                rows.append(problem | row | {"test_acc": accuracy, "relative_acc": accuracy / reference})
    table = pd.DataFrame(rows, columns=[name for name in BUDGETS if name != "best"]).dropna(subset="test_acc")
    table = pd.concat([sort_rows(table.astype({"n": "Int64"}), "budget_runs"), *_means(table)], ignore_index=True)
    highest = table.groupby([*PROBLEM, "budget_runs"], dropna=False)["relative_acc"].transform("max")
    return table.assign(best=table["relative_acc"] >= highest - 1e-9)[BUDGETS]


def _means(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Means over all problems of a source, then over those of each prior if there are several."""
    for _, of in table.groupby("source", sort=False):
        priors = [prior for prior in PRIOR_NAMES if (of["prior"] == prior).any()]
        for prior in ["all", *(priors if len(priors) > 1 else [])]:
            group = of if prior == "all" else of[of["prior"] == prior]
            count = len(group[PROBLEM].drop_duplicates())
            if count < 2:
                continue
            by = group.groupby(["source", "method", "budget_runs"], sort=False)
            mean = by.agg(
                relative_acc=("relative_acc", "mean"), budget_seconds=("budget_seconds", "mean"), problems=("n", "size")
            ).reset_index()
            backbone = " ".join(group["backbone"].unique())
            mean = mean[mean["problems"] == count].assign(dataset="all", prior=prior, backbone=backbone)
            yield sort_rows(mean.assign(n=pd.array([pd.NA] * len(mean), dtype="Int64")), "budget_runs")


def _key(problem: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(problem[name] for name in PROBLEM)
