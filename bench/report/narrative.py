"""Findings of a report in sentences, computed from its tables: one template per finding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.results.configurations import CELL, PROBLEM
from bench.results.frame import sort_rows

__all__ = ["describe_findings"]


MAX_LISTED = 4
PRINT_TOLERANCE = 0.25
"""Percentage points by which a recomputed accuracy differs from the printed one by more than rounding."""
Tables = Mapping[str, pd.DataFrame]


def describe_findings(tables: Tables) -> list[str]:
    """Describe the findings of each source in the tables of a report.

    Args:
        tables: results, overview, equal_compute and paired_tests; where all methods are compared also budgets, time_to
            and ranking. `bench.report.build` computes them; any may be empty.
    """
    sources = sorted(set().union(*(table["source"] for table in tables.values())))
    lines = []
    for source in sources:
        own = {name: table[table["source"] == source] for name, table in tables.items()}
        for describe in FINDINGS + COMPARISON_FINDINGS * ("ranking" in tables):
            lines += [f"{source}: {line}" if len(sources) > 1 else line for line in describe(own)]
    return lines


def _accuracy_and_time(tables: Tables) -> Iterator[str]:
    """Means over the splits that both methods have."""
    accuracy, seconds = (
        tables["results"].pivot_table(value, CELL, "method").reindex(columns=["map-gs", "de-elbo"]).dropna()
        for value in ("test_acc", "total_seconds")
    )
    means = accuracy.join(seconds.add_suffix("_seconds")).groupby(PROBLEM).mean()
    if len(means):
        ratio = means["map-gs_seconds"] / means["de-elbo_seconds"].clip(lower=1e-9)
        yield f"The {_difference(100 * (means['de-elbo'] - means['map-gs']), ratio)}"


def _printed(tables: Tables) -> Iterator[str]:
    """The paper's own numbers where its DE ELBo replaces runs, and recomputed numbers that differ from them."""
    overview = tables["overview"]
    grids = overview[overview["method"] == "map-gs"]
    both = overview[overview["mean"].isna()].merge(grids, on=PROBLEM, suffixes=("", "_grid"))
    if both.empty:
        return
    ratio = both["published_total_seconds_grid"] / both["published_total_seconds"]
    yield f"As printed in the paper, the {_difference(both['published_mean'] - both['published_mean_grid'], ratio)}"
    differing = grids[(grids["mean"] - grids["published_mean"]).abs() >= PRINT_TOLERANCE].to_dict("records")
    pairs = [f"{_problem(row)}: {row['mean']:.1f} against {row['published_mean']:.1f} %" for row in differing]
    if pairs:
        yield f"The files and the printed table 3 differ. {'; '.join(pairs)}."


def _lost(tables: Tables) -> Iterator[str]:
    lost = [
        f"{row[status]:.0f} {status} ({method_name(row['method'])}, {_problem(row)})"
        for row in tables["overview"].to_dict("records")
        for status in ("failed", "diverged")
        if row[status] > 0
    ]
    if lost:
        more = f"; {len(lost) - MAX_LISTED} more, see table 3" if len(lost) > MAX_LISTED else ""
        yield f"Lost runs: {'; '.join(lost[:MAX_LISTED])}{more}. Failed runs are not counted, diverged ones are."


def _equal_compute(tables: Tables) -> Iterator[str]:
    equal = tables["equal_compute"]
    known = equal[equal["cost"] == "train"].dropna(subset="times_as_long")
    ratio = known.loc[_is_finite(known["times_as_long"]), "times_as_long"]
    parts = (
        [f"in {_count(len(ratio), 'cell')} after {_span(ratio, '.1f')} times its compute time"] if len(ratio) else []
    )
    parts += [f"in {_count(len(known) - len(ratio), 'cell')} never"] if len(known) > len(ratio) else []
    if parts:
        paper = " (as printed in the paper)" if (known["de_elbo_from"] == "paper").all() else ""
        yield (
            "With its configurations tried one at a time, MAP + grid search is expected to reach the DE ELBo's accuracy"
            f"{paper} {', '.join(parts)}. A cell is a dataset, N, Model and split."
        )


def _significance(tables: Tables) -> Iterator[str]:
    """Test of the accuracies over all priors; by means over splits if there are at least six."""
    tests = tables["paired_tests"]
    rows = tests[(tests["method"] == "de-elbo") & (tests["against"] == "map-gs") & (tests["prior"] == "all")]
    rows = rows[(rows["measure"] == "accuracy") & ((rows["unit"] == "split") | (rows["cells"] >= 6))]
    for row in rows.dropna(subset="p").sort_values("unit").head(1).to_dict("records"):
        kind, caveat = "means over splits", ""
        if row["unit"] == "split":
            kind, caveat = "splits", "; splits share their test images, so the true p is higher by an unknown amount"
        if row["least_p"] > 0.05:
            caveat = f"; with so few cells p cannot fall below {row['least_p']:.2g}, so nothing is shown either way"
        yield (
            f"DE ELBo against MAP + grid search, paired over {_count(row['cells'], 'cell')} ({kind}): median "
            f"difference {row['median']:+.2f} points ({row['least']:+.2f} to {row['most']:+.2f}), Wilcoxon p = "
            f"{row['p']:.2g}{caveat}."
        )


def _best_at_budgets(tables: Tables) -> Iterator[str]:
    """Highest mean accuracy over all problems at each budget; of a single problem where there is one."""
    budgets = tables["budgets"]
    means = budgets[(budgets["dataset"] == "all") & (budgets["prior"] == "all")]
    table = means if len(means) else budgets
    if len(means) or len(budgets[PROBLEM].drop_duplicates()) == 1:
        best = table[table["best"]].groupby("budget_runs")["method"].agg(_join)
        winners = [
            f"{name} ({_span(runs, 'd', '-')} runs)" for name, runs in best.index.to_series().groupby(best, sort=False)
        ]
        lacking = sorted(set(tables["time_to"]["method"]) - set(table["method"]))
        more = f"; not averaged, for lack of a result in some: {_join(lacking)}" if lacking else ""
        yield f"Best at each budget over {_problems(table['problems'].max())}: {', '.join(winners)}{more}."


def _first_ranked(tables: Tables) -> Iterator[str]:
    """Lowest mean rank over all cells, or if no two methods have all, over the shared ones."""
    rows = tables["ranking"][tables["ranking"]["prior"] == "all"]
    if rows.empty:
        return
    rows = rows[rows["over"] == rows["over"].iloc[0]]
    first = rows[rows["mean_rank"] <= rows["mean_rank"].min() + 1e-9]
    row = first.iloc[0]
    certainty = "one problem, from which no claim can be made"
    if row["problems"] > 1:
        certainty = (
            f"95 % interval {first['rank_low'].min():.1f} to {first['rank_high'].max():.1f}, first in "
            f"{_span(100 * first['p_first'], '.0f')} % of resamplings of {row['problems']} problems"
        )
        certainty += f"; Friedman p = {row['friedman_p']:.2g}" if row["friedman_p"] > 0 else ""
    yield (
        f"Lowest mean rank of final accuracy: {_join(first['method'])}, {row['mean_rank']:.1f} of {row['methods']} "
        f"methods over {_count(row['cells'], 'cell')} ({certainty})."
    )


def _soonest(tables: Tables) -> Iterator[str]:
    """Methods that are first near the best final accuracy in the most problems."""
    near = tables["time_to"][_is_finite(tables["time_to"]["seconds"])]
    if near.empty:
        return
    soonest = near[near["seconds"] <= near.groupby(PROBLEM)["seconds"].transform("min") * (1 + 1e-9)]
    counts = soonest.groupby("method").size()
    names = sort_rows(counts[counts == counts.max()].index.to_frame(index=False))["method"]
    runs = _span(soonest.groupby("method")["runs"].median()[names], ".1f")
    yield (
        f"Soonest within 0.5 points of the best final accuracy: {_join(names)}, in {counts.max()} of "
        f"{_problems(len(near[PROBLEM].drop_duplicates()))}, after a median of {runs} runs of compute."
    )


FINDINGS = (_accuracy_and_time, _printed, _lost, _equal_compute, _significance)
COMPARISON_FINDINGS = (_best_at_budgets, _first_ranked, _soonest)


def _is_finite(values: pd.Series) -> pd.Series:
    return values.astype("float64").abs() < np.inf


def _difference(points: pd.Series, ratio: pd.Series) -> str:
    ratio = ratio.dropna()
    times = f"; the grid's training takes {_span(ratio, '.1f')} times as long" if len(ratio) else ""
    return (
        f"DE ELBo's mean test accuracy lies {_span(points, '+.1f')} points (median {points.median():+.1f}) from that "
        f"of MAP + grid search, over {_problems(len(points))}{times}."
    )


def _problem(row: dict[Any, Any]) -> str:
    return f"{dataset_name(row['dataset'])}, N = {row['n']:,}, {PRIOR_NAMES.get(row['prior'], row['prior'])}"


def _problems(count: int) -> str:
    return f"{_count(count, 'combination')} of dataset, N and Model"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _span(values: pd.Series, form: str, separator: str = " to ") -> str:
    """Minimum and maximum, or one number if they look the same."""
    return separator.join(dict.fromkeys((format(values.min(), form), format(values.max(), form))))


def _join(methods: Iterable[str]) -> str:
    return ", ".join(map(method_name, methods))
