"""Figure 2: test accuracy against compute time of the paper's methods, a panel per dataset and N."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.labels import PAPER_METHODS, PRIOR_NAMES, dataset_name, method_name
from bench.report.figures.style import (
    EDGE,
    METHOD_COLORS,
    PRIOR_COLORS,
    SPLIT_MARKERS,
    band_handle,
    choose_time_unit,
    label_figure,
    make_panels,
    set_time_axis,
    split_handles,
    split_markers,
    style_axes,
)
from bench.results.frame import iterate_groups, sort_rows

COST_LABELS = {"train": "training steps only", "full": "with validation, selection and checkpoints"}
PRIOR_STYLES: dict[str, dict[str, Any]] = {
    "l2-zero": {"linestyle": (0, (5, 1.5)), "fillstyle": "left"},
    "l2-sp": {"linestyle": "-", "fillstyle": "full"},
    "ptyl": {"linestyle": (0, (1.5, 1)), "fillstyle": "bottom"},
}
METHOD_STYLES: dict[str, dict[str, Any]] = {
    "map-gs": {"markersize": 6.5},
    "de-elbo": {"markersize": 9.0, "markeredgecolor": "black", "markeredgewidth": 1.1},
    "elbo": {"markersize": 7.0, "fillstyle": "none", "markeredgewidth": 1.3},
}
PRINTED: dict[str, Any] = {"marker": "D", "markersize": 7.0, "markerfacecolor": "none", "markeredgewidth": 1.3}
PROBLEM = ["dataset", "backbone", "n"]
PANEL = [*PROBLEM, "source"]
CURVE = [*PANEL, "prior", "method", "split_seed"]


def has_subsampling(curves: pd.DataFrame, cost: str) -> bool:
    """Return whether there is a curve to draw."""
    return bool(((curves["cost"] == cost) & curves["method"].isin(PAPER_METHODS)).any())


def draw_subsampling(curves: pd.DataFrame, cost: str, paper: pd.DataFrame) -> Figure:
    """Draw a line per split seed of grid search, with 10-90 % bands of its subsets, and a marker per other method.

    The shape of a marker says its split, its size and edge the method. One panel per dataset and N, and per backbone
    and source if there are several; sources share their limits. Printed DE ELBo results of the ``paper`` are a dotted
    line, with a hollow marker if their time is printed.
    """
    shown = sort_rows(curves[(curves["cost"] == cost) & curves["method"].isin(PAPER_METHODS)], "split_seed", "k")
    ends = shown["k"] == shown.groupby(CURVE)["k"].transform("max")
    shown = shown[ends | (shown["method"] == "map-gs")]  # only part of a grid is a result
    printed = paper if cost == "train" else paper.iloc[:0]
    cells = list(iterate_groups(shown, PANEL, sort=True))
    columns = _choose_columns(len(cells), shown["source"].nunique())
    size, titles = (4.4 if columns == 1 else 2.6, 2.1), 0.2 * _title(shown, cells[0][0]).count("\n") + 0.3
    by_prior = shown["prior"].nunique() > 1
    longest = shown.groupby(PROBLEM)["expected_hours"].transform("max")
    unit, factor = choose_time_unit(longest.max())
    own_units = longest.min() * factor < 0.25  # if some panels have hours and others seconds
    markers = split_markers(shown["split_seed"])
    legend = _legend(shown, markers, by_prior, len(printed) > 0)
    across = max(1, int(columns * (size[0] + 0.4) // 2.2))
    above = titles + 0.22 * math.ceil(len(legend) / across) + 0.05
    gaps = (0.42, titles + 0.25 + 0.15 * own_units)
    figure, grid = make_panels(math.ceil(len(cells) / columns), columns, size, gaps, above)
    axes = grid.ravel()
    for axis, (place, panel) in zip(axes, cells, strict=False):
        if own_units:
            name, factor = choose_time_unit(longest[panel.index[0]])
            axis.set_xlabel(name, fontsize=8, labelpad=1)
        for line, curve in iterate_groups(panel, CURVE):
            style = _style(line["prior"], line["method"], by_prior) | {"marker": markers[line["split_seed"]]}
            _draw(axis, curve, style, factor, 0.05 if by_prior else 0.1)
        _draw_printed(axis, printed[_agree(printed, place)], by_prior, factor)
        axis.set_title(_title(shown, place), fontsize=9.5, parse_math=False)
        problem = {name: place[name] for name in PROBLEM}
        _set_limits(axis, shown[_agree(shown, problem)], printed[_agree(printed, problem)], factor)
        style_axes(axis)
    for axis in axes[len(cells) :]:
        axis.set_axis_off()
    time = f"compute time ({'' if own_units else f'{unit}, '}log2 scale; {COST_LABELS[cost]})"
    label_figure(figure, time, "test accuracy (%, class-balanced)", legend, across)
    return figure


def _choose_columns(panels: int, sources: int) -> int:
    """Choose up to four panels in a row, or six if there are many, so that few places stay empty."""
    if sources > 1 and panels % sources == 0:  # sources side by side
        return sources * max(1, min(panels, 4) // sources)
    return panels if panels <= 4 else min((4, 3) if panels <= 12 else (6, 5), key=lambda columns: -panels % columns)


def _title(shown: pd.DataFrame, place: dict[str, Any]) -> str:
    more = [place[name] for name in ("backbone", "source") if shown[name].nunique() > 1]
    return "\n".join([f"{dataset_name(place['dataset'])}, N = {place['n']:,}", *([", ".join(more)] if more else [])])


def _style(prior: str, method: str, by_prior: bool) -> dict[str, Any]:
    """Style of a method with a prior, as arguments of ``plot``; color and fill say the prior if there are several."""
    style = PRIOR_STYLES.get(prior, {}) if by_prior else {"linestyle": "-"}
    color = PRIOR_COLORS.get(prior, "#444444") if by_prior else METHOD_COLORS.get(method, "#444444")
    edge = {"markeredgecolor": color if by_prior or method == "elbo" else "white", "markeredgewidth": 0.7}
    return {"color": color, "markerfacecoloralt": "white"} | edge | style | METHOD_STYLES[method]


def _draw(axis: Axes, curve: pd.DataFrame, style: dict[str, Any], factor: float, shade: float) -> None:
    x, y, color = curve["expected_hours"] * factor, 100 * curve["expected_test_acc"], style["color"]
    if len(curve) > 1:
        low, high = 100 * curve["q10_test_acc"], 100 * curve["q90_test_acc"]
        axis.fill_between(x, low, high, color=color, alpha=shade, linewidth=0)
        axis.plot(x, y, color=color, linestyle=style["linestyle"], linewidth=1.3, alpha=0.9)
    axis.plot(x.iloc[-1:], y.iloc[-1:], **(style | {"linestyle": "none", "zorder": 3}))


def _draw_printed(axis: Axes, printed: pd.DataFrame, by_prior: bool, factor: float) -> None:
    for row in printed.to_dict("records"):
        color = _style(row["prior"], "de-elbo", by_prior)["color"]
        axis.axhline(row["published_mean"], color=color, linestyle=":", linewidth=1.4, zorder=2)
        hours = row["published_total_seconds"] / 3600
        axis.plot(
            hours * factor, row["published_mean"], **(EDGE | PRINTED | {"color": color, "markeredgecolor": color})
        )


def _agree(table: pd.DataFrame, values: dict[Any, Any]) -> pd.Series:
    return (table[list(values)] == list(values.values())).all(axis=1)


def _set_limits(axis: Axes, shown: pd.DataFrame, printed: pd.DataFrame, factor: float) -> None:
    """Show all times, and accuracies from the lowest mean to the highest; bands that begin near chance are cut."""
    times = factor * pd.concat([shown["expected_hours"], printed["published_total_seconds"] / 3600])
    set_time_axis(axis, times.min(), times.max(), 0.05)
    heights = pd.concat([100 * shown["expected_test_acc"], printed["published_mean"]])
    margin = max(0.07 * (heights.max() - heights.min()), 0.5)
    axis.set_ylim(heights.min() - margin, min(heights.max() + margin, 101))


def _legend(shown: pd.DataFrame, markers: dict[Any, str], by_prior: bool, printed: bool) -> list[Any]:
    handles: list[Any] = []
    for entry in sort_rows(shown[["prior", "method"]].drop_duplicates()).to_dict("records"):
        style = _style(entry["prior"], entry["method"], by_prior) | {"marker": SPLIT_MARKERS[0]}
        if not shown[_agree(shown, entry)].duplicated(CURVE).any():
            style |= {"linestyle": "none"}
        label = f"{PRIOR_NAMES.get(entry['prior'], entry['prior'])} {method_name(entry['method'])}"
        handles.append(Line2D([], [], label=label, **style))
    handles += split_handles(markers)
    if shown.duplicated(CURVE).any():
        handles.append(band_handle("10-90 % of subsets of that size"))
    if printed:
        style = EDGE | PRINTED | {"color": "0.3", "markeredgecolor": "0.3", "linestyle": ":", "linewidth": 1.4}
        handles.append(Line2D([], [], label="DE ELBo as the paper prints it", **style))
    return handles
