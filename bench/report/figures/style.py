"""Shared style of all figures: colors, markers, panels, axes, units, files.

Readable in gray print and by the color-blind: colors are Okabe and Ito's, and no two methods differ by color alone.
"""

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.labels import METHOD_NAMES, REPLAY_SUFFIX

METHOD_COLORS = {"map-gs": "#0072B2", "de-elbo": "#D55E00", "elbo": "#444444"}
PRIOR_COLORS = {"l2-zero": "#009E73", "l2-sp": "#0072B2", "ptyl": "#CC79A7"}
COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#0072B2", "#555555")
DASHES: tuple[Any, ...] = ((0, (6, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), "-")
MARKERS: tuple[Any, ...] = ("s", "^", "D", "v", "P", ">", "h", "<", "p", "d", "8", (6, 1, 0), (4, 1, 0))
"""The numbers of colors, dashes and markers, 7, 4 and 13, have no common divisor, so that 364 styles differ."""
UNITS = (("hours", 1.0), ("minutes", 60.0), ("seconds", 3600.0))
EDGE: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.7, "linestyle": "none", "zorder": 3}
PAPER_STYLES: dict[str, dict[str, Any]] = {
    "map-gs": {"color": METHOD_COLORS["map-gs"], "linestyle": "-", "marker": "o", "markersize": 6.0},
    "de-elbo": {"color": METHOD_COLORS["de-elbo"], "linestyle": "-", "marker": "*", "markersize": 11.0},
    "elbo": {"color": METHOD_COLORS["elbo"], "linestyle": DASHES[0], "marker": "X", "markersize": 7.0},
}
"""Styles of the paper's methods, as in figure 2."""
SPLIT_MARKERS = ("o", "s", "^", "v", "P", "X")
"""Shapes of markers by split seed, in order."""


class NotebookFigure(Figure):
    """A figure that a notebook shows, without pyplot."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        with default_settings():
            self.savefig(file, format="png", dpi=100)
        return file.getvalue()


@contextmanager
def default_settings() -> Iterator[None]:
    """Draw and save with matplotlib's own settings, whatever the user's matplotlibrc or the calling program set."""
    own: dict[Any, Any] = {name: value for name, value in mpl.rcParamsDefault.items() if name != "backend"}
    with mpl.rc_context(own | {"pdf.fonttype": 42}):  # text stays text
        yield


def make_panels(
    rows: int, columns: int, size: tuple[float, float], gaps: tuple[float, float], above: float
) -> tuple[Figure, Any]:
    """Make a figure with a grid of panels, without a display, and return it with its axes; lengths in inches.

    ``size`` is of a panel, ``gaps`` are between panels, ``above`` is the height of titles and legend. Positions are
    fixed, as matplotlib's layout engines take longer than the drawing.
    """
    left, right, below = 0.75, 0.15, 0.6
    width = left + columns * size[0] + (columns - 1) * gaps[0] + right
    height = below + rows * size[1] + (rows - 1) * gaps[1] + above
    figure = NotebookFigure(figsize=(width, height))
    FigureCanvasAgg(figure)
    margins = {"left": left / width, "right": 1 - right / width, "bottom": below / height, "top": 1 - above / height}
    margins |= {"wspace": gaps[0] / size[0], "hspace": gaps[1] / size[1]}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins)


def method_styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Choose color, line and marker of each entry, as arguments of matplotlib's ``plot``.

    The style of a method depends on its place in `bench.methods.METHODS` only; entries of other names take the next
    styles in the given order. A replayed method has the same style, thinner and hollow.
    """
    styles: dict[str, dict[str, Any]] = {}
    others = [name for name in METHOD_NAMES if name not in PAPER_STYLES]
    for method in methods:
        entry = method.removesuffix(REPLAY_SUFFIX)
        if entry not in PAPER_STYLES and entry not in others:
            others.append(entry)
        style = PAPER_STYLES[entry] if entry in PAPER_STYLES else _style(others.index(entry))
        replayed = {"linewidth": 0.9, "markerfacecolor": "white"} if method != entry else {"linewidth": 1.5}
        styles[method] = style | replayed
    return styles


def _style(place: int) -> dict[str, Any]:
    marker = MARKERS[place % len(MARKERS)]
    size = 9.0 if isinstance(marker, tuple) else 6.0  # stars are thin
    style = {"color": COLORS[place % len(COLORS)], "linestyle": DASHES[place % len(DASHES)]}
    return style | {"marker": marker, "markersize": size}


def label_figure(figure: Figure, x: str, y: str, legend: list[Any], columns: int) -> None:
    """Label the axes of all panels, and draw one legend above them."""
    width, height = figure.get_size_inches()
    figure.supxlabel(x, fontsize=10, y=0.1 / height, va="bottom")
    if y:
        figure.supylabel(y, fontsize=10, x=0.08 / width, ha="left")
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 1), "borderaxespad": 0.2}
    texts = figure.legend(handles=legend, ncols=columns, frameon=False, fontsize=9, **place).get_texts()
    for text in texts:
        text.set_parse_math(False)  # as in titles, a name may have a $ in it


def split_markers(seeds: Iterable[Any]) -> dict[Any, str]:
    """Choose a marker's shape for each split seed."""
    return {seed: SPLIT_MARKERS[i % len(SPLIT_MARKERS)] for i, seed in enumerate(sorted(set(seeds)))}


def split_handles(markers: Mapping[Any, str]) -> list[Line2D]:
    """Make the legend's entries of split seeds; none for one alone."""
    style: dict[str, Any] = {"color": "0.45", "linestyle": "none", "markersize": 6.0}
    handles = [Line2D([], [], label=f"split {seed}", marker=marker, **style) for seed, marker in markers.items()]
    return handles if len(handles) > 1 else []


def band_handle(label: str) -> Patch:
    """Make the legend's entry of shaded bands."""
    return Patch(color="0.45", alpha=0.25, linewidth=0, label=label)


def style_axes(axis: Axes) -> None:
    """Draw a light grid, and no frame above and to the right."""
    axis.grid(True, which="major", color="0.9", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def set_time_axis(axis: Axes, least: float, most: float, margin: float) -> None:
    """Scale the x axis by log2 from ``least`` to ``most``, with a margin as a fraction of its doublings.

    At least two powers of 2 are visible; ticks are at powers of 2, or of 4 over more than seven doublings.
    """
    least, most = max(least, 1e-9), max(most, 1e-9)
    axis.set_xscale("log", base=2)
    doublings = math.log2(most / least)
    room = 2 ** max(margin * doublings, (2.2 - doublings) / 2)
    axis.set_xlim(least / room, most * room)
    axis.xaxis.set_major_locator(LogLocator(base=4 if doublings > 7 else 2, numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def choose_time_unit(most_hours: float) -> tuple[str, float]:
    """Choose the largest unit in which the longest time is at least 2; its name, and how many of it are an hour."""
    return next(((unit, factor) for unit, factor in UNITS if most_hours * factor >= 2), UNITS[-1])


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and PDF, and return their paths."""
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    for path in paths:
        figure.savefig(path, dpi=150)
    return paths
