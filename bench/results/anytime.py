"""Anytime curves: the test accuracy of the best so far against the compute spent so far, of all methods alike.

The best so far is what the method itself would choose if it were stopped there: by its validation NLL or its objective,
never by the test accuracy, so a curve may fall. A curve is a step function. It begins with the method's first result,
training the chosen configuration again counted, and stays what it is after the last.

- Of a method that decides one after the other, step k is its first k configurations.
- Of a set, such as a grid, step k is the expectation over all its subsets of size k: what trying them in a random order
  comes to on average (`bench.results.curves`). Where only the winner of a grid was trained again, it has its end alone.
- Replayed methods (`REPLAY`) have a curve for every repetition.

A mean is over split seeds, each with the mean over its repetitions. It is known only where every curve in it is: a mean
over those that were quick to have a result would be the answer to another question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.labels import REPLAY_SUFFIX
from bench.results.configurations import CELL, PROBLEM
from bench.results.frame import iterate_groups, sort_rows

__all__ = ["REPLAY", "MeanCurve", "anytime", "mean_curve", "mean_curves", "steps"]


Array = NDArray[np.float64]
REPLAY = [*CELL, "method", "repetition", "number", "hours", "test_acc", "cost"]
"""Columns of replayed results: after ``number`` configurations of a ``repetition``, the hours of compute, in which
training again the best so far is counted, and the test accuracy of that one; missing while it is not known."""
STEPS = [*CELL, "method", "repetition", "seconds", "test_acc"]
ANYTIME = ["dataset", "prior", "method", "n", "seconds", "test_acc", "low", "high", "seeds", "curves", "cost"]
ANYTIME += ["backbone", "source"]
PER_OCTAVE = 8


@dataclass(frozen=True)
class MeanCurve:
    """The mean of several step functions, itself one.

    Attributes:
        seconds: where it changes, ascending; shape (E,).
        accuracy: from there on, 0 to 1; NaN where not all of the curves are known; shape (E,).
        ends: when the last of the curves ends.
        seeds: how many split seeds it is over.
        curves: how many curves, repetitions counted.
    """

    seconds: Array
    accuracy: Array
    ends: float
    seeds: frozenset[int]
    curves: int

    def at(self, seconds: Array) -> Array:
        """The mean at each time; NaN where it is not known."""
        place = np.searchsorted(self.seconds, seconds, side="right") - 1
        return np.where(place >= 0, self.accuracy[np.maximum(place, 0)], np.nan)

    @property
    def final(self) -> float:
        """The mean at the end; NaN where it is not known."""
        return float(self.accuracy[-1])


def steps(curves: pd.DataFrame, replays: pd.DataFrame | None = None, cost: str = "full") -> pd.DataFrame:
    """All anytime curves as their steps: source to seed, method, repetition, seconds, test_acc (from there on).

    Args:
        curves: as `bench.results.curves.curves` gives.
        replays: as `REPLAY` says; those methods are called as they are and "(replayed)".
        cost: "train" or "full", as in `bench.results.configurations.COSTS`.

    Raises:
        ValueError: ``replays`` lacks a column.
    """
    live = curves[curves["cost"] == cost].rename(columns={"split_seed": "seed", "expected_test_acc": "test_acc"})
    live = live.assign(seconds=3600 * live["expected_hours"], repetition=0, number=live["k"])
    parts = [live[[*STEPS, "number"]]]
    if replays is not None and len(replays):
        if missing := [name for name in REPLAY if name not in replays]:
            raise ValueError(f"replayed results without column {', '.join(missing)}: give what `replay` wrote")
        again = replays[replays["cost"] == cost]
        again = again.assign(seconds=3600 * again["hours"], method=again["method"] + REPLAY_SUFFIX)
        again["source"] = again["source"].astype("object").fillna("")  # CSV files have no empty text
        parts.append(again[[*STEPS, "number"]])
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    table["test_acc"] = table["test_acc"].where(table["seconds"].notna())
    return sort_rows(table, "seed", "repetition", "number")[STEPS]


def mean_curve(table: pd.DataFrame) -> MeanCurve:
    """The mean over all curves of a table of `steps` that is of one method and problem. Exact, at every step of any."""
    seeds, breaks = table["seed"].to_numpy(), _breaks(table)
    first, last = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(table)]]) - 1
    seconds = np.concatenate([_monotone(part) for part in np.split(table["seconds"].to_numpy(np.float64), breaks)])
    accuracy = table["test_acc"].to_numpy(np.float64)
    names, place, counts = np.unique(seeds[first], return_inverse=True, return_counts=True)
    weight = np.repeat(1 / (counts[place] * len(names)), last - first + 1)
    known = np.isfinite(accuracy)
    value = np.where(known, accuracy, 0) * weight
    change, gain = np.diff(value, prepend=0), np.diff(known.astype(np.int64), prepend=0)
    change[first], gain[first] = value[first], known[first]
    order = np.argsort(seconds, kind="stable")
    ends = np.append(np.diff(seconds[order]) > 0, True)
    mean, count = np.cumsum(change[order])[ends], np.cumsum(gain[order])[ends]
    accuracy = np.where(count == len(first), mean, np.nan)
    return MeanCurve(seconds[order][ends], accuracy, float(seconds[last].max()), frozenset(names.tolist()), len(first))


def mean_curves(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], dict[str, MeanCurve]]]:
    """For each problem of a table of `steps`, the mean curve of each method."""
    for where, group in iterate_groups(table, PROBLEM):
        yield where, {str(method): mean_curve(of) for method, of in group.groupby("method", sort=False)}


def anytime(table: pd.DataFrame, cost: str = "full") -> pd.DataFrame:
    """Mean and band of each method over times that all methods of a problem have in common: anytime.csv.

    Columns: dataset, prior, method, n; seconds, 8 to the doubling, up to the method's own end; test_acc, the mean, low
    and high, the 10 % and 90 % quantiles of the curves (of up to ten curves, least and most); seeds and curves, how
    many; cost, backbone, source. Times at which a mean is not known are left out.
    """
    parts = []
    for where, problem in iterate_groups(table, PROBLEM):
        least, most = max(problem["seconds"].min(), 1e-9), max(problem["seconds"].max(), 1e-9)
        times = least * 2 ** (np.arange(np.ceil(np.log2(most / least) * PER_OCTAVE) + 1) / PER_OCTAVE)
        for method, of in problem.groupby("method", sort=False):
            curve = mean_curve(of)
            own = np.append(times[times < curve.ends], curve.ends)
            known = np.isfinite(curve.at(own))
            low, high = _band(of, own)
            values = {"seconds": own, "test_acc": curve.at(own), "low": low, "high": high}
            more = {"method": method, "seeds": len(curve.seeds), "curves": curve.curves, "cost": cost}
            parts.append(pd.DataFrame(values)[known].assign(**more, **where))
    made = [part for part in parts if len(part)]
    return pd.concat(made, ignore_index=True)[ANYTIME] if made else pd.DataFrame(columns=ANYTIME)


def _breaks(table: pd.DataFrame) -> NDArray[np.int64]:
    """Where in a table of one method and problem a new curve begins, but for the first."""
    changes = [np.diff(table[name].to_numpy()) != 0 for name in ("seed", "repetition")]
    breaks: NDArray[np.int64] = np.flatnonzero(changes[0] | changes[1]) + 1
    return breaks


def _monotone(seconds: Array) -> Array:
    """When each step of a curve is reached for good: one that costs more than a later one is never where a method
    stands, nor is one whose time is missing."""
    reached = np.fmax.accumulate(np.fmin.accumulate(seconds[::-1])[::-1])
    return np.nan_to_num(reached)


def _band(table: pd.DataFrame, times: Array) -> tuple[Array, Array]:
    """The 10 % and 90 % quantiles over all curves of one method at each time; NaN where one of them is not known."""
    breaks = _breaks(table)
    curves = np.full((len(breaks) + 1, len(times)), np.nan)
    both = (np.split(table[name].to_numpy(np.float64), breaks) for name in ("seconds", "test_acc"))
    for curve, seconds, accuracy in zip(curves, *both, strict=True):
        place = np.searchsorted(_monotone(seconds), times, side="right") - 1
        curve[place >= 0] = accuracy[place[place >= 0]]
    low, high = np.quantile(curves, [0.1, 0.9], axis=0, method="inverted_cdf")
    return low, high
