"""What all figures share: colours, marks, units, and how they are written.

Readable in grey print and by the colour-blind: colours are Okabe and Ito's, and no two things differ by colour alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["EDGE", "METHOD_COLOURS", "PRIOR_COLOURS", "label", "panels", "save", "tidy", "time_unit"]

METHOD_COLOURS = {"map-gs": "#0072B2", "de-elbo": "#D55E00", "elbo": "#444444"}
PRIOR_COLOURS = {"l2-zero": "#009E73", "l2-sp": "#0072B2", "ptyl": "#CC79A7"}
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
