"""Figure 2: compute time against test accuracy of what the paper compares, a panel for each dataset and N."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.labels import PAPER_METHODS, PRIOR_NAMES, dataset_name, method_name
from bench.report.figures.style import EDGE, METHOD_COLORS, PRIOR_COLORS, label, panels, tidy, time_unit
from bench.results.frame import iterate_groups, sort_rows
from bench.results.paper import paper_de_elbo

__all__ = ["figure2"]


COUNTED = {"train": "training steps only", "full": "with validation, selection and handing over"}
SHAPES = {"l2-zero": ("^", 6.5), "l2-sp": ("o", 6.0), "ptyl": ("s", 5.5)}
LINES: dict[str, Any] = {"l2-zero": (0, (5, 1.5)), "l2-sp": "-", "ptyl": (0, (1.5, 1))}
PAPER: dict[str, Any] = {"marker": "D", "markersize": 7.0, "markerfacecolor": "none", "markeredgewidth": 1.3}
ALONE = {"map-gs": ("o", 6.0), "de-elbo": ("*", 13.0), "elbo": ("X", 8.0)}
PROBLEM = ["dataset", "backbone", "n"]
PANEL = [*PROBLEM, "source"]
LINE = [*PANEL, "prior", "method", "split_seed"]
CURVED = ["map-gs"]
"""Methods of which a part is worth something, so that they have a curve."""


def figure2(curves: pd.DataFrame, cost: str = "train", published: Collection[str] = ()) -> Figure:
    """A line for each grid method and split seed, with the 10-90 % band of its subsamples and a marker where it ends; a
    marker alone for methods that need no curve. One panel per dataset and N, and per backbone and source if there are
    several. For what the paper prints of the DE ELBo, where it stands in, a dotted line and a hollow marker. Other
    methods are left to `bench.report.figures.anytime`.

    Args:
        curves: as `bench.results.curves.curves` gives, with at least one of the paper's methods.
        cost: "train" or "full", as in `bench.results.curves.COSTS`.
        published: the sources that are the paper's own, where what it prints of the DE ELBo stands in for runs.
    """
    shown = sort_rows(curves[(curves["cost"] == cost) & curves["method"].isin(PAPER_METHODS)], "split_seed", "k")
    ends = shown["k"] == shown.groupby(LINE)["k"].transform("max")
    shown = shown[ends | shown["method"].isin(CURVED)]
    cells = list(iterate_groups(shown, PANEL, sort=True))
    columns = _columns(len(cells), shown["source"].nunique())
    rows = math.ceil(len(cells) / columns)
    size, titles = (4.4 if columns == 1 else 2.6, 2.1), 0.2 * _title(shown, **cells[0][0]).count("\n") + 0.3
    by_prior = shown["prior"].nunique() > 1
    longest = shown.groupby(PROBLEM)["expected_hours"].transform("max")
    unit, factor = time_unit(longest.max())
    apart = longest.min() * factor < 0.25  # seconds beside hours: each panel in a unit of its own
    printed = paper_de_elbo(shown, published if cost == "train" else ())
    legend = _legend(shown, by_prior, len(printed) > 0)
    across = max(1, int(columns * (size[0] + 0.4) // 2.2))
    above = titles + 0.22 * math.ceil(len(legend) / across) + 0.05
    figure, grid = panels(rows, columns, size, (0.42, titles + 0.25 + 0.15 * apart), above)
    axes = grid.ravel()
    for axis, (where, panel) in zip(axes, cells, strict=False):
        if apart:
            name, factor = time_unit(longest[panel.index[0]])
            axis.set_xlabel(name, fontsize=8, labelpad=1)
        for line, curve in iterate_groups(panel, LINE):
            _draw(axis, curve, _look(line["prior"], line["method"], by_prior), factor, 0.05 if by_prior else 0.1)
        _draw_printed(axis, printed[_agree(printed, where)], by_prior, factor)
        axis.set_title(_title(shown, **where), fontsize=9.5)
        problem = {name: where[name] for name in PROBLEM}  # sources side by side share their limits
        _limits(axis, shown[_agree(shown, problem)], printed[_agree(printed, problem)], factor)
        tidy(axis)
    for axis in axes[len(cells) :]:
        axis.set_axis_off()
    time = f"compute time ({'' if apart else f'{unit}, '}log2 scale; {COUNTED[cost]})"
    label(figure, time, "test accuracy (%, class-balanced)", legend, across)
    return figure


def _columns(panels: int, sources: int) -> int:
    """Up to four panels in a row, or six where there are many, so that few places stay empty; sources side by side."""
    if sources > 1 and panels % sources == 0:
        return sources * max(1, min(panels, 4) // sources)
    return panels if panels <= 4 else min((4, 3) if panels <= 12 else (6, 5), key=lambda columns: -panels % columns)


def _title(shown: pd.DataFrame, dataset: str, backbone: str, n: int, source: str) -> str:
    words = [f"{dataset_name(dataset)}, N = {n:,}"]
    words += [name for column, name in (("backbone", backbone), ("source", source)) if shown[column].nunique() > 1]
    return "\n".join([words[0], ", ".join(words[1:])]) if words[1:] else words[0]


def _look(prior: str, method: str, by_prior: bool) -> dict[str, Any]:
    """How a method with a prior is drawn: by shape and line of its prior if there are several, else of the method."""
    if not by_prior:
        shape, size = ALONE.get(method, ("D", 6.0))
        return {"color": METHOD_COLORS.get(method, "#444444"), "marker": shape, "markersize": size, "line": "-"}
    shape, size = SHAPES.get(prior, ("D", 6.0))
    look = {"color": PRIOR_COLORS.get(prior, "#444444"), "marker": shape, "line": LINES.get(prior, "-")}
    if method == "map-gs":
        return look | {"markersize": size}
    if method == "de-elbo":
        return look | {"markersize": size + 2.5, "markeredgecolor": "black", "markeredgewidth": 1.1}
    return look | {"markersize": size, "markerfacecolor": "none", "markeredgecolor": look["color"]}


def _draw(axis: Axes, curve: pd.DataFrame, look: dict[str, Any], factor: float, shade: float) -> None:
    look = dict(look)
    line = look.pop("line")
    x = curve["expected_hours"] * factor
    if len(curve) > 1:
        low, high = 100 * curve["q10_test_acc"], 100 * curve["q90_test_acc"]
        axis.fill_between(x, low, high, color=look["color"], alpha=shade, linewidth=0)
        axis.plot(x, 100 * curve["expected_test_acc"], color=look["color"], linestyle=line, linewidth=1.3, alpha=0.9)
    axis.plot(x.iloc[-1:], 100 * curve["expected_test_acc"].iloc[-1:], **(EDGE | look))


def _draw_printed(axis: Axes, printed: pd.DataFrame, by_prior: bool, factor: float) -> None:
    """A dotted line at the printed accuracy, and a hollow marker where the time is printed too."""
    for row in printed.to_dict("records"):
        look = _look(row["prior"], "de-elbo", by_prior)
        axis.axhline(row["published_mean"], color=look["color"], linestyle=":", linewidth=1.4, zorder=2)
        hollow = PAPER | {"markeredgecolor": look["color"]}
        axis.plot(row["published_total_seconds"] / 3600 * factor, row["published_mean"], **(EDGE | hollow))


def _agree(table: pd.DataFrame, values: dict[str, Any]) -> pd.Series:
    return (table[list(values)] == list(values.values())).all(axis=1)


def _limits(axis: Axes, shown: pd.DataFrame, printed: pd.DataFrame, factor: float) -> None:
    """Time at powers of 2, or of 4 where there are many; accuracy from the lowest mean to the highest: bands, which
    begin near chance, are cut."""
    axis.set_xscale("log", base=2)
    times = factor * pd.concat([shown["expected_hours"], printed["published_total_seconds"] / 3600])
    least, most = max(times.min(), 1e-9), max(times.max(), 1e-9)
    octaves = math.log2(most / least)
    room = 2 ** max(0.05 * octaves, (2.2 - octaves) / 2)  # two powers of 2 are always in sight
    axis.set_xlim(least / room, most * room)
    axis.xaxis.set_major_locator(LogLocator(base=4 if octaves > 7 else 2, numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    heights = pd.concat([100 * shown["expected_test_acc"], printed["published_mean"]])
    margin = max(0.07 * (heights.max() - heights.min()), 0.5)
    axis.set_ylim(heights.min() - margin, min(heights.max() + margin, 101))


def _legend(shown: pd.DataFrame, by_prior: bool, printed: bool) -> list[Any]:
    handles: list[Any] = []
    pairs = shown[["prior", "method"]].drop_duplicates()
    for prior in sort_rows(pairs[["prior"]].drop_duplicates())["prior"]:
        for method in [name for name in PAPER_METHODS if ((pairs["prior"] == prior) & (pairs["method"] == name)).any()]:
            of = shown[(shown["prior"] == prior) & (shown["method"] == method)]
            look = dict(_look(prior, method, by_prior))
            line = look.pop("line") if of.duplicated(LINE).any() else "none"
            look.pop("line", None)
            label = f"{PRIOR_NAMES.get(prior, prior)} {method_name(method)}"
            handles.append(Line2D([], [], **(EDGE | look | {"linestyle": line}), label=label))
    if shown.duplicated(LINE).any():
        handles.append(Patch(color="0.45", alpha=0.25, linewidth=0, label="10-90 % of subsets of that size"))
    if printed:
        paper = EDGE | PAPER | {"color": "0.3", "markeredgecolor": "0.3", "linestyle": ":", "linewidth": 1.4}
        handles.append(Line2D([], [], label="DE ELBo as the paper prints it", **paper))
    return handles
