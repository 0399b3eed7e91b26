"""Figure 2: compute time against test accuracy, a panel for each dataset and N."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.tables import METHOD_NAMES, PRIOR_NAMES

__all__ = ["figure2", "save"]

# Okabe and Ito's colours, told apart by the colour-blind and in grey print
METHOD_COLOURS = {"map-gs": "#0072B2", "de-elbo": "#D55E00", "elbo": "#444444"}
PRIOR_COLOURS = {"l2-zero": "#009E73", "l2-sp": "#0072B2", "ptyl": "#CC79A7"}
MARKERS = {"map-gs": ("o", 6.0), "de-elbo": ("*", 13.0), "elbo": ("X", 8.0)}
UNITS = (("hours", 1.0), ("minutes", 60.0), ("seconds", 3600.0))
COSTS = {"train": "training steps only", "full": "training, evaluation and selection"}


def figure2(curves: pd.DataFrame, cost: str = "train") -> Figure:
    """One panel per dataset and N: a line for each grid method and split seed, a marker where it ends; a marker alone
    for methods that need no tuning runs. ``curves``: as `bench.curves.curves` gives."""
    shown = curves[curves["cost"] == cost]
    panels = list(shown.groupby(["dataset", "n"], sort=True))
    columns = min(len(panels), 4) or 1
    rows = math.ceil(len(panels) / columns) or 1
    figure = Figure(figsize=(max(3.4 * columns, 5.2), 3.0 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    by_prior = shown["prior"].nunique() > 1
    unit, factor = _unit(shown["expected_hours"].max())
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, ((dataset, n), panel) in zip(axes, panels, strict=False):
        for (prior, method, _), curve in panel.groupby(["prior", "method", "split_seed"], sort=True):
            _draw(axis, curve.sort_values("k"), method, _colour(prior, method, by_prior), factor)
        axis.set_title(f"{dataset}, N = {n:,}", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(True, which="major", color="0.9", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.supxlabel(f"compute time ({unit}; {COSTS[cost]})", fontsize=10)
    figure.supylabel("test accuracy (%, class-balanced)", fontsize=10)
    figure.legend(handles=_legend(shown, by_prior), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes PNG and PDF; their paths."""
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    with mpl.rc_context({"pdf.fonttype": 42}):
        for path in paths:
            figure.savefig(path, dpi=200)
    return paths


def _draw(axis: Axes, curve: pd.DataFrame, method: str, colour: str, factor: float) -> None:
    x, y = curve["expected_hours"] * factor, 100 * curve["expected_test_acc"]
    marker, size = MARKERS.get(method, ("o", 6.0))
    if method == "map-gs" and len(curve) > 1:
        axis.plot(x, y, color=colour, linewidth=1.3, alpha=0.85)
    edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.7, "linestyle": "none", "zorder": 3}
    axis.plot(x.iloc[-1:], y.iloc[-1:], marker=marker, markersize=size, color=colour, **edge)


def _colour(prior: str, method: str, by_prior: bool) -> str:
    return PRIOR_COLOURS.get(prior, "#444444") if by_prior else METHOD_COLOURS.get(method, "#444444")


def _unit(most_hours: float) -> tuple[str, float]:
    """The largest unit in which the longest time is at least 2."""
    return next(((unit, factor) for unit, factor in UNITS if most_hours * factor >= 2), UNITS[-1])


def _legend(shown: pd.DataFrame, by_prior: bool) -> list[Line2D]:
    pairs = shown[["prior", "method"]].drop_duplicates().itertuples(index=False)
    handles = []
    for prior, method in sorted(
        pairs, key=lambda pair: (list(PRIOR_NAMES).index(pair[0]), pair[1] != "map-gs", pair[1])
    ):
        marker, size = MARKERS.get(method, ("o", 6.0))
        of = shown[(shown["prior"] == prior) & (shown["method"] == method)]
        line: Any = "-" if method == "map-gs" and of["k"].nunique() > 1 else "none"
        label = f"{PRIOR_NAMES.get(prior, prior)} {METHOD_NAMES.get(method, method)}"
        colour = _colour(prior, method, by_prior)
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=size, linestyle=line, label=label))
    return handles
