"""Figure 2 with all methods: anytime curves, a row of panels for each dataset and N, a column for each prior."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.report.figures.style import EDGE, label, looks, panels, tidy, time_unit
from bench.results.anytime import PER_OCTAVE
from bench.results.frame import iterate_groups, sort_rows

__all__ = ["figure_race"]


COUNTED = {
    "train": "training steps only",
    "full": "everything a method needs",
}
"""What is counted, in the name of the axis."""
LISTED = {
    "train": "",
    "full": "training, learning of strengths, validation, selection, hand-over of parts, choosing what to try next",
}
"""What that is one by one, in small print below it."""
ROW = ["dataset", "backbone", "n", "source"]
LEAST_DEEP, DEEPEST = 5.0, 25.0
"""Percentage points below the highest mean at which a panel is cut, as curves may begin near chance: so many that all
ends are in sight, at least 5, so that noise does not fill the panel, and at most 25."""


def figure_race(anytime: pd.DataFrame, cost: str = "full") -> Figure:
    """Mean test accuracy of the best so far against compute time on a log2 scale, and a band around it.

    A line for each method, a step function, with a marker where it ends and one each doubling of time; a marker alone
    where a method has one result and nothing before. The panels of a row share their limits; curves that begin far
    below are cut.

    Args:
        anytime: as `bench.results.anytime.anytime` gives, not empty.
        cost: what is counted as compute in it, "train" or "full".
    """
    rows = list(iterate_groups(sort_rows(anytime), ROW))
    priors = sort_rows(anytime[["prior"]].drop_duplicates())["prior"].tolist()
    methods = sort_rows(anytime[["method"]].drop_duplicates())["method"].tolist()
    look = looks(methods)
    unit, factor = time_unit(anytime["seconds"].max() / 3600)
    factor /= 3600
    shade = min(0.12, 0.6 / len(methods))  # many bands over each other are one grey
    legend = _legend(anytime, methods, look)
    size = (6.4 if len(priors) == 1 else 4.4 if len(priors) == 2 else 3.5, 2.5)
    width = len(priors) * (size[0] + 0.35)
    across = max(1, int(width // 2.0))
    named = [name for name in ("backbone", "source") if anytime[name].nunique() > 1]
    titles = 0.32 + 0.17 * bool(named)
    above = titles + 0.2 * math.ceil(len(legend) / across) + 0.1
    figure, grid = panels(len(rows), len(priors), size, (0.42, titles + 0.3), above)
    for axes, (known, of) in zip(grid, rows, strict=True):
        for axis, prior in zip(axes, priors, strict=True):
            shown = of[of["prior"] == prior]
            if shown.empty:
                axis.set_axis_off()
                continue
            for method in methods:
                curve = shown[shown["method"] == method]
                if len(curve):
                    _draw(axis, curve, look[method], factor, methods.index(method) % PER_OCTAVE, shade)
            words = f"{dataset_name(known['dataset'])}, N = {known['n']:,}, {PRIOR_NAMES.get(prior, prior)}"
            more = "\n" + ", ".join(known[name] for name in named) if named else ""
            axis.set_title(words + more, fontsize=9.5)
            _limits(axis, of, factor)
            tidy(axis)
    label(
        figure,
        f"compute time ({unit}, log2 scale; {COUNTED[cost]})",
        "test accuracy of the best so far (%, class-balanced)",
        legend,
        across,
    )
    height = figure.get_figheight()
    figure.supxlabel(figure.get_supxlabel(), fontsize=10, y=0.16 / height, va="bottom")  # moves it up
    figure.text(0.5, 0.03 / height, LISTED[cost], fontsize=6.5, color="0.3", ha="center", va="bottom")
    return figure


def _draw(axis: Axes, curve: pd.DataFrame, look: dict[str, Any], factor: float, first: int, shade: float) -> None:
    x, y = curve["seconds"].to_numpy() * factor, 100 * curve["test_acc"].to_numpy()
    point = {name: value for name, value in look.items() if name not in ("linestyle", "linewidth")} | {"zorder": 4}
    edge = {"markeredgecolor": look["color"] if "markerfacecolor" in look else "white", "markeredgewidth": 0.7}
    if len(curve) > 1:
        low, high = 100 * curve["low"], 100 * curve["high"]
        axis.fill_between(x, low, high, step="post", color=look["color"], alpha=shade, linewidth=0)
        small = {"markersize": 0.7 * look["markersize"], "markevery": (first, PER_OCTAVE), "drawstyle": "steps-post"}
        axis.plot(x, y, **(look | edge | {"markeredgewidth": 0.4, "zorder": 3} | small))
    axis.plot(x[-1:], y[-1:], **(EDGE | point | edge))


def _limits(axis: Axes, shown: pd.DataFrame, factor: float) -> None:
    """The same for all panels of a row: all times; accuracy from somewhat below the lowest end, as far as `DEEPEST`
    allows, to the top of the highest band at its end."""
    axis.set_xscale("log", base=2)
    times = np.maximum(shown["seconds"].to_numpy() * factor, 1e-9)
    octaves = math.log2(times.max() / times.min())
    room = 2 ** max(0.04 * octaves, (2.2 - octaves) / 2)  # two powers of 2 are always in sight
    axis.set_xlim(times.min() / room, times.max() * room)
    axis.xaxis.set_major_locator(LogLocator(base=4 if octaves > 7 else 2, numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    ends = 100 * shown.groupby(["prior", "method"])[["test_acc", "high"]].last()
    highest, last = 100 * shown["test_acc"].max(), ends["test_acc"].min()
    lowest = highest - min(max(1.25 * (highest - last), LEAST_DEEP), DEEPEST)
    margin = max(0.06 * (highest - lowest), 0.5)
    axis.set_ylim(lowest - margin, min(max(highest, ends["high"].max()) + margin, 101))


def _legend(anytime: pd.DataFrame, methods: list[str], look: dict[str, dict[str, Any]]) -> list[Any]:
    handles: list[Any] = []
    lines = anytime[anytime.duplicated([*ROW, "prior", "method"])]["method"]
    for method in methods:
        own = look[method] | {"markeredgewidth": 0.7}
        own |= {"markeredgecolor": own["color"] if "markerfacecolor" in own else "white"}
        own |= {} if (lines == method).any() else {"linestyle": "none"}
        handles.append(Line2D([], [], label=method_name(method), **own))
    if len(lines):
        several = "and repetitions" if (anytime["curves"] > anytime["seeds"]).any() else ""
        words = f"10-90 % of splits {several}".strip()
        handles.append(Patch(color="0.45", alpha=0.25, linewidth=0, label=words))
    return handles
