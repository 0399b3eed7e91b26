"""The report of any results: curves, figures 1 and 2, tables, and one page that holds them all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.labels import PAPER_METHODS
from bench.report.all_methods import raced, winners
from bench.report.figures.bounds import figure1, pairs
from bench.report.figures.style import save
from bench.report.figures.subsampling import figure2
from bench.report.formatting import markdown
from bench.report.html import is_report
from bench.report.narrative import sentences
from bench.report.page import page
from bench.results.curves import curves
from bench.results.frame import sort_rows
from bench.results.grid_comparison import equal_compute, regularization
from bench.results.makespan import what_if
from bench.results.paired_tests import chosen, paired_tests
from bench.results.sources import Results
from bench.results.tables import overview, table2, table3

__all__ = ["write_report"]


FIGURES = ("figure1", "figure2", "figure2_full", "figure2_sampled", "figure_race")
TABLES = (
    "table2",
    "table3",
    "equal_compute",
    "regularization",
    "paired_tests",
    "what_if",
    "winners",
    "time_to",
    "ranking",
)
KNOWN = [f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")]
KNOWN += [f"{name}.{kind}" for name in TABLES for kind in ("csv", "md")]
KNOWN += ["curves.csv", "curves_sampled.csv", "anytime.csv", "budgets.csv", "rank_pairs.csv", "report.html"]


def write_report(
    results: Sequence[Results],
    out: Path,
    subsamples: int | None = None,
    seed: int = 0,
    slots: int | None = None,
    left_out: Sequence[str] = (),
    replays: pd.DataFrame | None = None,
) -> dict[str, Path]:
    """Writes everything that the results allow into ``out``; the files by name.

    Where ``out`` holds an earlier report, that is replaced as a whole.

    Args:
        results: one or several, told apart by their labels.
        out: a folder; made where it does not exist.
        subsamples: draws the curves in the published form too, so many random subsets of each size, by ``seed``.
        slots: adds the makespan of each method, had so many trials run at once.
        left_out: what could not be read at all, a line each.
        replays: methods replayed on a finished grid (`bench.results.anytime.REPLAY`), to stand beside those that were
            run.

    Raises:
        ValueError: ``out`` cannot be a folder, or holds a report.html that is somebody else's; or ``replays`` lacks a
            column.
    """
    frame = pd.concat([one.frame for one in results], ignore_index=True)
    published = {one.label for one in results if one.published}
    drawn = curves(frame)
    content = {
        "table2": table2(frame),
        "table3": table3(frame),
        "equal_compute": equal_compute(drawn, published),
        "regularization": regularization(frame),
        "paired_tests": paired_tests(frame),
    }
    if slots is not None:
        content["what_if"] = what_if(frame, slots)
    figures = {
        name: figure2(drawn, cost, published)
        for name, cost in (("figure2", "train"), ("figure2_full", "full"))
        if ((drawn["cost"] == cost) & drawn["method"].isin(PAPER_METHODS)).any()
    }
    lists = {"curves.csv": drawn}
    if subsamples is not None:
        lists["curves_sampled.csv"] = sampled = curves(frame, subsamples, seed)
        if "figure2" in figures:
            figures["figure2_sampled"] = figure2(sampled, "train", published)
    runs = pairs(frame)
    if len(runs):
        figures["figure1"] = figure1(runs)
    race = raced(frame, drawn, replays)
    if race is not None:
        content |= {"winners": winners(race.budgets), "time_to": race.time_to, "ranking": race.ranking}
        lists |= {"anytime.csv": race.anytime, "budgets.csv": race.budgets, "rank_pairs.csv": race.rank_pairs}
        figures["figure_race"] = race.figure()
    shown = content | {"overview": overview(frame, published), "counts": _counts(frame)}
    lines = sentences(chosen(frame), shown["overview"], content["equal_compute"], content["paired_tests"])
    lines += race.lines if race is not None else []
    stale = _known(out)
    with tempfile.TemporaryDirectory(dir=out, prefix=".report-") as name:  # all of it or nothing
        made = Path(name)
        for file, one in lists.items():
            one.to_csv(made / file, index=False)
        for stem, one in content.items():
            one.to_csv(made / f"{stem}.csv", index=False)
            (made / f"{stem}.md").write_text(markdown(one), encoding="utf-8")
        drawings = {path.name: path for stem, drawing in figures.items() for path in save(drawing, made, stem)}
        text = page(results, lines, shown, drawings, subsamples, left_out, race)
        (made / "report.html").write_text(text, encoding="utf-8")
        files = {path.name: out / path.name for path in sorted(made.iterdir())}
        for file in sorted(files, key=lambda file: file == "report.html"):
            os.replace(made / file, files[file])
    for file in stale - set(files):
        (out / file).unlink()
    return files


def _known(out: Path) -> set[str]:
    """Files of an earlier report in a folder, which is made where it does not exist.

    Raises:
        ValueError: it is no folder, or its report.html is somebody else's.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be a folder ({error.strerror}): give another --out") from error
    mine = out / "report.html"
    if not os.path.lexists(mine):
        return set()
    if not is_report(mine):
        raise ValueError(f"{mine} was not made by `report`, and would be overwritten: give another --out")
    return {name for name in KNOWN if (out / name).is_file()}


def _counts(frame: pd.DataFrame) -> pd.DataFrame:
    """How many runs of each kind completed, diverged, failed."""
    keys = ["source", "dataset", "prior", "method", "stage"]
    counts = frame.groupby([*keys, "status"]).size().unstack("status", fill_value=0)  # noqa: PD010
    counts = counts.reindex(columns=["completed", "diverged", "failed"], fill_value=0).reset_index()
    return sort_rows(counts, "stage")
