"""What all figures share: colors, marks, units, and how they are written.

Readable in grey print and by the color-blind: colors are Okabe and Ito's, and no two things differ by color alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.labels import METHOD_NAMES, REPLAY_SUFFIX

__all__ = ["EDGE", "METHOD_COLORS", "PRIOR_COLORS", "label", "looks", "panels", "save", "tidy", "time_unit"]


METHOD_COLORS = {"map-gs": "#0072B2", "de-elbo": "#D55E00", "elbo": "#444444"}
PRIOR_COLORS = {"l2-zero": "#009E73", "l2-sp": "#0072B2", "ptyl": "#CC79A7"}
COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#0072B2", "#555555")
DASHES: tuple[Any, ...] = ((0, (6, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), "-")
MARKS: tuple[Any, ...] = ("s", "^", "D", "v", "P", ">", "h", "<", "p", "d", "8", (6, 1, 0), (4, 1, 0))
"""Their numbers, 7, 4 and 13, have no common divisor: 52 methods differ by more than color, 364 differ."""
UNITS = (("hours", 1.0), ("minutes", 60.0), ("seconds", 3600.0))
EDGE: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.7, "linestyle": "none", "zorder": 3}


def panels(
    rows: int, columns: int, size: tuple[float, float], gaps: tuple[float, float], above: float
) -> tuple[Figure, Any]:
    """A figure with a grid of axes, that needs no display; its axes as an array of shape (rows, columns).

    Everything has its place in inches: matplotlib's own layout engines take longer than the drawing.

    Args:
        rows, columns: of the grid.
        size: width and height of a panel.
        gaps: between two panels, beside and below each other.
        above: what titles and legend take above the first row.
    """
    left, right, below = 0.75, 0.15, 0.6
    width = left + columns * size[0] + (columns - 1) * gaps[0] + right
    height = below + rows * size[1] + (rows - 1) * gaps[1] + above
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    margins = {"left": left / width, "right": 1 - right / width, "bottom": below / height, "top": 1 - above / height}
    margins |= {"wspace": gaps[0] / size[0], "hspace": gaps[1] / size[1]}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins)


def looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each entry is drawn where there are many: color, line and marker, as arguments of matplotlib's ``plot``.

    Methods have the looks of their place in `bench.methods.METHODS`, whatever else is drawn; entries of other names
    take the next ones in the order in which they are given. A replayed method is itself, thinner and hollow.
    """
    found: dict[str, dict[str, Any]] = {}
    own = [name for name in METHOD_NAMES if name not in OWN]
    for method in methods:
        entry = method.removesuffix(REPLAY_SUFFIX)
        if entry not in OWN and entry not in own:
            own.append(entry)
        look = OWN[entry] if entry in OWN else _look(own.index(entry))
        replayed = {"linewidth": 0.9, "markerfacecolor": "white"} if method != entry else {"linewidth": 1.5}
        found[method] = look | replayed
    return found


OWN: dict[str, dict[str, Any]] = {
    "map-gs": {"color": METHOD_COLORS["map-gs"], "linestyle": "-", "marker": "o", "markersize": 6.0},
    "de-elbo": {"color": METHOD_COLORS["de-elbo"], "linestyle": "-", "marker": "*", "markersize": 11.0},
    "elbo": {"color": METHOD_COLORS["elbo"], "linestyle": DASHES[0], "marker": "X", "markersize": 7.0},
}
"""The paper's methods look as in figure 2."""


def _look(i: int) -> dict[str, Any]:
    look = {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i % len(DASHES)]}
    mark = MARKS[i % len(MARKS)]
    return look | {"marker": mark, "markersize": 9.0 if isinstance(mark, tuple) else 6.0}  # stars are thin


def label(figure: Figure, x: str, y: str, legend: list[Any], columns: int) -> None:
    """The names of all panels' axes, and one legend above them."""
    width, height = figure.get_size_inches()
    figure.supxlabel(x, fontsize=10, y=0.1 / height, va="bottom")
    if y:
        figure.supylabel(y, fontsize=10, x=0.08 / width, ha="left")
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 1), "borderaxespad": 0.2}
    figure.legend(handles=legend, ncols=columns, frameon=False, fontsize=9, **place)


def tidy(axis: Axes) -> None:
    """A light grid, no frame above or to the right."""
    axis.grid(True, which="major", color="0.9", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def time_unit(most_hours: float) -> tuple[str, float]:
    """The largest unit in which the longest time is at least 2, and how many of it an hour has."""
    return next(((unit, factor) for unit, factor in UNITS if most_hours * factor >= 2), UNITS[-1])


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes PNG and PDF; their paths."""
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    with mpl.rc_context({"pdf.fonttype": 42}):  # text stays text
        for path in paths:
            figure.savefig(path, dpi=150)
    return paths
