"""report.html: what stands on the page, in which order, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.markup import details, document, figure, listing, paragraphs, preformatted, section, table
from bench.names import in_order
from bench.results import Results

__all__ = ["page"]

NOTES = {
    "figure2": """
        A line is the expected test accuracy had only k of the grid's configurations been tried, k growing to the
        right, exact over all subsets; its end is the whole grid. The band holds the middle 80 % of the subsets, and
        is cut where it leaves the panel. A line or marker is one split seed. Time is that of training steps, as
        published.
    """,
    "equal_compute": """
        The grid's expected accuracy with as many configurations as the DE ELBo's time pays for, and the least
        expected time at which it is no less than the DE ELBo's; never, where it is not with any number of them.
    """,
    "paired_tests": """
        Wilcoxon's signed-rank test over cells (dataset, Model, N, split) that both methods have, or over means of
        splits, as splits of one dataset share its test images. Accuracy in percentage points, time as a ratio. With
        few cells p cannot be small, whatever the truth is: see the last column. Holm corrects over the rows of one
        measure and unit.
    """,
    "figure1": """
        Both bounds, divided by kappa N, at the posteriors q of two finished runs, as functions of lambda = tau. A
        bound ranks the two q: the ELBo may prefer the one that fits worse, the DE ELBo counts the likelihood D/N
        times.
    """,
    "no_figure1": """
        Not drawn: it needs, in one cell, the chosen runs of an ELBo and of a DE ELBo with kappa = D/N, both completed
        and with their state kept.
    """,
    "regularisation": """
        The weight decay that the DE ELBo's chosen run ended with, 1/(kappa N lambda*), which with kappa = D/N is
        1/(D lambda*), beside what the grid chose. Both multiply the gradient of half the squared distance from the
        prior's mean.
    """,
    "table3": """
        Over split seeds: mean, least and most. total: mean over splits of table 2's; the paper prints times of one
        split alone, seed 1001. Runs that failed are not counted; runs that diverged are.
    """,
    "table2": """
        total: all judged runs and the retraining of the best, training steps only; full cost also counts evaluation
        and selection. Published: one A100, totals to the minute. Every table lies beside this page as CSV.
    """,
    "what_if": """
        List scheduling of the recorded seconds, in the order in which the runs were started, or where that was not
        kept, stand in their file; the best of a grid is trained again once all of its cell are done.
    """,
}
"""What is said under a figure or table, by its name; line breaks do not matter in HTML."""


def page(
    origins: Sequence[Results],
    lines: Sequence[str],
    content: dict[str, pd.DataFrame],
    files: dict[str, Path],
    subsamples: int | None,
    left_out: Sequence[str],
) -> str:
    """report.html.

    Args:
        origins: what is reported; notes and configurations come from here.
        lines: what is said first, as `bench.summary.sentences` gives.
        content: the tables by name, as `bench.report.write_report` makes them.
        files: the figures that were drawn, by file name.
        subsamples: of the sampled form of figure 2, where it was drawn.
        left_out: what could not be read at all.
    """
    alone = len(origins) == 1
    title = origins[0].title if alone else " and ".join(one.label for one in origins)
    told = [
        f"{one.label}: {words}" if one.label else words
        for one in origins
        if one.unfinished
        for words in [f"Unfinished: trials left to run: {one.unfinished}. What is shown is what is done."]
    ]
    parts = [section(f"{title}: compute time against accuracy", paragraphs([*told, *lines]), level=1)]
    left_out = [*left_out, *(line for one in origins for line in one.left_out)]
    if left_out:
        parts.append(section("Input that could not be used", listing(left_out)))
    if "figure2.png" in files:
        parts.append(_figure2(files, subsamples))
    third = "Table 3: test accuracy (%, class-balanced) of what each method chose"
    parts.append(_optional(third, "table3", content["overview"]))
    parts.append(_optional("At equal compute", "equal_compute", content["equal_compute"]))
    enough = content["paired_tests"][content["paired_tests"]["cells"] > 1]
    parts.append(_optional("Is the difference more than chance?", "paired_tests", enough))
    if "figure1.png" in files:
        image = figure(files["figure1.png"], "ELBo and DE ELBo against lambda = tau")
        parts.append(section("Figure 1", image, paragraphs([NOTES["figure1"]], note=True)))
    elif {"elbo", "de-elbo"} <= set(content["counts"]["method"]):
        parts.append(section("Figure 1", paragraphs([NOTES["no_figure1"]], note=True)))
    parts.append(_optional("Learned and chosen regularisation", "regularisation", content["regularisation"]))
    parts.append(_optional("Table 2: compute time", "table2", content["table2"]))
    if "what_if" in content:
        parts.append(_optional("What if more had run at once", "what_if", _by_method(content["what_if"])))
    notes = [note if alone else f"{one.label}: {note}" for one in origins for note in one.notes]
    if notes:
        parts.append(section("What is missing, and why", listing(notes)))
    parts.append(section("What ran", table(content["counts"])))
    for one in origins:
        parts.append(listing(one.about) if alone else section(one.label, listing(one.about), level=3))
        if one.config:
            parts.append(details("Configuration", preformatted(one.config)))
    return document(title, parts)


def _figure2(files: dict[str, Path], subsamples: int | None) -> str:
    parts = [figure(files["figure2.png"], "Expected test accuracy against compute time")]
    parts.append(paragraphs([NOTES["figure2"]], note=True))
    for name, summary in (
        ("figure2_full.png", "The same with evaluation and selection counted"),
        ("figure2_sampled.png", f"The same from {subsamples} random subsets of each size, as published"),
    ):
        if name in files:
            parts.append(details(summary, figure(files[name], summary)))
    return section("Figure 2", *parts)


def _optional(heading: str, name: str, content: pd.DataFrame) -> str:
    """A table under its heading, and what is said of it; nothing where it is empty."""
    return section(heading, table(content), paragraphs([NOTES[name]], note=True)) if len(content) else ""


def _by_method(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over splits of each cell, and the rows of all cells together."""
    keys = ["source", "dataset", "backbone", "prior", "method", "n", "cost", "slots"]
    alone = table["dataset"] != "all"
    means = table[alone].groupby(keys)[["cells", "one_slot_seconds", "makespan_seconds"]].mean().reset_index()
    return pd.concat([in_order(means, "cost"), table[~alone]], ignore_index=True)
