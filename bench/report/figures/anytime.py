"""Anytime curves of all methods: a row of panels per dataset and N, a column per prior."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.report.figures.style import (
    EDGE,
    band_handle,
    choose_time_unit,
    label_figure,
    make_panels,
    method_styles,
    set_time_axis,
    style_axes,
)
from bench.results.anytime import POINTS_PER_DOUBLING
from bench.results.frame import iterate_groups, sort_rows

COST_LABELS = {"train": "training steps only", "full": "everything a method needs"}
COST_DETAILS = {
    "train": "",
    "full": "training, learning strengths, validation, selection, checkpoints, choosing what to try next",
}
"""Parts of the cost, in small print below the axis label."""
ROW = ["dataset", "backbone", "n", "source"]
MIN_RANGE, MAX_RANGE = 5.0, 25.0
"""Percentage points below the highest mean at which a panel is cut, as curves may begin near chance: enough to show all
ends, at least 5, so that noise does not fill the panel, and at most 25."""


def draw_anytime(anytime: pd.DataFrame, cost: str = "full") -> Figure:
    """Draw mean test accuracy of the current choice against compute time on a log2 scale, with a band around it.

    A line per method, a step function with a marker at its end and one per doubling of time; a marker alone for a
    method with a single result. The panels of a row share their limits; curves that begin far below are cut.
    """
    rows = list(iterate_groups(sort_rows(anytime), ROW))
    priors = sort_rows(anytime[["prior"]].drop_duplicates())["prior"].tolist()
    methods = sort_rows(anytime[["method"]].drop_duplicates())["method"].tolist()
    styles = {name: style | _marker_edge(style) for name, style in method_styles(methods).items()}
    unit, factor = choose_time_unit(anytime["seconds"].max() / 3600)
    shade = min(0.12, 0.6 / len(methods))  # many bands over each other would be one gray
    legend = _legend(anytime, styles)
    size = (6.4 if len(priors) == 1 else 4.4 if len(priors) == 2 else 3.5, 2.5)
    across = max(1, int(len(priors) * (size[0] + 0.35) // 2.0))
    named = [name for name in ("backbone", "source") if anytime[name].nunique() > 1]
    titles = 0.32 + 0.17 * bool(named)
    above = titles + 0.2 * math.ceil(len(legend) / across) + 0.1
    figure, grid = make_panels(len(rows), len(priors), size, (0.42, titles + 0.3), above)
    for axes, (place, of) in zip(grid, rows, strict=True):
        for axis, prior in zip(axes, priors, strict=True):
            shown = of[of["prior"] == prior]
            if shown.empty:
                axis.set_axis_off()
                continue
            for i, method in enumerate(methods):
                curve = shown[shown["method"] == method].assign(time=shown["seconds"] * factor / 3600)
                if len(curve):
                    _draw(axis, curve, styles[method], i % POINTS_PER_DOUBLING, shade)
            more = "\n" + ", ".join(place[name] for name in named) if named else ""
            title = f"{dataset_name(place['dataset'])}, N = {place['n']:,}, {PRIOR_NAMES.get(prior, prior)}{more}"
            axis.set_title(title, fontsize=9.5, parse_math=False)
            set_time_axis(axis, of["seconds"].min() * factor / 3600, of["seconds"].max() * factor / 3600, 0.04)
            _set_accuracy_limits(axis, of)
            style_axes(axis)
    y = "test accuracy of the best so far (%, class-balanced)"
    label_figure(figure, f"compute time ({unit}, log2 scale; {COST_LABELS[cost]})", y, legend, across)
    height = figure.get_figheight()
    figure.supxlabel(figure.get_supxlabel(), fontsize=10, y=0.16 / height, va="bottom")  # moves it up
    figure.text(0.5, 0.03 / height, COST_DETAILS[cost], fontsize=6.5, color="0.3", ha="center", va="bottom")
    return figure


def _marker_edge(style: dict[str, Any]) -> dict[str, Any]:
    return {"markeredgecolor": style["color"] if "markerfacecolor" in style else "white", "markeredgewidth": 0.7}


def _draw(axis: Axes, curve: pd.DataFrame, style: dict[str, Any], first: int, shade: float) -> None:
    x, y = curve["time"], 100 * curve["test_acc"]
    if len(curve) > 1:
        axis.fill_between(
            x, 100 * curve["low"], 100 * curve["high"], step="post", color=style["color"], alpha=shade, linewidth=0
        )
        small = {"markersize": 0.7 * style["markersize"], "markeredgewidth": 0.4, "zorder": 3}
        steps = {"markevery": (first, POINTS_PER_DOUBLING), "drawstyle": "steps-post"}
        axis.plot(x, y, **(style | small | steps))
    axis.plot(x.iloc[-1:], y.iloc[-1:], **(style | {"linestyle": EDGE["linestyle"], "zorder": 4}))


def _set_accuracy_limits(axis: Axes, shown: pd.DataFrame) -> None:
    """Show accuracies from below the lowest end, within `MIN_RANGE` and `MAX_RANGE`, to the top of the highest band."""
    ends = 100 * shown.groupby(["prior", "method"])[["test_acc", "high"]].last()
    highest = 100 * shown["test_acc"].max()
    lowest = highest - min(max(1.25 * (highest - ends["test_acc"].min()), MIN_RANGE), MAX_RANGE)
    margin = max(0.06 * (highest - lowest), 0.5)
    axis.set_ylim(lowest - margin, min(max(highest, ends["high"].max()) + margin, 101))


def _legend(anytime: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> list[Any]:
    lines = anytime[anytime.duplicated([*ROW, "prior", "method"])]["method"]
    handles: list[Any] = [
        Line2D(
            [], [], label=method_name(method), **(style if (lines == method).any() else style | {"linestyle": "none"})
        )
        for method, style in styles.items()
    ]
    if len(lines):
        repeated = " and repetitions" if (anytime["curves"] > anytime["seeds"]).any() else ""
        handles.append(band_handle(f"10-90 % of splits{repeated}"))
    return handles
