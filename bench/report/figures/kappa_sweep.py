"""Test accuracy and NLL against kappa / (D/N): two rows of panels per sweep, a column per N."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from bench.labels import PRIOR_NAMES, dataset_name
from bench.report.figures.style import (
    EDGE,
    METHOD_COLORS,
    label_figure,
    make_panels,
    split_handles,
    split_markers,
    style_axes,
)
from bench.results.frame import iterate_groups
from bench.results.kappa_sweep import SWEEP

METRICS = (("test_acc", 100.0, "test accuracy (%)"), ("test_nll", 1.0, "test NLL (nats)"))
MAX_POINTS = 25.0
"""Percentage points below the best mean that a panel shows at most, as small kappa may end at chance; NLLs are shown to
twice the best mean."""
COLOR = METHOD_COLORS["de-elbo"]


def draw_kappa_sweep(sweep: pd.DataFrame) -> Figure:
    """Draw a line through the means over split seeds, and a marker per split; a dotted line is at kappa = D/N."""
    rows = list(iterate_groups(sweep, SWEEP))
    columns = int(sweep.groupby(SWEEP)["n"].nunique().max())
    markers = split_markers(sweep["split_seed"])
    named = [name for name in ("backbone", "source", "settings") if sweep[name].nunique() > 1]
    titles = 0.32 + 0.17 * bool(named)
    figure, grid = make_panels(2 * len(rows), columns, (2.6, 1.7), (0.5, titles + 0.3), titles + 0.4)
    for i, (place, of) in enumerate(rows):
        more = ", ".join(place[name] for name in named if place[name])
        name = f"{dataset_name(place['dataset'])}, {PRIOR_NAMES.get(place['prior'], place['prior'])}"
        panels = list(iterate_groups(of, ["n"], sort=True))
        for axes, (metric, factor, label) in zip(grid[2 * i : 2 * i + 2], METRICS, strict=True):
            axes[0].set_ylabel(label, fontsize=8.5)
            for axis in axes[len(panels) :]:
                axis.set_axis_off()
            for axis, (n, panel) in zip(axes, panels, strict=False):
                axis.set_title("\n".join(filter(None, [f"{name}, N = {n['n']:,}", more])), fontsize=9, parse_math=False)
                _draw(axis, panel.assign(value=factor * panel[metric]), markers, metric == "test_acc")
    line = Line2D([], [], label="mean over splits", color=COLOR, linewidth=1.4)
    label_figure(figure, "kappa / (D/N), log scale", "", [line, *split_handles(markers)], 2 * columns)
    return figure


def _draw(axis: Axes, panel: pd.DataFrame, markers: dict[Any, str], rises: bool) -> None:
    means = panel.groupby("kappa_ratio")["value"].mean()
    axis.plot(means.index, means, color=COLOR, linewidth=1.4)
    for seed, of in panel.groupby("split_seed"):
        axis.plot(
            of["kappa_ratio"], of["value"], **(EDGE | {"color": COLOR, "marker": markers[seed], "markersize": 5.0})
        )
    axis.axvline(1, color="0.4", linestyle=":", linewidth=1)
    shown = panel["value"][
        (panel["value"] >= means.max() - MAX_POINTS) if rises else (panel["value"] <= 2 * means.min())
    ]
    margin = max(0.08 * (shown.max() - shown.min()), 0.002 * shown.max())
    axis.set_ylim(shown.min() - margin, shown.max() + margin)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(base=10, numticks=6))
    axis.xaxis.set_minor_locator(NullLocator())
    style_axes(axis)
