"""The figure of results against kappa / (D/N): its panels, lines and limits."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.figures.kappa_sweep import draw_kappa_sweep
from bench.results.kappa_sweep import COLUMNS

pytestmark = pytest.mark.filterwarnings("error")
RATIOS = (0.01, 0.1, 1.0, 3.0)


def table(seeds: tuple[int, ...] = (1001, 2001, 3001), **place: Any) -> pd.DataFrame:
    """Make a sweep whose accuracy rises with the ratio, by 3 points from split to split."""
    rows = [
        {"kappa_ratio": ratio, "split_seed": seed, "test_acc": 0.8 + 0.01 * i + 0.03 * j, "test_nll": 0.5 - 0.03 * i}
        for i, ratio in enumerate(RATIOS)
        for j, seed in enumerate(seeds)
    ]
    default = {"dataset": "d", "prior": "l2-sp", "method": "m", "n": 100, "settings": "", "backbone": "b", "source": ""}
    return pd.DataFrame(rows).assign(**(default | place))[COLUMNS]


def draw(*parts: pd.DataFrame) -> Figure:
    figure = draw_kappa_sweep(pd.concat(parts, ignore_index=True))
    figure.canvas.draw()
    return figure


def panels(figure: Figure) -> list[Axes]:
    return [axis for axis in figure.axes if axis.axison]


def test_accuracy_above_nll_for_each_n() -> None:
    """Each N is a column with accuracy above and NLL below, on a log axis, with a dotted line at D/N."""
    figure = draw(*(table(n=n) for n in (1000, 100)))
    titles = [f"d, L2-SP, N = {n}" for n in ("100", "1,000")]
    assert [axis.get_title() for axis in panels(figure)] == titles * 2
    labels = [axis.get_ylabel() for axis in panels(figure)]
    assert labels == ["test accuracy (%)", "", "test NLL (nats)", ""]
    for axis in panels(figure):
        assert axis.get_xscale() == "log"
        assert [list(line.get_xdata()) for line in axis.lines if line.get_linestyle() == ":"] == [[1, 1]]
    assert figure.get_supxlabel() == "kappa / (D/N), log scale"


def test_the_line_is_the_mean_and_markers_are_splits() -> None:
    """The line goes through the means over splits; each split has a shape, which the legend names."""
    above, below = panels(draw(table()))
    line, *splits, _ = above.lines
    np.testing.assert_allclose(line.get_xydata(), [(ratio, 83.0 + i) for i, ratio in enumerate(RATIOS)])
    assert [split.get_marker() for split in splits] == ["o", "s", "^"]
    np.testing.assert_allclose([split.get_ydata()[0] for split in splits], [80.0, 83.0, 86.0])
    np.testing.assert_allclose(below.lines[0].get_ydata(), [0.5, 0.47, 0.44, 0.41])
    (legend,) = draw(table()).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "mean over splits",
        "split 1001",
        "split 2001",
        "split 3001",
    ]


def test_results_near_chance_are_cut() -> None:
    """A panel shows accuracies to 25 points below the best mean, and NLLs to twice the best."""
    poor = table((1,))
    poor.loc[0, ["test_acc", "test_nll"]] = 0.1, 2.3
    above, below = panels(draw(poor))
    assert 79 < above.get_ylim()[0] < 81
    assert 83 < above.get_ylim()[1] < 84
    assert 0.4 < below.get_ylim()[0] < 0.41
    assert 0.47 < below.get_ylim()[1] < 0.48


def test_equal_results_can_be_drawn() -> None:
    """A panel whose results are all the same has room around them."""
    for axis in panels(draw(table((1,)).assign(test_acc=1.0, test_nll=1e-9))):
        assert axis.get_ylim()[0] < axis.lines[0].get_ydata()[0] < axis.get_ylim()[1]


def test_nothing_overlaps() -> None:
    """Sweeps of several datasets, backbones and settings have rows of their own, named where they differ."""
    parts = [table(n=n, dataset=name) for name in ("CIFAR-10", "Oxford-IIIT_Pet") for n in (100, 1000, 10000)]
    figure = draw(*parts, table(backbone="vit_b_16"), table(settings="noise_until 0.85"))
    assert len(panels(figure)) == 2 * (3 + 3 + 1 + 1)
    titles = [axis.get_title() for axis in panels(figure)]
    assert {"d, L2-SP, N = 100\nvit_b_16", "d, L2-SP, N = 100\nb, noise_until 0.85"} <= set(titles)
    boxes = [axis.get_tightbbox() for axis in panels(figure)]
    boxes += [figure.legends[0].get_window_extent(), *[text.get_window_extent() for text in figure.texts]]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
