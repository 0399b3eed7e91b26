"""Figure 2, by its artists: panels, lines, bands, markers, axes and legend."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.report.figures.style import save_figure
from bench.report.figures.subsampling import draw_subsampling
from bench.results.curves import COLUMNS as CURVE_COLUMNS
from bench.results.curves import compute_curves
from bench.results.paper import find_paper_de_elbo
from tests.helpers.result_frames import make_frame, trial

pytestmark = pytest.mark.filterwarnings("error")
CELL: dict[str, Any] = {"dataset": "d", "backbone": "b", "prior": "l2-sp", "n": 100, "split_seed": 1, "source": ""}
PAPER = {"dataset": "CIFAR-10", "backbone": "resnet50", "source": "theirs"}


def curve(method: str, hours: list[float], accuracy: list[float], first: int = 1, **cell: Any) -> pd.DataFrame:
    """Make a curve as `compute_curves` returns it; its band reaches 10 points down and 5 points up."""
    acc = np.array(accuracy)
    found = {"k": range(first, first + len(hours)), "expected_hours": hours, "expected_test_acc": acc}
    found |= {"sd_test_acc": 0.01, "q10_test_acc": acc - 0.1, "q90_test_acc": acc + 0.05}
    return pd.DataFrame(found).assign(method=method, **(CELL | {"cost": "train"} | cell))[CURVE_COLUMNS]


def grid(**cell: Any) -> pd.DataFrame:
    return curve("map-gs", [4, 8, 16], [0.5, 0.6, 0.7], **cell)


def ours(**cell: Any) -> pd.DataFrame:
    return curve("de-elbo", [1, 2], [0.65, 0.75], **cell)


def draw(*parts: pd.DataFrame, cost: str = "train") -> Figure:
    """Draw the figure with its canvas; the source "theirs" is the paper's own."""
    curves = pd.concat(parts, ignore_index=True)
    figure = draw_subsampling(curves, cost, find_paper_de_elbo(curves, ["theirs"]))
    figure.canvas.draw()
    return figure


def panels(figure: Figure) -> list[Axes]:
    return [axis for axis in figure.axes if axis.axison]


def lines(axis: Axes) -> list[Line2D]:
    """Return the curves of a panel."""
    return [line for line in axis.lines if len(line.get_xdata()) > 1 and line.get_linestyle() != ":"]


def dotted(axis: Axes) -> list[float]:
    """Return the accuracies of dotted horizontal lines."""
    return [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == ":"]


def markers(axis: Axes) -> list[tuple[float, float]]:
    """Return the positions of visible markers."""
    found = [line for line in axis.lines if len(line.get_xdata()) == 1 and line.get_marker() not in ("", "None", None)]
    points = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in found]
    return [point for point in points if not any(map(math.isnan, point))]


def entries(figure: Figure) -> dict[str, Any]:
    """Return the legend's handles by their text."""
    (legend,) = figure.legends
    return {text.get_text(): handle for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}


def test_a_grid_is_a_line_that_ends_in_a_marker() -> None:
    """A grid has a curve, a band and a marker at its end; the DE ELBo has the marker of all its runs."""
    (axis,) = panels(draw(grid(), ours()))
    (line,) = lines(axis)
    assert line.get_xydata().tolist() == [[4, 50], [8, 60], [16, 70]]
    assert sorted(markers(axis)) == [(2, 75), (16, 70)]
    (band,) = axis.collections
    corners = {(round(x), round(y)) for x, y in band.get_paths()[0].vertices}
    assert {(4, 40), (4, 55), (8, 50), (8, 65), (16, 60), (16, 75)} == corners


def test_every_split_and_prior_has_its_line() -> None:
    """Each grid, prior and seed has a line, a band and a marker; those of one prior share color and line."""
    cells = [{"prior": prior, "split_seed": seed} for prior in ("l2-sp", "ptyl") for seed in (1, 2)]
    (axis,) = panels(draw(*[make(**cell) for cell in cells for make in (grid, ours)]))
    assert (len(lines(axis)), len(axis.collections), len(markers(axis))) == (4, 4, 8)
    styles = [(line.get_color(), line.get_linestyle()) for line in lines(axis)]
    assert styles[0] == styles[1] != styles[2] == styles[3]
    assert len({line.get_marker() for line in axis.lines if line.get_marker() != "None"}) == 2


@pytest.mark.parametrize("priors", [["l2-sp"], ["l2-zero", "l2-sp", "ptyl"]])
def test_markers_tell_the_splits_apart(priors: list[str]) -> None:
    """The three splits have three shapes, the same for all methods, priors and panels, and the legend names them."""
    cells = [
        {"split_seed": seed, "prior": prior, "n": n} for seed in (1001, 2001, 3001) for prior in priors for n in (1, 2)
    ]
    parts = [
        curve(method, [hours + cell["split_seed"] / 1e4], [0.5], first=24, **cell)
        for cell in cells
        for method, hours in (("map-gs", 9), ("de-elbo", 3), ("elbo", 6))
    ]
    figure = draw(*parts)
    shapes: dict[int, set[Any]] = {}
    styles = set()
    for axis in panels(figure):
        for line in axis.lines:
            seed = round(1e4 * (float(line.get_xdata()[0]) % 1))
            shapes.setdefault(seed, set()).add(line.get_marker())
            styles.add((line.get_color(), line.get_fillstyle(), line.get_markeredgecolor(), line.get_markersize()))
    assert shapes == {seed: {entries(figure)[f"split {seed}"].get_marker()} for seed in (1001, 2001, 3001)}
    assert len(set.union(*shapes.values())) == 3
    assert len(styles) == 3 * len(priors)


def test_time_is_on_a_log2_scale() -> None:
    """Ticks are at powers of 2, or of 4 over many doublings, with plain numbers."""
    for last, base in ((16.0, 2), (1000.0, 4)):
        (axis,) = panels(draw(curve("map-gs", [1, last], [0.5, 0.6])))
        assert axis.get_xscale() == "log"
        assert axis.xaxis.get_transform().base == 2
        ticks = axis.xaxis.get_major_locator()()
        assert set(np.round(np.diff(np.log2(ticks)), 6)) == {math.log2(base)}
        assert axis.xaxis.get_major_formatter()(256.0) == "256"


@pytest.mark.parametrize(("hours", "unit", "shown"), [(2.0, "hours", 2), (1.9, "minutes", 114), (0.01, "seconds", 36)])
def test_time_is_in_a_unit_that_fits(hours: float, unit: str, shown: float) -> None:
    """Times are drawn in the largest unit in which the longest one is at least 2."""
    figure = draw(curve("map-gs", [hours / 2, hours], [0.5, 0.6]))
    assert figure.get_supxlabel() == f"compute time ({unit}, log2 scale; training steps only)"
    assert lines(panels(figure)[0])[0].get_xdata().tolist() == pytest.approx([shown / 2, shown])


def test_only_one_cost_is_drawn() -> None:
    """A figure has only curves of its cost, which the axis names."""
    figure = draw(grid(), curve("map-gs", [40, 80], [0.5, 0.6], cost="full"), cost="full")
    assert figure.get_supxlabel().endswith("with validation, selection and checkpoints)")
    assert [line.get_xdata().tolist() for line in lines(panels(figure)[0])] == [[40, 80]]


@pytest.mark.parametrize(("count", "places"), [(1, 1), (2, 2), (5, 6), (18, 18)])
def test_a_panel_for_each_dataset_and_n(count: int, places: int) -> None:
    """Each dataset and N has a panel with title and lines, in order; other places stay empty."""
    cells = sorted((f"Set_{i % 3}", 10 ** (1 + i // 3)) for i in range(count))
    figure = draw(*[make(dataset=name, n=n) for name, n in cells[::-1] for make in (grid, ours)])
    assert [axis.get_title() for axis in panels(figure)] == [f"Set {name[-1]}, N = {n:,}" for name, n in cells]
    assert {(len(lines(axis)), len(markers(axis))) for axis in panels(figure)} == {(1, 2)}
    assert len(figure.axes) == places


def test_sources_are_side_by_side() -> None:
    """Two sources have a panel each, with the same N in one row."""
    figure = draw(
        *[grid(source=source, n=n) for n in (10, 100, 1000, 10000) for source in ("x", "y")], ours(source="y")
    )
    titles = [axis.get_title() for axis in panels(figure)]
    assert titles == [f"d, N = {n:,}\n{source}" for n in (10, 100, 1000, 10000) for source in ("x", "y")]
    assert [axis.get_subplotspec().colspan.start % 2 for axis in panels(figure)] == [0, 1] * 4
    assert [len(markers(axis)) for axis in panels(figure)] == [1, 1, 1, 2, 1, 1, 1, 1]


def test_sources_share_their_limits() -> None:
    """Two panels of one dataset and N have the same limits of time and accuracy."""
    figure = draw(grid(source="x"), curve("map-gs", [100, 200], [0.1, 0.2], source="y"), grid(source="y", n=1000))
    x, y, other = panels(figure)
    assert (x.get_xlim(), x.get_ylim()) == (y.get_xlim(), y.get_ylim()) != (other.get_xlim(), other.get_ylim())
    assert x.get_xlim()[0] <= 4 < 200 <= x.get_xlim()[1]


def test_printed_numbers_are_within_the_limits() -> None:
    """If only one source has a DE ELBo, the printed one is within the other's panel."""
    cell = PAPER | {"n": 50000}
    mine, theirs = panels(draw(*[make(**(cell | {"source": "mine"})) for make in (grid, ours)], grid(**cell)))
    assert (dotted(mine), dotted(theirs)) == ([], [96.8])
    assert theirs.get_ylim()[0] < 96.8 < theirs.get_ylim()[1]
    assert theirs.get_xlim()[0] < 2.6 < theirs.get_xlim()[1]


def test_a_source_keeps_its_column() -> None:
    """Each source keeps its column where it does not have all priors."""
    parts = [grid(source=source, n=n, prior="l2-sp") for n in (10, 100) for source in ("x", "y")]
    titles = [axis.get_title() for axis in panels(draw(*parts, grid(source="y", n=100, prior="l2-zero")))]
    assert [title.split("\n")[1] for title in titles] == ["x", "y", "x", "y"]


def test_several_backbones_are_named() -> None:
    """Each backbone has a panel with its name; one that all share is not named."""
    titles = [axis.get_title() for axis in panels(draw(grid(), grid(backbone="c")))]
    assert titles == ["d, N = 100\nb", "d, N = 100\nc"]
    (axis,) = panels(draw(grid(), ours()))
    assert axis.get_title() == "d, N = 100"


def test_printed_numbers_replace_a_de_elbo() -> None:
    """In the paper's cells they are a dotted line, with a marker where a time is printed."""
    figure = draw(
        grid(**PAPER, n=50000),
        grid(**PAPER, n=1000),
        grid(**PAPER, n=1000, prior="ptyl"),
        grid(n=1000, source="theirs"),
    )
    small, large, foreign = panels(figure)
    assert (dotted(small), dotted(large), dotted(foreign)) == ([87.2, 87.2], [96.8], [])
    assert [len(markers(axis)) for axis in (small, large, foreign)] == [2, 2, 1]
    assert (2.6, 96.8) in markers(large)
    assert "DE ELBo as the paper prints it" in entries(figure)


@pytest.mark.parametrize("other", [{"dataset": "CIFAR-100"}, {"backbone": "resnet18"}, {"n": 99}, {"source": "mine"}])
def test_printed_numbers_are_drawn_nowhere_else(other: dict[str, Any]) -> None:
    """They are not drawn in another cell or source, nor beside a DE ELBo run."""
    cell = PAPER | {"n": 50000}
    for parts in ([grid(**(cell | other))], [grid(**cell), ours(**cell)]):
        figure = draw(*parts)
        assert dotted(panels(figure)[0]) == []
        assert "DE ELBo as the paper prints it" not in entries(figure)


def test_printed_times_are_of_training() -> None:
    """The printed DE ELBo is not drawn where the full cost is."""
    (axis,) = panels(draw(grid(**PAPER, n=50000, cost="full"), cost="full"))
    assert (dotted(axis), markers(axis)) == ([], [(16, 70)])


def test_a_curves_end_alone_is_a_marker() -> None:
    """If only the best was retrained there is a marker, without line or band."""
    figure = draw(*[curve("map-gs", [9], [0.6], first=24, split_seed=seed) for seed in (1, 2)])
    (axis,) = panels(figure)
    assert (lines(axis), len(axis.collections), markers(axis)) == ([], 0, [(9, 60), (9, 60)])
    assert list(entries(figure)) == ["L2-SP MAP + GS", "split 1", "split 2"]
    assert entries(figure)["L2-SP MAP + GS"].get_linestyle() == "None"


def test_the_legend_shows_no_line_that_is_not_drawn() -> None:
    """Splits that end at different sizes are markers in the legend."""
    handles = entries(draw(*[curve(m, [9], [0.6], k, split_seed=k) for m in ("map-gs", "de-elbo") for k in (3, 4)]))
    assert [handle.get_linestyle() for handle in handles.values()] == ["None"] * 4


def test_legend() -> None:
    """It has an entry per prior and method, in order, with its line if it has one, then the band."""
    figure = draw(ours(prior="ptyl"), grid(prior="ptyl"), curve("elbo", [1], [0.3]), ours(), grid(prior="l2-zero"))
    names = ["L2-zero MAP + GS", "L2-SP DE ELBo", "L2-SP ELBo", "PTYL MAP + GS", "PTYL DE ELBo"]
    assert list(entries(figure)) == [*names, "10-90 % of subsets of that size"]
    assert [entries(figure)[name].get_linestyle() != "None" for name in names] == [True, False, False, True, False]
    handles = [entries(figure)[name] for name in names]
    assert len({(one.get_marker(), one.get_markerfacecolor(), one.get_markersize()) for one in handles}) == 5


@pytest.mark.parametrize("method", ["map-gs", "de-elbo", "elbo"])
def test_one_method_alone_can_be_drawn(method: str) -> None:
    """A panel may have a single run of any method."""
    figure = draw(curve(method, [3.0], [0.5]))
    assert markers(panels(figure)[0]) == [(3, 50)]
    assert len(entries(figure)) == 1


def test_diverged_runs_are_drawn() -> None:
    """A grid with a diverged run has its seconds and its accuracy within the limits."""
    rows = []
    for rate, nll, accuracy in ((0.1, 1.0, 0.9), (0.2, math.nan, 0.1)):
        shared = {"learning_rate": rate, "status": "completed" if nll == 1 else "diverged"}
        rows += [trial("map-gs", "tune", nll, 3600.0, **shared), trial("map-gs", "retrain", accuracy, 3600.0, **shared)]
    frame = make_frame(*rows)
    (axis,) = panels(draw(compute_curves(frame)))
    np.testing.assert_allclose(lines(axis)[0].get_xydata(), [[2, 50], [3, 90]])
    assert axis.get_ylim()[0] < 50 < 90 < axis.get_ylim()[1]


ACCURACY = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-4, 1e3), ACCURACY), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_no_marker_is_cut(points: list[tuple[float, float]], paper: bool, alone: bool) -> None:
    """All markers and lines are within the limits, whatever the accuracies and times."""
    cell = PAPER | {"n": 50000} if paper else {}
    parts = [] if alone else [grid(**cell)]
    parts += [curve("elbo", [hours], [acc], split_seed=i, **cell) for i, (hours, acc) in enumerate(points)]
    curves = pd.concat(parts, ignore_index=True)
    (axis,) = panels(draw_subsampling(curves, "train", find_paper_de_elbo(curves, ["theirs"])))
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    seen = markers(axis) + [(x, y) for line in lines(axis) for x, y in line.get_xydata()]
    assert len(seen) == len(points) + (0 if alone else 4 + paper)
    assert all(left <= x <= right and low < y < high for x, y in seen)
    assert all(low < height < high for height in dotted(axis))


@pytest.mark.parametrize(("count", "priors"), [(1, 1), (1, 3), (2, 3), (4, 3), (18, 3)])
def test_nothing_overlaps(count: int, priors: int) -> None:
    """Legend, panels and labels do not overlap, and lie within the figure."""
    names = ["l2-zero", "l2-sp", "ptyl"][:priors]
    cells = [{"dataset": "Oxford-IIIT_Pet", "n": 2**i} for i in range(count)]
    parts = [make(**cell, prior=prior) for cell in cells for prior in names for make in (grid, ours)]
    figure = draw(*parts, *[curve("elbo", [1], [0.2], prior=prior, **cells[0]) for prior in names])
    boxes = [axis.get_tightbbox() for axis in panels(figure)]
    boxes += [figure.legends[0].get_window_extent(), *[text.get_window_extent() for text in figure.texts]]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_files(tmp_path: Path) -> None:
    """The figure is written as PNG and PDF."""
    paths = save_figure(draw(grid(), ours()), tmp_path, "figure2")
    assert [path.read_bytes()[:4] for path in paths] == [b"\x89PNG", b"%PDF"]


def test_panels_with_very_different_times() -> None:
    """If one panel takes hours and another seconds, each has its own unit."""
    figure = draw(grid(dataset="a"), curve("map-gs", [0.001, 0.002, 0.004], [0.5, 0.6, 0.7], dataset="z"))
    slow, fast = panels(figure)
    assert (slow.get_xlabel(), fast.get_xlabel()) == ("hours", "seconds")
    assert figure.get_supxlabel() == "compute time (log2 scale; training steps only)"
    np.testing.assert_allclose(lines(fast)[0].get_xdata(), [3.6, 7.2, 14.4])


def test_names_are_no_formulas() -> None:
    """A dollar in a name is a dollar: published datasets are named after their files."""
    figure = draw(grid(dataset="$\\nix$", source="a$b$"), ours(dataset="$\\nix$", source="c"))
    assert [axis.get_title() for axis in panels(figure)] == ["$\\nix$, N = 100\na$b$", "$\\nix$, N = 100\nc"]
