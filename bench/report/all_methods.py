"""Comparison of all methods, the paper's and others: anytime curves, budgets, ranks, and their tables for the page."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.labels import PAPER_METHODS, method_name
from bench.report.formatting import format_seconds
from bench.results.anytime import compute_anytime, compute_steps
from bench.results.budgets import compute_budgets, compute_run_seconds, compute_time_to_target
from bench.results.configurations import COSTS
from bench.results.frame import iterate_groups, sort_rows
from bench.results.ranking import compute_rank_pairs, compute_ranking

PLACE = ["dataset", "backbone", "prior", "n", "source"]


@dataclass(frozen=True)
class MethodComparison:
    """Tables that compare all methods by a ``cost``, named after their CSV files, and what is not compared and why."""

    anytime: pd.DataFrame
    budgets: pd.DataFrame
    time_to: pd.DataFrame
    ranking: pd.DataFrame
    rank_pairs: pd.DataFrame
    cost: str
    notes: list[str]


def compare_all_methods(
    frame: pd.DataFrame, curves: pd.DataFrame, results: pd.DataFrame, replays: pd.DataFrame | None = None
) -> MethodComparison | None:
    """Compare all methods; None if there are only the paper's, which figure 2 compares.

    Compute is the full cost if any source recorded it, else that of training steps.
    """
    if set(curves["method"]) <= set(PAPER_METHODS) and (replays is None or replays.empty):
        return None
    recorded = set(curves["cost"]) | set([] if replays is None else replays["cost"])
    cost = next((cost for cost in reversed(COSTS) if cost in recorded), "full")
    steps = compute_steps(curves, replays, cost)
    anytime = compute_anytime(steps, cost)
    if anytime.empty:
        return None
    run_seconds = compute_run_seconds(frame, cost)
    times = compute_time_to_target(steps, run_seconds)
    return MethodComparison(
        anytime,
        compute_budgets(steps, run_seconds),
        times,
        compute_ranking(results),
        compute_rank_pairs(results),
        cost,
        [*_sources_without_cost(curves, steps, cost), *_incomparable_methods(times)],
    )


def best_methods_table(budgets: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the best methods at each budget and their accuracy, of means in percent of the grid's: winners.csv."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for place, group in iterate_groups(budgets[budgets["best"]], [*PLACE, "budget_runs"]):
        runs = place.pop("budget_runs")
        row = rows.setdefault(tuple(map(str, place.values())), place)
        value = group["relative_acc" if pd.isna(place["n"]) else "test_acc"].max()
        row[_heading(runs)] = f"{' = '.join(map(method_name, group['method']))} {100 * value:.1f}"
    return _budget_table(rows.values(), PLACE, budgets)


def relative_accuracy_table(budgets: pd.DataFrame) -> pd.DataFrame:
    """Tabulate each method's mean over problems at each budget, in percent of the grid's final accuracy."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in budgets[budgets["dataset"] == "all"].to_dict("records"):
        entry = {name: row[name] for name in ("prior", "method", "source")}
        entry = rows.setdefault(tuple(entry.values()), entry)
        entry[_heading(row["budget_runs"])] = f"{100 * row['relative_acc']:.1f}" + " *" * row["best"]
    table = sort_rows(_budget_table(rows.values(), ["prior", "method", "source"], budgets))
    return table.sort_values("prior", key=lambda prior: prior != "all", kind="stable", ignore_index=True)


def time_to_target_table(times: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the time until each method is near the best accuracy, a row per problem and a column per method."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    names = [method_name(name) for name in sort_rows(times[["method"]].drop_duplicates())["method"]]
    for row in times.to_dict("records"):
        entry = {name: row[name] for name in [*PLACE, "target_acc"]}
        entry = rows.setdefault(tuple(row[name] for name in PLACE), entry)
        runs = f" = {row['runs']:.1f} runs" if 0 < row["runs"] < float("inf") else ""
        entry[method_name(row["method"])] = format_seconds(row["seconds"]) + runs
    return pd.DataFrame(list(rows.values()), columns=[*PLACE, "target_acc", *names]).fillna(dict.fromkeys(names, "-"))


def _heading(runs: int) -> str:
    return f"{runs} run{'s' if runs > 1 else ''}"


def _budget_table(rows: Iterable[dict[str, Any]], columns: list[str], budgets: pd.DataFrame) -> pd.DataFrame:
    headings = [_heading(runs) for runs in sorted(map(int, budgets["budget_runs"].unique()))]
    return pd.DataFrame(list(rows), columns=[*columns, *headings]).fillna(dict.fromkeys(headings, "-"))


def _sources_without_cost(curves: pd.DataFrame, steps: pd.DataFrame, cost: str) -> list[str]:
    """Describe sources that have curves, but not of the cost by which all methods are compared."""
    return [
        f"All methods: {source or 'a source'} is left out, as it did not record the {cost} cost by which the others "
        "are compared; report it alone to compare its methods by training steps."
        for source in curves["source"].unique()
        if source not in set(steps["source"])
    ]


def _incomparable_methods(times: pd.DataFrame) -> list[str]:
    """Describe methods that are drawn but not compared."""
    return [
        f"All methods: {method_name(str(method))} is not compared in {len(of)} combination{'s' * (len(of) > 1)} of "
        "dataset, N and Model, as it lacks a split that another method has, or its final accuracy is unknown."
        for method, of in times[times["seconds"].isna()].groupby("method", sort=False)
    ]
