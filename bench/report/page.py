"""Content of report.html: its sections, their order, and the note under each figure and table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from bench.report import html
from bench.report.all_methods import MethodComparison, relative_accuracy_table, time_to_target_table
from bench.results.frame import sort_rows
from bench.results.sources import Results

__all__ = ["build_page"]


NOTES = {
    "figure2": """
        A line is the expected test accuracy had only k of the grid's configurations been tried, k growing to the right,
        exact over all subsets; it ends at the whole grid. The band holds the middle 80 % of the subsets and is cut at
        the edge of the panel. Each line or marker is one split seed. Time is that of training steps, as published.
    """,
    "figure_race": """
        Test accuracy of the configuration that a method would choose if it were stopped, against everything it needs
        until then: training, learning regularization strengths, validation, selection, checkpoints between segments,
        choosing what to try next, and retraining the chosen configuration. A line is the mean over split seeds (and
        repetitions of replayed methods), drawn where all of them have a result; the band holds their middle 80 %, of up
        to ten curves all of them. For a grid, and for runs without an order, it is the expectation over the order of
        trying. A marker shows where a method ends, and alone a method with a single result. Accuracies far below the
        rest are cut.
    """,
    "winners": """
        The method with the highest mean accuracy once the compute of so many runs is spent (and 10 % more, as runs vary
        by that), among methods that have every split; a run is the mean tuning run of the grid. Rows of one combination
        have accuracy in percent. Rows of all have the mean over combinations of the accuracy in percent of the grid's
        final one, among methods that have a result in every combination.
    """,
    "time_to": """
        The least compute at which a method's mean accuracy is within 0.5 points of the best final mean accuracy of all
        methods; never, if it is not. It is the first time: on a few splits it may be chance.
    """,
    "ranking": """
        Ranks of final accuracy within each cell, 1 is best, ties averaged: their mean, its 95 % interval, and how often
        a method is first, by drawing dataset, N and Model with all their splits, which share test images. Friedman's
        test is over means of splits. Methods that lack cells are ranked on the cells that all share, in rows of their
        own. Replayed methods are not ranked. With few problems nothing is certain, however narrow the interval.
    """,
    "equal_compute": """
        The grid's expected accuracy with as many configurations as the DE ELBo's time pays for, and the least expected
        time at which it is no lower than the DE ELBo's; never, if it is lower with any number of them.
    """,
    "paired_tests": """
        Wilcoxon's signed-rank test over cells (dataset, Model, N, split) that both methods have, or over means of
        splits, as splits of one dataset share its test images. Accuracy in percentage points, time as a ratio. With few
        cells p cannot be small: see the last columns. Holm's correction is over the rows of one measure and unit. Other
        methods are compared with the paper's grid and DE ELBo only, in time by the full cost where both recorded it;
        the paper's methods by training steps alone, as published.
    """,
    "figure1": """
        Both bounds, divided by kappa N, at the posteriors q of two finished runs, as functions of lambda = tau. A bound
        ranks the two q: the ELBo may prefer the one that fits worse, the DE ELBo counts the likelihood D/N times.
    """,
    "no_figure1": """
        Not drawn: it needs, in one cell, the chosen runs of an ELBo and of a DE ELBo with kappa = D/N, both completed
        and with their state recorded.
    """,
    "regularization": """
        The weight decay at the end of the DE ELBo's chosen run, 1/(kappa N lambda*), which with kappa = D/N is
        1/(D lambda*), beside the one that the grid chose. Both multiply the gradient of half the squared distance from
        the prior's mean.
    """,
    "table3": """
        Mean, minimum and maximum over split seeds. total: mean over splits of table 2's; the paper prints times of one
        split alone, seed 1001. It counts training steps alone, the full cost everything a method needs, as under table
        2. Runs that failed are not counted; runs that diverged are.
    """,
    "table2": """
        total: all tuning runs (each segment of a run is one) and the retraining of the best, training steps alone; full
        cost counts everything a method needs: training, learning regularization strengths, validation, selection,
        checkpoints between segments, choosing what to try next. Published: one A100, totals to the minute. Every table
        lies beside this page as CSV.
    """,
    "what_if": """
        List scheduling of the recorded seconds, in the order in which the runs started, or where that was not recorded,
        in the order of the file; the best of a grid is retrained when all runs of its cell are done. A sequential
        search (BO) is queued as if all that it tried could run at once, which it could not without knowing less.
    """,
}
"""Note under each figure or table; line breaks do not matter in HTML."""


def build_page(
    results: Sequence[Results],
    findings: Sequence[str],
    tables: Mapping[str, pd.DataFrame],
    images: Mapping[str, Path],
    subsamples: int | None,
    left_out: Sequence[str],
    comparison: MethodComparison | None = None,
) -> str:
    """Build report.html.

    Args:
        results: sources of the report, for their notes and configurations.
        findings: sentences at the top.
        tables: tables by name, as `bench.report.build.write_report` computes them.
        images: drawn figures by file name.
        subsamples: number of random subsets in the sampled form of figure 2, if it was drawn.
        left_out: sources that could not be read at all.
        comparison: comparison of all methods, if there are more than the paper's.
    """
    single = len(results) == 1
    title = results[0].title if single else " and ".join(one.label for one in results)
    prefixes = [f"{one.label}: " if one.label else "" for one in results]
    unfinished = [
        f"{prefix}Unfinished: trials left to run: {one.unfinished}. Only finished results are shown."
        for prefix, one in zip(prefixes, results, strict=True)
        if one.unfinished
    ]
    left_out = [*left_out, *(line for one in results for line in one.left_out)]
    tests = tables["paired_tests"]
    missing = [
        f"{'' if single else prefix}{note}" for prefix, one in zip(prefixes, results, strict=True) for note in one.notes
    ]
    missing += comparison.notes if comparison is not None else []
    return html.document(
        title,
        html.section(f"{title}: compute time against accuracy", html.paragraphs(*unfinished, *findings), level=1),
        html.section("Input that could not be used", html.bullets(left_out)) if left_out else "",
        _subsampling(images, subsamples, comparison is not None),
        _all_methods(images, tables, comparison) if comparison is not None else "",
        _table("Table 3: test accuracy (%, class-balanced) of what each method chose", "table3", tables["overview"]),
        _table("At equal compute", "equal_compute", tables["equal_compute"]),
        _table("Is the difference more than chance?", "paired_tests", tests[tests["cells"] > 1]),
        _bounds(images, set(tables["counts"]["method"])),
        _table("Learned and chosen regularization", "regularization", tables["regularization"]),
        _table("Table 2: compute time", "table2", tables["table2"]),
        _table("What if more had run at once", "what_if", _mean_over_splits(tables["what_if"]))
        if "what_if" in tables
        else "",
        html.section("What is missing, and why", html.bullets(missing)) if missing else "",
        html.section("What ran", html.table(tables["counts"])),
        *(_about(one, single) for one in results),
    )


def _subsampling(images: Mapping[str, Path], subsamples: int | None, others: bool) -> str:
    if "figure2.png" not in images:
        return ""
    note = NOTES["figure2"] + " Methods that the paper does not have are in the next figure." * others
    variants = {
        "figure2_full.png": "The same with validation, selection and checkpoints counted",
        "figure2_sampled.png": f"The same from {subsamples} random subsets of each size, as published",
    }
    return html.section(
        "Figure 2",
        html.figure(images["figure2.png"], "Expected test accuracy against compute time"),
        html.notes(note),
        *(html.details(text, html.figure(images[name], text)) for name, text in variants.items() if name in images),
    )


def _all_methods(images: Mapping[str, Path], tables: Mapping[str, pd.DataFrame], comparison: MethodComparison) -> str:
    """Figure, budgets, times and ranks of all methods; details are folded away."""
    ranking, budgets = comparison.ranking, relative_accuracy_table(comparison.budgets)
    together, caption = ranking[ranking["prior"] == "all"], "Test accuracy so far against compute time, all methods"
    return html.section(
        "All methods",
        html.figure(images["figure_race.png"], caption),
        html.notes(NOTES["figure_race"]),
        _table("Best at each budget", "winners", tables["winners"], level=3),
        html.details("Every method at each budget, on average over problems", html.table(budgets))
        if len(budgets)
        else "",
        _table("Time to within 0.5 points of the best", "time_to", time_to_target_table(comparison.time_to), level=3),
        _table("Ranking", "ranking", together, level=3),
        html.details("Ranking with each prior", html.table(ranking[ranking["prior"] != "all"]))
        if len(together) < len(ranking)
        else "",
    )


def _bounds(images: Mapping[str, Path], methods: set[str]) -> str:
    if "figure1.png" in images:
        image = html.figure(images["figure1.png"], "ELBo and DE ELBo against lambda = tau")
        return html.section("Figure 1", image, html.notes(NOTES["figure1"]))
    return html.section("Figure 1", html.notes(NOTES["no_figure1"])) if {"elbo", "de-elbo"} <= methods else ""


def _about(results: Results, single: bool) -> str:
    about = html.bullets(results.about)
    config = html.details("Configuration", html.pre(results.config)) if results.config else ""
    return (about if single else html.section(results.label, about, level=3)) + config


def _table(heading: str, name: str, content: pd.DataFrame, level: int = 2) -> str:
    """Build a table with heading and note; nothing if it is empty."""
    return html.section(heading, html.table(content), html.notes(NOTES[name]), level=level) if len(content) else ""


def _mean_over_splits(makespans: pd.DataFrame) -> pd.DataFrame:
    """Average each problem over its splits; rows of all cells together stay."""
    keys = ["source", "dataset", "backbone", "prior", "method", "n", "cost", "slots"]
    single = makespans["dataset"] != "all"
    means = makespans[single].groupby(keys)[["cells", "one_slot_seconds", "makespan_seconds"]].mean().reset_index()
    return pd.concat([sort_rows(means, "cost"), makespans[~single]], ignore_index=True)
