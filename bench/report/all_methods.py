"""All that the report says of the race of all methods: its tables, as files and for people, figure and sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bench.labels import PAPER_METHODS, method_name
from bench.report.figures.anytime import figure_race
from bench.report.formatting import duration_cell
from bench.report.race_narrative import race_sentences
from bench.results.anytime import anytime, steps
from bench.results.budgets import budgets, run_seconds, time_to
from bench.results.configurations import COSTS
from bench.results.frame import iterate_groups, sort_rows
from bench.results.paired_tests import chosen
from bench.results.ranking import rank_pairs, ranking

__all__ = ["Raced", "nearness", "raced", "shares", "winners"]


WHERE = ["dataset", "backbone", "prior", "n", "source"]


@dataclass(frozen=True)
class Raced:
    """The race of all methods, as `raced` makes it.

    Attributes:
        anytime, budgets, time_to, ranking, rank_pairs: as the functions of these names give.
        cost: what is counted as compute, "train" or "full".
        lines: as `bench.report.race_narrative.race_sentences` gives.
        notes: what is not compared, and why.
    """

    anytime: pd.DataFrame
    budgets: pd.DataFrame
    time_to: pd.DataFrame
    ranking: pd.DataFrame
    rank_pairs: pd.DataFrame
    cost: str
    lines: list[str]
    notes: list[str]

    def figure(self) -> Figure:
        """Figure 2 with all methods."""
        return figure_race(self.anytime, self.cost)


def raced(frame: pd.DataFrame, curves: pd.DataFrame, replays: pd.DataFrame | None = None) -> Raced | None:
    """The race of all methods; None where figure 2 says it all, as there are no others than the paper's.

    Compute is the full cost where it was kept, else that of training steps.

    Args:
        frame: as `RecordStore.frame` gives it.
        curves: its curves, as `bench.results.curves.curves` gives.
        replays: replayed results, as `bench.results.anytime.REPLAY` says.
    """
    if set(curves["method"]) <= set(PAPER_METHODS) and (replays is None or replays.empty):
        return None
    kept = set(curves["cost"]) | set([] if replays is None else replays["cost"])
    cost = next((cost for cost in reversed(COSTS) if cost in kept), "full")
    table = steps(curves, replays, cost)
    drawn = anytime(table, cost)
    if drawn.empty:
        return None
    unit = run_seconds(frame, cost)
    results = chosen(frame)
    made, times, ranks = budgets(table, unit), time_to(table, unit), ranking(results)
    lines = race_sentences(made, times, ranks)
    notes = [*_no_cost(curves, table, cost), *_left_out(times)]
    return Raced(drawn, made, times, ranks, rank_pairs(results), cost, lines, notes)


def winners(made: pd.DataFrame) -> pd.DataFrame:
    """Who is best with which budget: a row a problem and group of problems, a column a budget.

    Columns: dataset, backbone, prior, n, source; "1 run", "2 runs", ...: the best methods and their accuracy in
    percent, or in the means over problems their percentage of the grid's final accuracy.

    Args:
        made: as `bench.results.budgets.budgets` gives.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for known, group in iterate_groups(made[made["best"]], [*WHERE, "budget_runs"]):
        runs = known.pop("budget_runs")
        row = rows.setdefault(tuple(map(str, known.values())), known)
        value = group["relative_acc" if pd.isna(row["n"]) else "test_acc"].max()
        names = " = ".join(method_name(name) for name in group["method"])
        row[_budget(runs)] = f"{names} {100 * value:.1f}"
    return _filled(pd.DataFrame(list(rows.values()), columns=[*WHERE, *_columns(made)]))


def shares(made: pd.DataFrame) -> pd.DataFrame:
    """What every method has reached with each budget on average over problems, in percent of the grid's final accuracy.

    Columns: prior, "all" or one; method; source; "1 run", "2 runs", ...; "-" where it has no result in some problem.

    Args:
        made: as `bench.results.budgets.budgets` gives.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in made[made["dataset"] == "all"].to_dict("records"):
        known = {name: row[name] for name in ("prior", "method", "source")}
        found = rows.setdefault(tuple(known.values()), known)
        found[_budget(row["budget_runs"])] = f"{100 * row['relative_acc']:.1f}" + " *" * row["best"]
    table = pd.DataFrame(list(rows.values()), columns=["prior", "method", "source", *_columns(made)])
    first = table["prior"] != "all"
    return _filled(sort_rows(table.assign(first=first)).sort_values("first", kind="stable").drop(columns="first"))


def nearness(times: pd.DataFrame) -> pd.DataFrame:
    """How long each method takes to come near the best, a row a problem, a column a method.

    Args:
        times: as `bench.results.budgets.time_to` gives.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    names = [method_name(name) for name in sort_rows(times[["method"]].drop_duplicates())["method"]]
    for row in times.to_dict("records"):
        known = {name: row[name] for name in [*WHERE, "target_acc"]}
        found = rows.setdefault(tuple(row[name] for name in WHERE), known)
        words = duration_cell(row["seconds"])
        reached = f" = {row['runs']:.1f} runs" if 0 < row["runs"] < float("inf") else ""
        found[method_name(row["method"])] = words + reached
    return pd.DataFrame(list(rows.values()), columns=[*WHERE, "target_acc", *names]).fillna(dict.fromkeys(names, "-"))


def _budget(runs: int) -> str:
    return f"{runs} run{'s' if runs > 1 else ''}"


def _columns(made: pd.DataFrame) -> list[str]:
    return [_budget(runs) for runs in sorted(map(int, made["budget_runs"].unique()))]


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    return table.fillna({name: "-" for name in table if str(name).endswith((" run", " runs"))}).reset_index(drop=True)


def _no_cost(curves: pd.DataFrame, table: pd.DataFrame, cost: str) -> list[str]:
    """Sources that have curves, and none of the cost that the others are compared by."""
    return [
        f"The race: {source or 'a source'} is left out, as it kept no {cost} cost, which is what the others are "
        "compared by: report it alone to see its race in training steps."
        for source in curves["source"].unique()
        if source not in set(table["source"])
    ]


def _left_out(times: pd.DataFrame) -> list[str]:
    """Methods that are drawn and not compared, by name."""
    lacking = times[times["seconds"].isna()]
    lines = []
    for method, of in lacking.groupby("method", sort=False):
        where = f"{len(of)} combination{'s' * (len(of) > 1)} of dataset, N and Model"
        lines.append(
            f"The race: {method_name(str(method))} is not compared in {where}, as it lacks a split that another method "
            "has, or it is not known what it comes to."
        )
    return lines
