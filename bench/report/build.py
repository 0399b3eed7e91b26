"""Build the report of any results: curves, figures 1 and 2, tables, and one page with all of them."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from bench.exceptions import ReportError
from bench.report.all_methods import MethodComparison, best_methods_table, compare_all_methods
from bench.report.figures.anytime import draw_anytime
from bench.report.figures.bounds import draw_bounds, select_bound_runs
from bench.report.figures.kappa_sweep import draw_kappa_sweep
from bench.report.figures.style import default_settings, save_figure
from bench.report.figures.subsampling import draw_subsampling, has_subsampling
from bench.report.formatting import to_markdown
from bench.report.html import is_report
from bench.report.narrative import describe_findings
from bench.report.page import build_page
from bench.results.curves import compute_curves
from bench.results.frame import sort_rows
from bench.results.grid_comparison import compare_at_equal_compute, compare_regularization
from bench.results.kappa_sweep import compute_kappa_sweep
from bench.results.makespan import compute_makespans
from bench.results.paired_tests import compute_paired_tests, select_results
from bench.results.paper import find_paper_de_elbo
from bench.results.sources import Results
from bench.results.tables import compute_overview, compute_table2, compute_table3
from bench.utils.text import describe_error

FIGURES = ("figure1", "figure2", "figure2_full", "figure2_sampled", "figure_race", "figure_kappa")
LISTS = ("curves", "curves_sampled", "anytime", "budgets", "rank_pairs", "kappa_sweep")
"""Tables for programs: CSV only."""
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
"""Tables for readers: CSV and Markdown."""
FILES = ["report.html", *(f"{name}.csv" for name in LISTS + TABLES), *(f"{name}.md" for name in TABLES)]
FILES += [f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")]


@dataclass(frozen=True)
class _Tables:
    """All tables of a report by name, and what figures need beside them."""

    tables: dict[str, pd.DataFrame]
    paper: pd.DataFrame
    comparison: MethodComparison | None


def write_report(
    results: Sequence[Results],
    out: Path,
    subsamples: int | None = None,
    seed: int = 0,
    slots: int | None = None,
    left_out: Sequence[str] = (),
    replays: pd.DataFrame | None = None,
) -> dict[str, Path]:
    """Write all figures, tables and the page that the results allow, and return the files by name.

    An earlier report in ``out`` is replaced. ``subsamples`` adds the curves of so many random subsets of each size,
    ``slots`` the makespan on so many slots, ``replays`` replayed results (columns `bench.results.anytime.REPLAY`)
    beside methods that ran; ``left_out`` are sources that could not be read at all, one line each.

    Raises:
        ValueError: ``out`` cannot be a folder, or has a report.html of another origin; or ``replays`` lacks a column.
        ReportError: a figure cannot be drawn.
    """
    frame = pd.concat([one.frame for one in results], ignore_index=True)
    computed = _compute_tables(frame, {one.label for one in results if one.published}, subsamples, seed, slots, replays)
    old = _find_old_report(out)
    with tempfile.TemporaryDirectory(dir=out, prefix=".report-") as name:  # replace all of the report or nothing
        folder = Path(name)
        for stem, table in computed.tables.items():
            if stem in LISTS + TABLES:
                table.to_csv(folder / f"{stem}.csv", index=False)
            if stem in TABLES:
                (folder / f"{stem}.md").write_text(to_markdown(table), encoding="utf-8")
        images = {path.name: path for path in _draw_figures(frame, computed, folder)}
        findings = describe_findings(computed.tables)
        page = build_page(results, findings, computed.tables, images, subsamples, left_out, computed.comparison)
        (folder / "report.html").write_text(page, encoding="utf-8")
        return _replace_files(folder, out, old)


def _compute_tables(
    frame: pd.DataFrame,
    published: set[str],
    subsamples: int | None,
    seed: int,
    slots: int | None,
    replays: pd.DataFrame | None,
) -> _Tables:
    curves, results = compute_curves(frame), select_results(frame)
    paper = find_paper_de_elbo(curves, published)
    second, third = compute_table2(frame), compute_table3(frame)
    tables = {
        "results": results,
        "overview": compute_overview(frame, second, third, paper),
        "counts": _count_runs(frame),
        "curves": curves,
        "table2": second,
        "table3": third,
        "equal_compute": compare_at_equal_compute(curves, paper),
        "regularization": compare_regularization(frame),
        "paired_tests": compute_paired_tests(results),
    }
    if len(sweep := compute_kappa_sweep(frame)):
        tables["kappa_sweep"] = sweep
    if slots is not None:
        tables["what_if"] = compute_makespans(frame, slots)
    if subsamples is not None:
        tables["curves_sampled"] = compute_curves(frame, subsamples, seed)
    comparison = compare_all_methods(frame, curves, results, replays)
    if comparison is not None:
        tables["winners"] = best_methods_table(comparison.budgets)
        tables |= {
            name: getattr(comparison, name) for name in ("time_to", "ranking", "anytime", "budgets", "rank_pairs")
        }
    return _Tables(tables, paper, comparison)


def _draw_figures(frame: pd.DataFrame, computed: _Tables, folder: Path) -> list[Path]:
    """Draw and save all figures, and return their files."""
    try:
        with default_settings():
            return [path for name, figure in _figures(frame, computed) for path in save_figure(figure, folder, name)]
    except OSError:  # of the folder, such as a full disk
        raise
    except Exception as error:  # matplotlib and its backends raise anything
        raise ReportError(f"the figures cannot be drawn ({describe_error(error)})") from error


def _figures(frame: pd.DataFrame, computed: _Tables) -> Iterator[tuple[str, Figure]]:
    curves, comparison = computed.tables["curves"], computed.comparison
    for name, cost in (("figure2", "train"), ("figure2_full", "full")):
        if has_subsampling(curves, cost):
            yield name, draw_subsampling(curves, cost, computed.paper)
            if name == "figure2" and "curves_sampled" in computed.tables:
                yield "figure2_sampled", draw_subsampling(computed.tables["curves_sampled"], cost, computed.paper)
    if len(runs := select_bound_runs(frame)):
        yield "figure1", draw_bounds(runs)
    if "kappa_sweep" in computed.tables:
        yield "figure_kappa", draw_kappa_sweep(computed.tables["kappa_sweep"])
    if comparison is not None:
        yield "figure_race", draw_anytime(comparison.anytime, comparison.cost)


def _replace_files(folder: Path, out: Path, old: set[str]) -> dict[str, Path]:
    """Move a complete report into its place, the page last, and delete files of an old one that it does not have."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name == "report.html", name))
    for name in names:
        (folder / name).replace(out / name)
    for name in old - set(names):
        (out / name).unlink()
    return {name: out / name for name in sorted(names)}


def _find_old_report(out: Path) -> set[str]:
    """Find the files of an earlier report in a folder, which is made if it does not exist."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be a folder ({error.strerror}): give another --out") from error
    page = out / "report.html"
    if not os.path.lexists(page):
        return set()
    if not is_report(page):
        raise ValueError(f"{page} was not made by `report`, and would be overwritten: give another --out")
    return {name for name in FILES if (out / name).is_file()}


def _count_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Count the completed, diverged and failed runs of each kind."""
    keys = ["source", "dataset", "prior", "method", "stage"]
    counts = frame.groupby([*keys, "status"]).size().unstack("status", fill_value=0)  # noqa: PD010
    counts = counts.reindex(columns=["completed", "diverged", "failed"], fill_value=0).reset_index()
    return sort_rows(counts, "stage")
