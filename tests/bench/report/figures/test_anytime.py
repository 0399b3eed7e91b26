"""The figure of all methods, by its artists; and styles that differ by more than color."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.labels import REPLAY_SUFFIX
from bench.methods import METHODS
from bench.report.figures.anytime import draw_anytime
from bench.report.figures.style import METHOD_COLORS, method_styles
from bench.results.anytime import compute_anytime, compute_steps
from bench.results.curves import compute_curves
from tests.bench.results.test_anytime import stepped
from tests.helpers.result_frames import many_methods

pytestmark = pytest.mark.filterwarnings("error")


def panels(figure: Figure) -> list[Axes]:
    return [axis for axis in figure.axes if axis.axison]


def draw(*parts: pd.DataFrame) -> Figure:
    figure = draw_anytime(compute_anytime(pd.concat(parts, ignore_index=True)))
    figure.canvas.draw()
    return figure


def entries(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_a_method_is_a_step_line_that_ends_in_a_marker() -> None:
    """The mean is drawn as steps with a band and a marker at its end; a single result is a marker."""
    figure = draw(
        stepped([(3600, 0.5), (14400, 0.75)], [(3600, 0.6), (14400, 0.8)], method="x"),
        stepped([(7200, 0.7)], method="y"),
    )
    (axis,) = panels(figure)
    line, end, alone = axis.lines
    assert line.get_drawstyle() == "steps-post"
    assert (line.get_xdata()[0], line.get_ydata()[0]) == (1, pytest.approx(55))
    assert end.get_xydata().tolist() == [[4, pytest.approx(77.5)]]
    assert alone.get_xydata().tolist() == [[2, 70]]
    assert len(axis.collections) == 1
    assert axis.get_xscale() == "log"
    assert any("checkpoints, choosing what to try next" in text.get_text() for text in figure.texts)
    assert figure.get_supxlabel().startswith("compute time (hours, log2 scale; everything a method needs)")
    assert entries(figure) == ["x", "y", "10-90 % of splits"]


def test_names_are_no_formulas() -> None:
    """A dollar in the name of a method or dataset is a dollar."""
    figure = draw(stepped([(3600, 0.5), (14400, 0.75)], method="$\\nix$", dataset="$\\no$"))
    assert entries(figure) == ["$\\nix$", "10-90 % of splits"]
    assert [axis.get_title() for axis in panels(figure)] == ["$\\no$, N = 100, L2-SP"]


def test_a_panel_for_each_problem() -> None:
    """There is a row per dataset and N with shared limits, and a column per prior; missing ones stay empty."""
    parts = [stepped([(1, 0.5), (8, 0.9)], prior=prior, n=n) for prior, n in (("ptyl", 9), ("l2-sp", 9), ("l2-sp", 99))]
    figure = draw(*parts, stepped([(64, 0.6)], method="z", prior="ptyl", n=9))
    titles = [axis.get_title() for axis in panels(figure)]
    assert titles == ["d, N = 9, L2-SP", "d, N = 9, PTYL", "d, N = 99, L2-SP"]
    first, second, other = panels(figure)
    assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())
    assert first.get_xlim()[1] > 64 > other.get_xlim()[1]
    assert len(figure.axes) == 4


def test_ends_near_the_best_are_visible() -> None:
    """No end of a curve is cut unless it lies 25 points below the highest."""
    figure = draw(*[stepped([(1, 0.1), (2 + i, 0.95 - i / 50)], method=f"m{i}") for i in range(12)])
    (axis,) = panels(figure)
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    ends = [line.get_xydata()[0] for line in axis.lines if len(line.get_xdata()) == 1]
    assert len(ends) == 12
    assert all(left < x < right and low < y < high for x, y in ends)


def test_nothing_overlaps() -> None:
    """With a dozen methods, run and replayed, legend, titles, panels and labels do not overlap."""
    live = compute_anytime(compute_steps(compute_curves(many_methods(("l2-sp", "ptyl"), (100,), 2))))
    again = live[live["method"] == "random"].assign(method="random" + REPLAY_SUFFIX, curves=50)
    figure = draw_anytime(pd.concat([live, again], ignore_index=True))
    figure.canvas.draw()
    boxes = [axis.get_tightbbox() for axis in panels(figure)]
    boxes += [figure.legends[0].get_window_extent(), *[text.get_window_extent() for text in figure.texts]]
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert len(entries(figure)) == live["method"].nunique() + 2
    assert "10-90 % of splits and repetitions" in entries(figure)


def marks(look: dict[str, Any]) -> tuple[str, str, str]:
    """Return all of a style but color and size."""
    return str(look["linestyle"]), str(look["marker"]), str(look.get("markerfacecolor"))


@pytest.mark.parametrize("count", [14, 45])
def test_no_two_methods_differ_by_color_alone(count: int) -> None:
    """Any two entries, replayed ones too, differ in line or marker."""
    names = [*(method.name for method in METHODS), *(f"entry-{i}" for i in range(count - len(METHODS)))]
    names += [name + REPLAY_SUFFIX for name in names]
    found = method_styles(names)
    assert list(found) == names
    assert len({marks(look) for look in found.values()}) == len(names)


def test_a_method_keeps_its_style() -> None:
    """A method has the same style whatever else is drawn; other entries depend on their order only."""
    alone = {method.name: method_styles([method.name])[method.name] for method in METHODS}
    together = method_styles(["x", *(method.name for method in reversed(METHODS)), "y"])
    assert {name: together[name] for name in alone} == alone
    assert {alone[name]["color"] for name in METHOD_COLORS} == set(METHOD_COLORS.values())
    assert method_styles(["x", "y"]) == {name: together[name] for name in ("x", "y")}


def test_colors_are_dark_enough() -> None:
    """No color of a line is too light for white paper."""
    from matplotlib.colors import to_rgb

    for look in method_styles(f"entry-{i}" for i in range(14)).values():
        assert np.dot(to_rgb(look["color"]), [0.2126, 0.7152, 0.0722]) < 0.72
