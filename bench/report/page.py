"""report.html: what stands on the page, in which order, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.report.all_methods import Raced, nearness, shares
from bench.report.html import details, document, figure, listing, paragraphs, preformatted, section, table
from bench.results.frame import sort_rows
from bench.results.sources import Results

__all__ = ["page"]


NOTES = {
    "figure2": """
        A line is the expected test accuracy had only k of the grid's configurations been tried, k growing to the
        right, exact over all subsets; its end is the whole grid. The band holds the middle 80 % of the subsets, and
        is cut where it leaves the panel. A line or marker is one split seed. Time is that of training steps, as
        published.
    """,
    "figure_race": """
        Test accuracy of what a method would choose if it were stopped, against everything it needs until then:
        training, learning of strengths, validation, selection, hand-over of parts, choosing what to try next; training
        the chosen configuration again is counted. A line is the mean over split seeds (and repetitions of replayed
        methods), known only where all of them have a result; the band holds their middle 80 %, of up to ten curves all
        of them. Of a grid and of runs in no order, it is the expectation over the order in which they might be tried. A
        marker is where a method ends; one alone is a method that has one result and nothing before. What begins far
        below is cut.
    """,
    "winners": """
        Of methods that have every split, the one whose mean accuracy is highest once the compute of so many runs is
        spent (10 % more, as runs vary by that); a run is the mean tuning run of the grid. In rows of one combination
        accuracy in percent. In rows of all, the mean over combinations of accuracy in percent of what the grid reaches
        at its end, among methods that have a result in every one.
    """,
    "time_to": """
        The least compute at which a method's mean accuracy is within 0.5 points of the best final mean accuracy of any
        method there; never, where it is not. A first touch: on a few splits it may be luck.
    """,
    "ranking": """
        Ranks of final accuracy within each cell, 1 is best, ties averaged; their mean, its 95 % interval and how often
        a method is first, by drawing dataset, N and Model with all their splits anew, as splits share test images.
        Friedman's test is over means of splits. Methods that lack cells are ranked on the cells that all share, in rows
        of their own. Replayed methods are not ranked. With few problems nothing is sure, however narrow the interval.
    """,
    "equal_compute": """
        The grid's expected accuracy with as many configurations as the DE ELBo's time pays for, and the least
        expected time at which it is no less than the DE ELBo's; never, where it is not with any number of them.
    """,
    "paired_tests": """
        Wilcoxon's signed-rank test over cells (dataset, Model, N, split) that both methods have, or over means of
        splits, as splits of one dataset share its test images. Accuracy in percentage points, time as a ratio. With
        few cells p cannot be small, whatever the truth is: see the last columns. Holm corrects over the rows of one
        measure and unit. Methods that the paper does not have are compared with its grid and DE ELBo alone, in time by
        the full cost, where it was kept for both; the paper's by that of training steps alone, as published.
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
    "regularization": """
        The weight decay that the DE ELBo's chosen run ended with, 1/(kappa N lambda*), which with kappa = D/N is
        1/(D lambda*), beside what the grid chose. Both multiply the gradient of half the squared distance from the
        prior's mean.
    """,
    "table3": """
        Over split seeds: mean, least and most. total: mean over splits of table 2's; the paper prints times of one
        split alone, seed 1001. It counts training steps alone, the full cost everything a method needs, as under table
        2. Runs that failed are not counted; runs that diverged are.
    """,
    "table2": """
        total: all judged runs (each stretch of a run that may be given up is one) and the retraining of the best,
        training steps alone; full cost counts everything a method needs: training, learning of strengths, validation,
        selection, hand-over of parts, choosing what to try next. Published: one A100, totals to the minute. Every table
        lies beside this page as CSV.
    """,
    "what_if": """
        List scheduling of the recorded seconds, in the order in which the runs were started, or where that was not
        kept, stand in their file; the best of a grid is trained again once all of its cell are done. A search that
        decides one after the other (BO) is queued as if all that it tried could run at once, which it could not without
        knowing less.
    """,
}
"""What is said under a figure or table, by its name; line breaks do not matter in HTML."""
OTHERS = " Methods that the paper does not have are left to the next figure."


def page(
    origins: Sequence[Results],
    lines: Sequence[str],
    content: dict[str, pd.DataFrame],
    files: dict[str, Path],
    subsamples: int | None,
    left_out: Sequence[str],
    race: Raced | None = None,
) -> str:
    """report.html.

    Args:
        origins: what is reported; notes and configurations come from here.
        lines: what is said first, as `bench.report.narrative.sentences` gives.
        content: the tables by name, as `bench.report.build.write_report` makes them.
        files: the figures that were drawn, by file name.
        subsamples: of the sampled form of figure 2, where it was drawn.
        left_out: what could not be read at all.
        race: of all methods, where there are more than the paper's.
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
        parts.append(_figure2(files, subsamples, race is not None))
    if race is not None:
        parts.append(_race(files, content, race))
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
    parts.append(_optional("Learned and chosen regularization", "regularization", content["regularization"]))
    parts.append(_optional("Table 2: compute time", "table2", content["table2"]))
    if "what_if" in content:
        parts.append(_optional("What if more had run at once", "what_if", _by_method(content["what_if"])))
    notes = [note if alone else f"{one.label}: {note}" for one in origins for note in one.notes]
    notes += race.notes if race is not None else []
    if notes:
        parts.append(section("What is missing, and why", listing(notes)))
    parts.append(section("What ran", table(content["counts"])))
    for one in origins:
        parts.append(listing(one.about) if alone else section(one.label, listing(one.about), level=3))
        if one.config:
            parts.append(details("Configuration", preformatted(one.config)))
    return document(title, parts)


def _figure2(files: dict[str, Path], subsamples: int | None, others: bool) -> str:
    parts = [figure(files["figure2.png"], "Expected test accuracy against compute time")]
    parts.append(paragraphs([NOTES["figure2"] + OTHERS * others], note=True))
    for name, summary in (
        ("figure2_full.png", "The same with validation, selection and handing over counted"),
        ("figure2_sampled.png", f"The same from {subsamples} random subsets of each size, as published"),
    ):
        if name in files:
            parts.append(details(summary, figure(files[name], summary)))
    return section("Figure 2", *parts)


def _race(files: dict[str, Path], content: dict[str, pd.DataFrame], race: Raced) -> str:
    """Figure, budgets, times and ranks of all methods; priors one by one are folded away."""
    parts = [figure(files["figure_race.png"], "Test accuracy of the best so far against compute time, all methods")]
    parts.append(paragraphs([NOTES["figure_race"]], note=True))
    if len(content["winners"]):
        parts += [section("Best at each budget", level=3), table(content["winners"])]
        parts.append(paragraphs([NOTES["winners"]], note=True))
    if len(mean := shares(race.budgets)):
        parts.append(details("Every method at each budget, on average over problems", table(mean)))
    if len(race.time_to):
        parts += [section("Time to within 0.5 points of the best", level=3), table(nearness(race.time_to))]
        parts.append(paragraphs([NOTES["time_to"]], note=True))
    if len(race.ranking):
        together = race.ranking["prior"] == "all"
        parts += [section("Ranking", level=3), table(race.ranking[together]), paragraphs([NOTES["ranking"]], note=True)]
        if not together.all():
            parts.append(details("Ranking with each prior", table(race.ranking[~together])))
    return section("The race", *parts)


def _optional(heading: str, name: str, content: pd.DataFrame) -> str:
    """A table under its heading, and what is said of it; nothing where it is empty."""
    return section(heading, table(content), paragraphs([NOTES[name]], note=True)) if len(content) else ""


def _by_method(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over splits of each cell, and the rows of all cells together."""
    keys = ["source", "dataset", "backbone", "prior", "method", "n", "cost", "slots"]
    alone = table["dataset"] != "all"
    means = table[alone].groupby(keys)[["cells", "one_slot_seconds", "makespan_seconds"]].mean().reset_index()
    return pd.concat([sort_rows(means, "cost"), table[~alone]], ignore_index=True)
