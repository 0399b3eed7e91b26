"""Comparison of all methods: what is compared, and what is left out with a note."""

import pandas as pd

from bench.report.all_methods import MethodComparison, compare_all_methods
from bench.results.curves import compute_curves
from bench.results.paired_tests import select_results
from tests.helpers.result_frames import make_frame, trial


def compare(frame: pd.DataFrame) -> MethodComparison | None:
    return compare_all_methods(frame, compute_curves(frame), select_results(frame))


def test_a_source_without_full_cost_is_left_out() -> None:
    """Beside a source that recorded the full cost, one that did not is left out with a note."""
    rows = [trial(m, "run", 1.0, 1.0, test_acc=0.5) for m in ("map-gs", "x")]
    bare = dict.fromkeys(("evaluate_seconds", "select_seconds", "adapt_seconds"))
    comparison = compare(
        make_frame(*(row | {"source": "a"} for row in rows), *(row | bare | {"source": "b"} for row in rows))
    )
    assert comparison is not None
    assert set(comparison.anytime["source"]) == {"a"}
    (note,) = comparison.notes
    assert note.startswith("All methods: b is left out, as it did not record the full cost")


def test_a_method_that_lacks_a_split_is_not_compared() -> None:
    """A method that lacks a split is drawn and not compared, with a note; the paper's methods alone are not."""
    rows = [trial(m, "run", 1.0, 1.0, seed=seed, test_acc=0.5) for m in ("map-gs", "x") for seed in (1, 2)]
    frame = make_frame(*rows, trial("y", "run", 1.0, 1.0, test_acc=0.9))
    comparison = compare(frame)
    assert comparison is not None
    (note,) = comparison.notes
    assert note.startswith(
        "All methods: y is not compared in 1 combination of dataset, N and Model, as it lacks a split"
    )
    assert set(comparison.anytime["method"]) == {"map-gs", "x", "y"}
    assert set(comparison.budgets["method"]) == {"map-gs", "x"}
    assert compare(frame[frame["method"] == "map-gs"]) is None
