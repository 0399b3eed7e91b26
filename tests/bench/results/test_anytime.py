"""Anytime curves: their mean against a naive one, their band, unknown values, and replayed methods."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.results.anytime import REPLAY, compute_anytime, compute_mean_curve, compute_steps, iterate_mean_curves
from bench.results.curves import compute_curves
from tests.helpers.result_frames import make_frame, many_methods, trial

pytestmark = pytest.mark.filterwarnings("error")
NAN = float("nan")
CELL: dict[str, Any] = {"source": "", "dataset": "d", "backbone": "b", "prior": "l2-sp", "n": 100}
Curve = list[tuple[float, float]]


def stepped(*curves: Curve, method: str = "m", seeds: list[int] | None = None, **more: Any) -> pd.DataFrame:
    """Make curves of (seconds, accuracy), one per seed, or repetitions of the given ``seeds``."""
    rows = [
        CELL | {"seed": i if seeds is None else seeds[i], "method": method, "repetition": i} | more | known
        for i, curve in enumerate(curves)
        for known in ({"seconds": seconds, "test_acc": accuracy} for seconds, accuracy in curve)
    ]
    return pd.DataFrame(rows)


def naive(curve: Curve, time: float) -> float:
    """Return the accuracy of the last step that costs no more than a time."""
    return next((accuracy for seconds, accuracy in reversed(curve) if seconds <= time), NAN)


CURVES = st.lists(
    st.lists(st.tuples(st.integers(1, 12), st.one_of(st.just(NAN), st.integers(0, 8))), min_size=1, max_size=5),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(CURVES, st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_mean_agrees_with_a_naive_mean(drawn: list[Curve], owners: list[int]) -> None:
    """At any time it is the mean over seeds of the means over repetitions, and unknown where one curve is."""
    drawn = [[(float(seconds), accuracy / 8) for seconds, accuracy in curve] for curve in drawn]
    seeds = sorted(owners[: len(drawn)])
    curve = compute_mean_curve(stepped(*drawn, seeds=seeds))
    times = np.arange(0, 14, 0.5)
    each = np.array([[naive(one, time) for time in times] for one in drawn])
    expected = np.mean([each[np.array(seeds) == seed].mean(axis=0) for seed in sorted(set(seeds))], axis=0)
    np.testing.assert_allclose(curve.at(times), expected, atol=1e-12)
    assert (curve.seeds, curve.curves) == (frozenset(seeds), len(drawn))
    np.testing.assert_allclose(curve.final, expected[-1], atol=1e-12)


def test_mean_begins_with_the_slowest_curve() -> None:
    """There is no mean before every split has a result, and a curve keeps its last value."""
    curve = compute_mean_curve(stepped([(1, 0.5), (3, 0.7)], [(2, 0.9)]))
    np.testing.assert_allclose(curve.at(np.array([1.0, 2.0, 3.0, 99.0])), [NAN, 0.7, 0.8, 0.8])
    assert curve.ends == 3


def test_steps_that_cost_more_than_the_next_are_skipped() -> None:
    """A step that costs more than the next one, or whose time is missing, is skipped."""
    curve = compute_mean_curve(stepped([(5, 0.1), (4, 0.2), (NAN, 0.3), (6, 0.4)]))
    np.testing.assert_allclose(curve.at(np.array([3.9, 4, 5, 6])), [NAN, 0.2, 0.2, 0.4])


def test_an_unknown_repetition_has_no_mean() -> None:
    """A repetition without any known accuracy leaves no mean, instead of one over the others."""
    replays = pd.DataFrame(
        [
            CELL | {"seed": 1, "method": "random", "repetition": i, "number": 0, "cost": "full"} | known
            for i, known in enumerate(({"hours": 1.0, "test_acc": 0.5}, {"hours": NAN, "test_acc": NAN}))
        ]
    )
    table = compute_steps(compute_curves(make_frame()), replays)
    ((_, found),) = iterate_mean_curves(table)
    assert np.isnan(found["random (replayed)"].accuracy).all()
    assert compute_anytime(table).empty


def test_replayed_methods_have_their_own_name() -> None:
    """Steps are those of the curves at a cost, and those of the replays under a name with a suffix."""
    row = trial("random", "run", 0.0, 7200.0, test_acc=0.6, evaluate_seconds=3600.0)
    live = compute_curves(make_frame(row))
    replays = pd.DataFrame(
        [
            CELL
            | {
                "seed": 1,
                "method": "random",
                "repetition": 4,
                "number": 0,
                "hours": 0.5,
                "test_acc": 0.7,
                "cost": "full",
            }
        ]
    )[REPLAY]
    table = compute_steps(live, replays)
    assert table[["method", "repetition", "seconds", "test_acc"]].to_numpy().tolist() == [
        ["random", 0, 3 * 3600.0, 0.6],
        ["random (replayed)", 4, 1800.0, 0.7],
    ]
    assert compute_steps(live, replays, "train")["seconds"].tolist() == [7200.0]
    pd.testing.assert_frame_equal(compute_steps(live, replays.assign(source=NAN)), table)
    with pytest.raises(ValueError, match=r"no column hours; pass the replay\.csv"):
        compute_steps(live, replays.drop(columns="hours"))


def test_band() -> None:
    """Of up to ten curves the band is minimum and maximum; of a hundred it has the middle 80."""
    few = compute_anytime(stepped([(1, 0.1)], [(1, 0.5)], [(1, 0.3)]))
    assert few[["test_acc", "low", "high", "seeds"]].to_numpy().tolist() == [[pytest.approx(0.3), 0.1, 0.5, 3]]
    many = compute_anytime(stepped(*([(1.0, i / 100)] for i in range(100)), seeds=[0] * 100))
    assert many[["low", "high", "curves"]].to_numpy().tolist() == [[0.09, 0.89, 100]]


def test_methods_share_their_times() -> None:
    """All methods of a problem share their times, 8 per doubling, and each ends at its own time."""
    both = pd.concat([stepped([(1, 0.1), (9, 0.2)], method="a"), stepped([(4, 0.3), (5, 0.4)], method="b")])
    table = compute_anytime(both)
    a, b = (table.loc[table["method"] == name, "seconds"].to_numpy() for name in "ab")
    assert (a[0], a[-1], b[0], b[-1]) == (1, 9, pytest.approx(4), 5)
    np.testing.assert_allclose(np.diff(np.log2(a[:-1])), 1 / 8)
    assert set(np.round(b[:-1], 9)) <= set(np.round(a, 9))


def test_every_method_has_a_curve() -> None:
    """Each of a dozen methods has rows in every problem, with the mean within the band."""
    frame = many_methods(("l2-sp", "ptyl"), (100,), 2)
    table = compute_anytime(compute_steps(compute_curves(frame)))
    assert set(table["method"]) == set(frame["method"])
    assert table.groupby(["prior", "method"]).ngroups == 2 * frame["method"].nunique()
    assert ((table["low"] <= table["test_acc"] + 1e-12) & (table["test_acc"] <= table["high"] + 1e-12)).all()


def test_no_curves_give_no_rows() -> None:
    """Without curves there are no steps and no anytime curves."""
    table = compute_steps(compute_curves(make_frame()))
    assert table.empty
    assert compute_anytime(table).empty
