"""Anytime curves: their mean against a naive one, band, where they are unknown; and what was replayed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.results.anytime import REPLAY, compute_anytime, compute_mean_curve, compute_steps, iterate_mean_curves
from bench.results.curves import compute_curves
from tests.helpers.result_frames import frame_made, many_methods, trial

pytestmark = pytest.mark.filterwarnings("error")
NAN = float("nan")
CELL: dict[str, Any] = {"source": "", "dataset": "d", "backbone": "b", "prior": "l2-sp", "n": 100}
Curve = list[tuple[float, float]]


def stepped(*curves: Curve, method: str = "m", seeds: list[int] | None = None, **more: Any) -> pd.DataFrame:
    """Curves of (seconds, accuracy), one a seed unless ``seeds`` says whose repetition each is."""
    rows = [
        CELL | {"seed": i if seeds is None else seeds[i], "method": method, "repetition": i} | more | known
        for i, curve in enumerate(curves)
        for known in ({"seconds": seconds, "test_acc": accuracy} for seconds, accuracy in curve)
    ]
    return pd.DataFrame(rows)


def naive(curve: Curve, time: float) -> float:
    """Where a method stands at a time: at the last of its steps that cost no more."""
    return next((accuracy for seconds, accuracy in reversed(curve) if seconds <= time), NAN)


CURVES = st.lists(
    st.lists(st.tuples(st.integers(1, 12), st.one_of(st.just(NAN), st.integers(0, 8))), min_size=1, max_size=5),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(CURVES, st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_the_mean_is_the_naive_mean(drawn: list[Curve], owners: list[int]) -> None:
    """At any time: over seeds, of the mean over a seed's repetitions; unknown where one curve is."""
    drawn = [[(float(seconds), accuracy / 8) for seconds, accuracy in curve] for curve in drawn]
    seeds = sorted(owners[: len(drawn)])
    curve = compute_mean_curve(stepped(*drawn, seeds=seeds))
    times = np.arange(0, 14, 0.5)
    each = np.array([[naive(one, time) for time in times] for one in drawn])
    expected = np.mean([each[np.array(seeds) == seed].mean(axis=0) for seed in sorted(set(seeds))], axis=0)
    np.testing.assert_allclose(curve.at(times), expected, atol=1e-12)
    assert (curve.seeds, curve.curves) == (frozenset(seeds), len(drawn))
    np.testing.assert_allclose(curve.final, expected[-1], atol=1e-12)


def test_a_mean_begins_with_the_slowest() -> None:
    """Before every split has a result there is no mean; after its end a curve stays what it is."""
    curve = compute_mean_curve(stepped([(1, 0.5), (3, 0.7)], [(2, 0.9)]))
    np.testing.assert_allclose(curve.at(np.array([1.0, 2.0, 3.0, 99.0])), [NAN, 0.7, 0.8, 0.8])
    assert curve.ends == 3


def test_a_step_dearer_than_the_next_is_never_stood_on() -> None:
    """Where training the next best again is so much shorter that k + 1 costs less than k, k is passed over; a step
    whose time is missing is none."""
    curve = compute_mean_curve(stepped([(5, 0.1), (4, 0.2), (NAN, 0.3), (6, 0.4)]))
    np.testing.assert_allclose(curve.at(np.array([3.9, 4, 5, 6])), [NAN, 0.2, 0.2, 0.4])


def test_replays_that_never_know_have_no_mean() -> None:
    """A repetition of which nothing is ever known leaves no mean, instead of one over the others."""
    replays = pd.DataFrame(
        [
            CELL | {"seed": 1, "method": "random", "repetition": i, "number": 0, "cost": "full"} | known
            for i, known in enumerate(({"hours": 1.0, "test_acc": 0.5}, {"hours": NAN, "test_acc": NAN}))
        ]
    )
    table = compute_steps(compute_curves(frame_made()), replays)
    ((_, found),) = iterate_mean_curves(table)
    assert np.isnan(found["random (replayed)"].accuracy).all()
    assert compute_anytime(table).empty


def test_live_and_replayed_stand_side_by_side() -> None:
    """Steps are those of the curves at the cost asked for, and those of the replays under a name of their own."""
    row = trial("random", "run", 0.0, 7200.0, test_acc=0.6, evaluate_seconds=3600.0)
    live = compute_curves(frame_made(row))
    replays = pd.DataFrame([CELL | {"seed": 1, "method": "random", "repetition": 4, "number": 0} | MADE])[REPLAY]
    table = compute_steps(live, replays)
    assert table[["method", "repetition", "seconds", "test_acc"]].to_numpy().tolist() == [
        ["random", 0, 3 * 3600.0, 0.6],
        ["random (replayed)", 4, 1800.0, 0.7],
    ]
    assert compute_steps(live, replays, "train")["seconds"].tolist() == [7200.0]
    pd.testing.assert_frame_equal(compute_steps(live, replays.assign(source=NAN)), table)
    with pytest.raises(ValueError, match=r"no column hours; pass the replay\.csv"):
        compute_steps(live, replays.drop(columns="hours"))


MADE = {"hours": 0.5, "test_acc": 0.7, "cost": "full"}


def test_the_band_is_least_and_most_of_a_few() -> None:
    """Of up to ten curves the band reaches from the least to the most; of a hundred it holds the middle 80."""
    few = compute_anytime(stepped([(1, 0.1)], [(1, 0.5)], [(1, 0.3)]))
    assert few[["test_acc", "low", "high", "seeds"]].to_numpy().tolist() == [[pytest.approx(0.3), 0.1, 0.5, 3]]
    many = compute_anytime(stepped(*([(1.0, i / 100)] for i in range(100)), seeds=[0] * 100))
    assert many[["low", "high", "curves"]].to_numpy().tolist() == [[0.09, 0.89, 100]]


def test_times_are_common_and_end_with_the_method() -> None:
    """All methods of a problem are seen at the same times, 8 to the doubling, and each at its own end."""
    both = pd.concat([stepped([(1, 0.1), (9, 0.2)], method="a"), stepped([(4, 0.3), (5, 0.4)], method="b")])
    table = compute_anytime(both)
    a, b = (table.loc[table["method"] == name, "seconds"].to_numpy() for name in "ab")
    assert (a[0], a[-1], b[0], b[-1]) == (1, 9, pytest.approx(4), 5)
    np.testing.assert_allclose(np.diff(np.log2(a[:-1])), 1 / 8)
    assert set(np.round(b[:-1], 9)) <= set(np.round(a, 9))


def test_every_method_of_a_benchmark_has_its_curve() -> None:
    """In made-up results of a dozen methods each has rows in every problem, means within their band."""
    frame = many_methods(("l2-sp", "ptyl"), (100,), 2)
    table = compute_anytime(compute_steps(compute_curves(frame)))
    assert set(table["method"]) == set(frame["method"])
    assert table.groupby(["prior", "method"]).ngroups == 2 * frame["method"].nunique()
    assert ((table["low"] <= table["test_acc"] + 1e-12) & (table["test_acc"] <= table["high"] + 1e-12)).all()


def test_nothing_gives_no_rows() -> None:
    """Without curves there are no steps and no anytime curves."""
    table = compute_steps(compute_curves(frame_made()))
    assert table.empty
    assert compute_anytime(table).empty
