"""Choices at an end of a grid."""

from typing import Any

import pandas as pd
import pytest

from bench.config.benchmark import make_methods
from bench.config.loading import load_benchmark
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
        ((0.1, 0.001), ["learning rate is the largest that was tried, 0.1,"]),
        (
            (0.001, 0.01),
            ["rate is the smallest that was tried, 0.001,", "decay is the largest that was tried, 0.01,"],
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
    assert "in 2 of 3 cells: a wider search may give another result." in line


def numbered(best: tuple[float, float], *settings: str) -> pd.DataFrame:
    """Return runs of a search whose options are those of the preset's BO, with these settings."""
    benchmark = load_benchmark("digits", [f"methods.bo.{setting}" for setting in settings])
    search = next(method for method in make_methods(benchmark) if method.name == "bo")
    search.dry_run = True
    spec = search.ask()
    assert spec is not None
    runs = enumerate(grid(best, rates=(0.1, 0.04, 0.02, 0.001, 0.0001), decays=(0.01, 0.001, 0.000001)))
    return make_frame(*(run | {"number": i, "options": spec.options} for i, run in runs))


def test_a_search_of_a_grid_has_its_ends() -> None:
    """What random search, ASHA, and Bayesian optimization of a grid choose is compared with all that they tried."""
    on_grid = numbered((0.1, 0.001), "grid=true")
    for frame in (on_grid, on_grid.assign(options="{}")):
        (line,) = find_edges(frame)
        assert "the chosen learning rate is the largest that was tried, 0.1, in 1 of 1 cells" in line


@pytest.mark.parametrize(
    ("rate", "end"),
    [(0.1, "highest"), (0.04, None), (0.02, None), (0.001, None), (0.0001, "lowest")],
)
def test_the_ends_of_a_range(rate: float, end: str | None) -> None:
    """Of a range, a tenth in logarithms is its end: from 1e-4 to 1e-1 that is 0.0501 and more, 0.0002 and less."""
    lines = find_edges(numbered((rate, 0.001)))
    place = f"the chosen learning rate is in the {end} tenth of its range, 0.0001 to 0.1, in 1 of 1 cells"
    assert len(lines) == (end is not None)
    assert all(place in line for line in lines)
    assert find_edges(numbered((rate, 0.001), "learning_rate=[1e-6, 10]")) == []


def test_what_has_no_grid() -> None:
    """Of two values each is an end, and no results have none."""
    assert find_edges(make_frame(*grid((0.1, 0.01), rates=(0.1, 0.01), decays=(0.01,)))) == []
    assert find_edges(pd.DataFrame(make_frame(*grid((0.1, 0.01))).iloc[:0])) == []
