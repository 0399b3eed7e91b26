"""Findings of a report in sentences, computed from its tables: one template per finding."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from bench.labels import method_name
from bench.results.configurations import CELL, PROBLEM

PRINT_TOLERANCE = 0.25
"""Percentage points by which a recomputed accuracy differs from the printed one by more than rounding."""
Tables = Mapping[str, pd.DataFrame]


def describe_findings(tables: Tables) -> list[str]:
    """Describe the findings of each source in the tables of `bench.report.build`, any of which may be empty."""
    sources = sorted(set().union(*(table["source"] for table in tables.values())))
    findings = (_accuracy_and_time, _printed, _lost, _equal_compute, _significance, _best_at_budgets)
    lines = []
    for source in sources:
        own = {name: table[table["source"] == source] for name, table in tables.items()}
        prefix = f"{source}: " if len(sources) > 1 else ""
        lines += [prefix + line for describe in findings for line in describe(own)]
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
    if differing := int(((grids["mean"] - grids["published_mean"]).abs() >= PRINT_TOLERANCE).sum()):
        yield f"The files and the printed table 3 differ by more than rounding in {_count(differing, 'row')}."


def _lost(tables: Tables) -> Iterator[str]:
    failed, diverged = (tables["overview"][status].sum() for status in ("failed", "diverged"))
    if failed or diverged:
        yield f"Lost runs: {failed:.0f} failed, which are not counted, and {diverged:.0f} diverged, which are."


def _equal_compute(tables: Tables) -> Iterator[str]:
    equal = tables["equal_compute"]
    known = equal[equal["cost"] == "train"].dropna(subset="times_as_long")
    if len(known):
        ratio = known.loc[known["times_as_long"] < np.inf, "times_as_long"]
        after = f", after {_span(ratio, '.1f')} times its compute time" if len(ratio) else ""
        yield (
            "With its configurations tried one at a time, MAP + grid search is expected to reach the DE ELBo's accuracy"
            f"{' (as printed in the paper)' if (known['de_elbo_from'] == 'paper').all() else ''} in {len(ratio)} of "
            f"{_count(len(known), 'cell')}{after}. A cell is a dataset, N, Model and split."
        )


def _significance(tables: Tables) -> Iterator[str]:
    """Test of the accuracies over all priors; by means over splits if there are at least six."""
    tests = tables["paired_tests"]
    rows = tests[(tests["method"] == "de-elbo") & (tests["against"] == "map-gs") & (tests["prior"] == "all")]
    rows = rows[(rows["measure"] == "accuracy") & ((rows["unit"] == "split") | (rows["cells"] >= 6))]
    for row in rows.dropna(subset="p").sort_values("unit").head(1).to_dict("records"):
        unit = "means over splits" if row["unit"] == "mean" else "splits, which share test images: the true p is higher"
        yield (
            f"DE ELBo against MAP + grid search, paired over {_count(row['cells'], 'cell')} ({unit}): median "
            f"difference {row['median']:+.2f} points ({row['least']:+.2f} to {row['most']:+.2f}), Wilcoxon p = "
            f"{row['p']:.2g}; with so many cells p cannot fall below {row['least_p']:.2g}."
        )


def _best_at_budgets(tables: Tables) -> Iterator[str]:
    """Highest mean accuracy over all problems at each budget; of a single problem where there is one."""
    if "budgets" not in tables:
        return
    budgets = tables["budgets"]
    means = budgets[(budgets["dataset"] == "all") & (budgets["prior"] == "all")]
    table = means if len(means) else budgets
    if len(means) or len(budgets[PROBLEM].drop_duplicates()) == 1:
        best = (
            table[table["best"]].groupby("budget_runs")["method"].agg(lambda names: ", ".join(map(method_name, names)))
        )
        winners = [
            f"{name} ({_span(of, 'd', '-')} runs)" for name, of in best.index.to_series().groupby(best, sort=False)
        ]
        count = _count(table["problems"].max(), "combination")
        yield f"Best at each budget over {count} of dataset, N and Model: {', '.join(winners)}."


def _difference(points: pd.Series, ratio: pd.Series) -> str:
    times = f"; the grid's training takes {_span(ratio.dropna(), '.1f')} times as long" if ratio.notna().any() else ""
    return (
        f"DE ELBo's mean test accuracy lies {_span(points, '+z.1f')} points (median {points.median():+z.1f}) from that "
        f"of MAP + grid search, over {_count(len(points), 'combination')} of dataset, N and Model{times}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _span(values: pd.Series, form: str, separator: str = " to ") -> str:
    """Minimum and maximum, or one number if they look the same."""
    return separator.join(dict.fromkeys((format(values.min(), form), format(values.max(), form))))
