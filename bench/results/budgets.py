"""Which method is best with how much compute, and how much each needs to come near the best. From anytime curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.labels import PRIOR_NAMES
from bench.results.anytime import MeanCurve, mean_curves
from bench.results.configurations import PROBLEM, configurations
from bench.results.frame import sort_rows

__all__ = ["GRID", "SLACK", "budgets", "compared", "run_seconds", "time_to"]


GRID = "map-gs"
SLACK = 1.1
"""A budget of k runs is 10 % more than k mean runs: runs of the same length differ by that much from noise alone."""
MOST_OCTAVES = 16
TIMES = ["dataset", "prior", "method", "n", "final_acc", "target_acc", "seconds", "runs", "seeds", "backbone", "source"]
BUDGETS = ["dataset", "prior", "method", "n", "budget_runs", "budget_seconds", "test_acc", "relative_acc", "best"]
BUDGETS += ["problems", "backbone", "source"]


def run_seconds(frame: pd.DataFrame, cost: str = "full") -> dict[tuple[Any, ...], float]:
    """Mean seconds of one run in each problem, keyed by `PROBLEM`: of the grid's tuning runs where there is a grid,
    else of all runs that were trained to their end."""
    grids, others = dict[tuple[Any, ...], list[float]](), dict[tuple[Any, ...], list[float]]()
    for cell, found in configurations(frame, cost):
        where = grids if cell["method"] == GRID else others
        where.setdefault(tuple(cell[name] for name in PROBLEM), []).extend(found.tuning[~found.given_up])
    return {where: float(np.mean(seconds)) for where, seconds in (others | grids).items() if seconds}


def compared(found: Mapping[str, MeanCurve]) -> dict[str, MeanCurve]:
    """Of the mean curves of a problem those that can be compared: of methods that have every split seed that any has,
    and of which it is known what they come to."""
    seeds = frozenset[int]().union(*(curve.seeds for curve in found.values()))
    return {name: curve for name, curve in found.items() if curve.seeds == seeds and math.isfinite(curve.final)}


def time_to(table: pd.DataFrame, unit: Mapping[tuple[Any, ...], float], within: float = 0.005) -> pd.DataFrame:
    """How long each method takes to come within so much of the best final accuracy of a problem.

    One row a problem and method. Columns: dataset, prior, method, n; final_acc, its mean accuracy at its end (0 to 1);
    target_acc = the best of all methods' less ``within``; seconds, the least at which its mean accuracy is no less
    than the target: infinity where it never is, missing where the method lacks a split seed that another has, or
    where it is not known what it comes to; runs, the same in mean runs; seeds, how many; backbone, source.

    Args:
        table: as `bench.results.anytime.steps` gives.
        unit: as `run_seconds` gives.
        within: accuracy, 0 to 1.
    """
    rows = []
    for where, found in mean_curves(table):
        fair = compared(found)
        target = max((curve.final for curve in fair.values()), default=math.nan) - within
        for method, curve in found.items():
            known = {"method": method, "final_acc": curve.final, "target_acc": target, "seeds": len(curve.seeds)}
            enough = curve.seconds[curve.accuracy >= target - 1e-9]
            seconds = (float(enough[0]) if len(enough) else math.inf) if method in fair else math.nan
            rows.append(where | known | {"seconds": seconds, "runs": seconds / _unit(unit, where)})
    return sort_rows(pd.DataFrame(rows, columns=TIMES))


def budgets(table: pd.DataFrame, unit: Mapping[tuple[Any, ...], float]) -> pd.DataFrame:
    """What each method has reached with the compute of 1, 2, 4, 8 ... runs: budgets.csv.

    One row a problem, budget and method that has a result by then. Columns: dataset, prior, method, n; budget_runs;
    budget_seconds, that many mean runs and 10 % more; test_acc, its mean (0 to 1); relative_acc, its ratio to the
    final accuracy of MAP + grid search, or of the best method where there is no grid; best, whether no other has more;
    problems, 1; backbone, source. Then the mean of relative_acc over problems, with dataset "all" and n missing: over
    those of each prior, where there are several, and over all (prior "all"), of methods that have a result in every
    one; problems, how many. Methods that lack a split seed that another has are left out, as in `time_to`.

    Args:
        table: as `bench.results.anytime.steps` gives.
        unit: as `run_seconds` gives.
    """
    problems = [(where, compared(found)) for where, found in mean_curves(table)]
    problems = [(where, fair) for where, fair in problems if fair and math.isfinite(_unit(unit, where))]
    ends = [curve.ends / _unit(unit, where) for where, fair in problems for curve in fair.values()]
    octaves = min(max(math.ceil(math.log2(max([*ends, 1.0]) / SLACK)), 0), MOST_OCTAVES)
    rows = []
    for where, fair in problems:
        reference = fair[GRID].final if GRID in fair else max(curve.final for curve in fair.values())
        for runs in (2**i for i in range(octaves + 1)):
            seconds = runs * SLACK * _unit(unit, where)
            for method, curve in fair.items():
                accuracy = float(curve.at(np.array([seconds]))[0])
                known = {"method": method, "budget_runs": runs, "budget_seconds": seconds, "problems": 1}
                rows.append(where | known | {"test_acc": accuracy, "relative_acc": accuracy / reference})
    made = pd.DataFrame(rows, columns=[name for name in BUDGETS if name != "best"]).dropna(subset="test_acc")
    made = pd.concat([sort_rows(made.astype({"n": "Int64"}), "budget_runs"), *_means(made)], ignore_index=True)
    keys = [*PROBLEM, "budget_runs"]
    most = made.groupby(keys, dropna=False)["relative_acc"].transform("max")
    return made.assign(best=made["relative_acc"] >= most - 1e-9)[BUDGETS]


def _means(made: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The means over all problems of a source, and over those of each prior."""
    for _, of in made.groupby("source", sort=False):
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


def _unit(unit: Mapping[tuple[Any, ...], float], where: Mapping[str, object]) -> float:
    return unit.get(tuple(where[name] for name in PROBLEM), math.nan)
