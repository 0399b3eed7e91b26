"""Choices at an end of a grid."""

from typing import Any

import pandas as pd
import pytest

from bench.results.edges import find_edges
from tests.helpers.result_frames import make_frame, trial


def grid(
    best: tuple[float, float], rates: Any = (0.1, 0.01, 0.001), decays: Any = (0.01, 0.001, 0.0), **more: Any
) -> Any:
    """Return the tuning runs of a grid in which the configuration ``best`` has the lowest validation NLL."""
    return [
        trial(
            "map-gs",
            "tune",
            0.1 if (rate, decay) == best else 1.0,
            1.0,
            learning_rate=rate,
            weight_decay=decay,
            head_weight_decay=decay,
            **more,
        )
        for rate in rates
        for decay in decays
    ]


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ((0.01, 0.001), []),
        ((0.01, 0.0), []),
        ((0.1, 0.001), ["learning rate is the largest of its grid, 0.1,"]),
        (
            (0.001, 0.01),
            ["rate is the smallest of its grid, 0.001,", "decay is the largest of its grid, 0.01,"],
        ),
    ],
)
def test_choices_at_an_end_are_named(best: tuple[float, float], expected: list[str]) -> None:
    """Largest and smallest values are named, a weight decay of 0 is no end, and the tied head is not repeated."""
    lines = find_edges(make_frame(*grid(best)))
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert f"{words} in 1 of 1 cells" in line


def test_cells_are_counted() -> None:
    frame = make_frame(*grid((0.1, 0.001), seed=1), *grid((0.1, 0.001), seed=2), *grid((0.01, 0.001), seed=3))
    (line,) = find_edges(frame)
    assert "in 2 of 3 cells: a wider grid may give another result." in line


def test_what_has_no_grid() -> None:
    """Of two values each is an end, and sampled configurations have none."""
    assert find_edges(make_frame(*grid((0.1, 0.01), rates=(0.1, 0.01), decays=(0.01,)))) == []
    numbered = [run | {"number": i} for i, run in enumerate(grid((0.1, 0.01)))]
    assert find_edges(make_frame(*numbered)) == []
    assert find_edges(pd.DataFrame(make_frame(*grid((0.1, 0.01))).iloc[:0])) == []
