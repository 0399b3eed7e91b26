"""What the tables say, in a few sentences: the first thing that a reader of the report reads."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from bench.labels import PAPER_METHODS, PRIOR_NAMES, dataset_name, method_name
from bench.results.configurations import CELL, PROBLEM
from bench.results.frame import sort_rows
from bench.utils.text import format_duration

__all__ = ["sentences"]


MANY = 4
"""More comparisons than this are summed up instead of told one by one."""
AWAY = 0.25
"""Percentage points by which a recomputed number differs from the printed one by more than its rounding."""


def sentences(results: pd.DataFrame, overview: pd.DataFrame, equal: pd.DataFrame, tests: pd.DataFrame) -> list[str]:
    """How long the DE ELBo and the grid take for which accuracy, and how sure that is; of other methods
    `bench.report.race_narrative` tells.

    Args:
        results: as `bench.results.paired_tests.chosen` gives: methods are compared over the splits that they share.
        overview: as `bench.results.tables.overview` gives: what the paper prints, and how many runs diverged or failed.
        equal: as `bench.results.grid_comparison.equal_compute` gives.
        tests: as `bench.results.paired_tests.paired_tests` gives.
    """
    told = []
    several = overview["source"].nunique() > 1
    for source in sorted(overview["source"].unique()):
        own = overview[overview["source"] == source]
        words = _compare(_shared(results[results["source"] == source])) + _printed(own) + _lost(own)
        words += _at_equal_compute(equal[(equal["source"] == source) & (equal["cost"] == "train")])
        words += _tested(tests[tests["source"] == source])
        told += [f"{source}: {sentence}" if several else sentence for sentence in words]
    return told


def _shared(results: pd.DataFrame) -> pd.DataFrame:
    """A row a problem: splits, how many grid and DE ELBo share, and means over these; accuracies in percent."""
    accuracy = 100 * results.pivot_table("test_acc", CELL, "method").reindex(columns=list(PAPER_METHODS))
    seconds = results.pivot_table("total_seconds", CELL, "method").reindex(columns=list(PAPER_METHODS))
    both = accuracy["map-gs"].notna() & accuracy["de-elbo"].notna()
    columns = {f"acc_{name}": accuracy.loc[both, name] for name in PAPER_METHODS}
    columns |= {f"seconds_{name}": seconds.loc[both, name] for name in PAPER_METHODS}
    problems = pd.DataFrame(columns).groupby(PROBLEM)
    return sort_rows(problems.mean().assign(splits=problems.size()).reset_index())


def _compare(means: pd.DataFrame) -> list[str]:
    """Grid and DE ELBo on each problem that has both; summed up where there are many."""
    points = means["acc_de-elbo"] - means["acc_map-gs"]
    ratio = means["seconds_map-gs"] / means["seconds_de-elbo"].clip(lower=1e-9)
    if len(means) > MANY:
        return [
            f"Over {len(means)} combinations of dataset, N and Model the DE ELBo's mean test accuracy lies "
            f"{_span(points, '+.1f')} points from that of MAP + grid search (median {points.median():+.1f}), whose "
            f"training takes {_span(ratio, '.1f')} times as long (median {ratio.median():.1f})."
        ]
    told = []
    for row, times in zip(means.to_dict("records"), ratio, strict=True):
        text = (
            f"{_problem(row)}: DE ELBo reaches {row['acc_de-elbo']:.1f} % in "
            f"{format_duration(row['seconds_de-elbo'])} of "
            f"training, MAP + grid search {row['acc_map-gs']:.1f} % in {format_duration(row['seconds_map-gs'])}: "
            f"{times:.1f} times as long"
        )
        if pd.notna(row["acc_elbo"]):
            text += f"; the plain ELBo (kappa = 1) {row['acc_elbo']:.1f} %"
        told.append(f"{text}. Mean over {row['splits']} split{'s' if row['splits'] > 1 else ''}.")
    return told


def _printed(overview: pd.DataFrame) -> list[str]:
    """What the paper prints of both methods, where its DE ELBo stands in."""
    grids = overview[overview["method"] == "map-gs"]
    both = overview[overview["mean"].isna()].merge(grids, on=PROBLEM, suffixes=("", "_grid"))
    if both.empty:
        return []
    points = both["published_mean"] - both["published_mean_grid"]
    ratio = (both["published_total_seconds_grid"] / both["published_total_seconds"]).dropna()
    text = (
        f"As the paper prints both, the DE ELBo's mean test accuracy lies {_span(points, '+.1f')} points from that of "
        f"MAP + grid search, over {len(both)} combination{'s' * (len(both) > 1)} of dataset, N and Model"
    )
    if len(ratio):
        text += f"; in the {len(ratio)} whose time is printed, the grid takes {_span(ratio, '.1f')} times as long"
    told = [f"{text}."]
    away = grids[(grids["mean"] - grids["published_mean"]).abs() >= AWAY].to_dict("records")
    if away:
        words = [f"{_problem(row)}: {row['mean']:.1f} against {row['published_mean']:.1f} %" for row in away]
        told.append(f"The files and the printed table 3 do not agree everywhere. {'; '.join(words)}.")
    return told


def _lost(overview: pd.DataFrame) -> list[str]:
    """What failed or diverged, as what is said of the methods is said without it or in spite of it."""
    words = [
        f"{row[status]:.0f} {status} ({method_name(row['method'])}, {_problem(row)})"
        for row in overview.to_dict("records")
        for status in ("failed", "diverged")
        if row[status] > 0
    ]
    if not words:
        return []
    more = f"; {len(words) - MANY} more, see table 3" if len(words) > MANY else ""
    return [f"Lost runs: {'; '.join(words[:MANY])}{more}. Failed runs do not count; diverged ones do, as they ended."]


def _problem(row: dict[Any, Any]) -> str:
    return f"{dataset_name(row['dataset'])}, N = {row['n']:,}, {PRIOR_NAMES.get(row['prior'], row['prior'])}"


def _span(values: pd.Series, form: str) -> str:
    """Least to most; one number where they are the same."""
    return " to ".join(dict.fromkeys((format(values.min(), form), format(values.max(), form))))


def _at_equal_compute(equal: pd.DataFrame) -> list[str]:
    known = equal.dropna(subset="times_as_long")
    if known.empty:
        return []
    longer = known.loc[known["times_as_long"].map(math.isfinite), "times_as_long"]
    never = len(known) - len(longer)
    paper = " (as the paper prints it)" if (known["de_elbo_from"] == "paper").all() else ""
    ends = []
    if len(longer):
        span = f"; {longer.min():.1f} to {longer.max():.1f}" if len(longer) > 1 else ""
        of = f" ({'median of ' if len(longer) > 1 else ''}{len(longer)} cell{'s' * (len(longer) > 1)}{span})"
        ends.append(f"after {longer.median():.1f} times its compute time{of}")
    if never:
        ends.append(f"never in {never} cell{'s' * (never > 1)}")
    return [
        "With its configurations tried one at a time, MAP + grid search is expected to reach the DE ELBo's "
        f"accuracy{paper} {', and '.join(ends)}. A cell is a dataset, N, Model and split."
    ]


def _tested(tests: pd.DataFrame) -> list[str]:
    """The accuracies of DE ELBo and grid, all priors together; by mean over splits where that leaves cells enough."""
    rows = tests[(tests["method"] == "de-elbo") & (tests["against"] == "map-gs") & (tests["prior"] == "all")]
    rows = rows[rows["measure"] == "accuracy"].set_index("unit")
    if rows.empty:
        return []
    unit = "mean" if rows["cells"].get("mean", 0) >= 6 else "split"
    row = rows.loc[unit]
    names = f"{method_name('de-elbo')} against {method_name('map-gs')}"
    if row["cells"] < 2:
        return [f"{names}: one cell, from which no claim can be made."]
    what = "means over splits" if unit == "mean" else "splits, which share their test images"
    text = (
        f"{names}, paired over {row['cells']} cells ({what}): median difference {row['median']:+.2f} points "
        f"({row['least']:+.2f} to {row['most']:+.2f}), Wilcoxon p = {row['p']:.2g}"
    )
    if row["least_p"] > 0.05:
        return [f"{text}; with so few cells p cannot fall below {row['least_p']:.2g}, so nothing is shown either way."]
    if unit == "split":
        return [f"{text}; as these cells are not independent, p is too small by an unknown amount."]
    return [f"{text}."]
