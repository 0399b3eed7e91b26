"""Content of report.html: its sections and their order."""

import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import pandas as pd

from bench.report import html
from bench.report.all_methods import MethodComparison, relative_accuracy_table, time_to_target_table
from bench.results.edges import find_edges
from bench.results.frame import sort_rows
from bench.results.sources import Results

NOTES: dict[str, str] = tomllib.loads((files("bench.report") / "assets" / "notes.toml").read_text(encoding="utf-8"))
"""Note under each figure and table, by its name."""


def build_page(
    results: Sequence[Results],
    findings: Sequence[str],
    tables: Mapping[str, pd.DataFrame],
    images: Mapping[str, Path],
    subsamples: int | None,
    left_out: Sequence[str],
    comparison: MethodComparison | None = None,
) -> str:
    """Build report.html from findings for its top, tables and drawn figures by name, and each source's notes."""
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
    edges = [line for one in results for line in find_edges(one.frame)]
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
        _kappa_sweep(images),
        _table("Learned and chosen regularization", "regularization", tables["regularization"]),
        html.section("Choices at the end of a grid or range", html.bullets(edges)) if edges else "",
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


def _kappa_sweep(images: Mapping[str, Path]) -> str:
    if "figure_kappa.png" not in images:
        return ""
    image = html.figure(images["figure_kappa.png"], "Test accuracy and NLL against kappa / (D/N)")
    return html.section("Other values of kappa", image, html.notes(NOTES["figure_kappa"]))


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
