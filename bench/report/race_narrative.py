"""Who wins the race at which budget, and at its end: two sentences from the numbers, whatever they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.results.budgets import GRID, SLACK
from bench.results.configurations import PROBLEM
from bench.results.frame import iterate_groups, sort_rows
from bench.utils.text import format_duration

__all__ = ["race_sentences"]


def race_sentences(made: pd.DataFrame, times: pd.DataFrame, ranks: pd.DataFrame) -> list[str]:
    """At most two sentences a source: which method is best at which budget; which at the end, and which is soonest near
    the best.

    Args:
        made: as `bench.results.budgets.budgets` gives.
        times: as `bench.results.budgets.time_to` gives.
        ranks: as `bench.results.ranking.ranking` gives.
    """
    told = []
    sources = list(dict.fromkeys([*made["source"], *times["source"], *ranks["source"]]))
    for source in sources:
        near = times[times["source"] == source]
        ends = "; ".join(part for part in (_ranked(ranks[ranks["source"] == source]), _soonest(near)) if part)
        words = [_by_budget(made[made["source"] == source], near), f"{ends[0].upper()}{ends[1:]}." if ends else ""]
        told += [f"{source}: {one}" if len(sources) > 1 else one for one in words if one]
    return told


def _by_budget(made: pd.DataFrame, times: pd.DataFrame) -> str:
    """The winners of all problems together, budget by budget; of the only problem where there is one. ``times``: who
    raced at all."""
    total = made[(made["dataset"] == "all") & (made["prior"] == "all")]
    alone = made[made["dataset"] != "all"]
    if total.empty:
        if alone.empty or len(alone[PROBLEM].drop_duplicates()) > 1:
            return ""
        total = alone
    best = total[total["best"]].sort_values("budget_runs", kind="stable")
    rows = [
        (
            where["budget_runs"],
            _all_of(group["method"]),
            group["relative_acc"].max(),
            group["budget_seconds"].max(),
        )
        for where, group in iterate_groups(best, ["budget_runs"])
    ]
    ends = [_stretch(list(group)) for _, group in groupby(rows, key=lambda row: row[1])]
    first = alone.iloc[0]
    count = int(total["problems"].iloc[0])
    where = f"on average over {count} combinations of dataset, N and Model" if count > 1 else f"for {_problem(first)}"
    grids = len(alone.loc[alone["method"] == GRID, PROBLEM].drop_duplicates())
    every = len(alone[PROBLEM].drop_duplicates())
    either = "the grid's, or where there is none the best method's," if grids else "the best method's"
    reference = "the grid's" if grids == every else either
    unit = f"a run takes {format_duration(rows[0][3] / rows[0][0] / SLACK)}{' on average' * (count > 1)}"
    out = _lacking(times, total) if count > 1 else ""
    early = "; with less compute no method has a result in all of them" if rows[0][0] > 1 and count > 1 else ""
    return (
        f"Best {where} ({unit}; in brackets the accuracy relative to {reference} at its end): {'; '.join(ends)}{early}"
        f"{out}."
    )


def _lacking(times: pd.DataFrame, total: pd.DataFrame) -> str:
    """Who could not be averaged over all problems: a Model that it lacks is named, if that is all."""
    left = sort_rows(times.loc[~times["method"].isin(total["method"]), ["method"]].drop_duplicates())["method"]
    if left.empty:
        return ""
    have = times[times["method"].isin(left) & times["seconds"].notna()]
    priors = [prior for prior in PRIOR_NAMES if (times["prior"] == prior).any()]
    lacked = [prior for prior in priors if not (have["prior"] == prior).any()]
    others = times.loc[~times["prior"].isin(lacked), PROBLEM].drop_duplicates()
    only = 0 < len(lacked) < len(priors) and len(have) == len(left) * len(others)
    what = _all_of(lacked, PRIOR_NAMES.__getitem__) if only else "some"
    return f"; without {', '.join(map(method_name, left))}, which lack{'s' * (len(left) == 1)} {what}"


def _stretch(rows: Sequence[tuple[int, str, float, float]]) -> str:
    """Budgets in a row that one method wins."""
    runs = "-".join(dict.fromkeys(str(row[0]) for row in (rows[0], rows[-1])))
    share = " to ".join(dict.fromkeys(f"{100 * row[2]:.1f}" for row in (rows[0], rows[-1])))
    return f"with the compute of {runs} run{'s' * (rows[-1][0] > 1)} {rows[0][1]} ({share} %)"


def _ranked(ranks: pd.DataFrame) -> str:
    """The first by mean rank, over all cells, else over those that all methods share."""
    groups = ranks[ranks["prior"] == "all"]
    groups = groups[groups["over"] == groups["over"].iloc[0]] if len(groups) else groups
    if groups.empty:
        return ""
    row = groups.sort_values("mean_rank", kind="stable").iloc[0]
    ties = groups[groups["mean_rank"] <= row["mean_rank"] + 1e-9]
    first, each = ties["method"], " each" * (len(ties) > 1)
    shares = " to ".join(
        dict.fromkeys(f"{100 * share:.0f}" for share in (ties["p_first"].min(), ties["p_first"].max()))
    )
    sure = (
        f"95 % interval {ties['rank_low'].min():.1f} to {ties['rank_high'].max():.1f}, first in {shares} %{each} of "
        f"resamplings of {row['problems']} problems"
        if row["problems"] > 1
        else "one problem, from which no claim can be made"
    )
    p = "" if math.isnan(row["friedman_p"]) else f"; Friedman p = {row['friedman_p']:.2g}"
    out = f"; without {', '.join(method_name(name) for name in row['left_out'].split(', '))}" if row["left_out"] else ""
    return (
        f"at the end {_all_of(first)} rank{'s' * (len(first) == 1)} first of {row['methods']} "
        f"methods in accuracy (mean rank {row['mean_rank']:.1f}{each} over {row['cells']} cells{out}; {sure}{p})"
    )


def _soonest(times: pd.DataFrame) -> str:
    """Who is first within reach of the best, in how many problems."""
    known = times.dropna(subset="seconds")
    near = known[known["seconds"].map(math.isfinite)]
    if near.empty:
        return ""
    soonest = near[near["seconds"] <= near.groupby(PROBLEM)["seconds"].transform("min") * (1 + 1e-9)]
    counts: pd.Series[Any] = soonest["method"].value_counts(sort=True)
    names = sort_rows(pd.DataFrame({"method": counts.index[counts == counts.iloc[0]]}))["method"]
    problems = len(near[PROBLEM].drop_duplicates())
    medians = soonest.groupby("method")["runs"].median()[names].dropna()
    points = 100 * (known.groupby(PROBLEM)["final_acc"].max() - known.groupby(PROBLEM)["target_acc"].max()).max()
    runs = dict.fromkeys(f"{median:.1f}" for median in medians)
    after = f", after a median of {_all_of(runs, str)} runs' compute" if runs else ""
    be, each = ("are", " each") if len(names) > 1 else ("is", "")
    return (
        f"soonest within {points:.1f} points of the best final accuracy {be} {_all_of(names)}, in "
        f"{counts.iloc[0]}{each} of {problems} combination{'s' * (problems > 1)}{after}"
    )


def _all_of(names: Iterable[str], call: Callable[[str], str] = method_name) -> str:
    """Names as one says them."""
    *most, last = map(call, names)
    return f"{', '.join(most)} and {last}" if most else last


def _problem(row: pd.Series) -> str:
    return f"{dataset_name(row['dataset'])}, N = {row['n']:,}, {PRIOR_NAMES.get(row['prior'], row['prior'])}"
