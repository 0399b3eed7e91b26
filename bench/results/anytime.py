"""Anytime curves: test accuracy of a method's current choice against the compute that it has spent.

The current choice is what the method would return if it were stopped: its best by validation NLL or objective, never by
test accuracy, so a curve may fall. A curve is a step function from the method's first result on. Means are over split
seeds, each first averaged over its repetitions, and known only where all of their curves are: a mean over the methods
that finished early would be biased.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.labels import REPLAY_SUFFIX
from bench.results.configurations import CELL, PROBLEM
from bench.results.frame import iterate_groups, sort_rows

Array = NDArray[np.float64]
REPLAY = [*CELL, "method", "repetition", "number", "hours", "test_acc", "cost"]
"""Columns of replayed results: after ``number`` configurations of a ``repetition``, the hours of compute including the
retraining of the current choice, and its test accuracy, missing if unknown."""
STEPS = [*CELL, "method", "repetition", "seconds", "test_acc"]
ANYTIME = ["dataset", "prior", "method", "n", "seconds", "test_acc", "low", "high", "seeds", "curves", "cost"]
ANYTIME += ["backbone", "source"]
POINTS_PER_DOUBLING = 8


@dataclass(frozen=True)
class MeanCurve:
    """Mean of step functions: from ``seconds[i]`` on it is ``accuracy[i]`` (0 to 1), NaN where one is unknown.

    ``ends`` is when the last of them ends, ``seeds`` their split seeds, ``curves`` their number, repetitions counted.
    """

    seconds: Array
    accuracy: Array
    ends: float
    seeds: frozenset[int]
    curves: int

    def at(self, seconds: Array) -> Array:
        """Return the mean at each time; NaN where it is unknown."""
        return _step_values(self.seconds, self.accuracy, seconds)

    @property
    def final(self) -> float:
        """Mean at the end; NaN if unknown."""
        return float(self.accuracy[-1])


def compute_steps(curves: pd.DataFrame, replays: pd.DataFrame | None = None, cost: str = "full") -> pd.DataFrame:
    """Convert curves and replayed results (columns `REPLAY`) to steps: a row has test_acc from its seconds on.

    Raises:
        ValueError: ``replays`` lacks a column.
    """
    ran = curves[curves["cost"] == cost].rename(columns={"split_seed": "seed", "expected_test_acc": "test_acc"})
    ran = ran.assign(seconds=3600 * ran["expected_hours"], repetition=0, number=ran["k"])
    parts = [ran[[*STEPS, "number"]]]
    if replays is not None and len(replays):
        if missing := [name for name in REPLAY if name not in replays]:
            raise ValueError(f"replayed results have no column {', '.join(missing)}; pass the replay.csv of `replay`")
        again = replays[replays["cost"] == cost]
        again = again.assign(seconds=3600 * again["hours"], method=again["method"] + REPLAY_SUFFIX)
        again["source"] = again["source"].astype("object").fillna("")  # CSV files have no empty text
        parts.append(again[[*STEPS, "number"]])
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    table["test_acc"] = table["test_acc"].where(table["seconds"].notna())
    return sort_rows(table, "seed", "repetition", "number")[STEPS]


def compute_mean_curve(steps: pd.DataFrame) -> MeanCurve:
    """Compute the exact mean over all curves of one method on one problem; ``steps`` as of `compute_steps`."""
    seeds, breaks = steps["seed"].to_numpy(), _curve_breaks(steps)
    first, last = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(steps)]]) - 1
    seconds = np.concatenate([_reached_at(part) for part in np.split(steps["seconds"].to_numpy(np.float64), breaks)])
    accuracy = steps["test_acc"].to_numpy(np.float64)
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


def iterate_mean_curves(steps: pd.DataFrame) -> Iterator[tuple[dict[str, Any], dict[str, MeanCurve]]]:
    """Iterate over problems: the values of `PROBLEM`, and the mean curve of each method."""
    for problem, rows in iterate_groups(steps, PROBLEM):
        yield problem, {str(method): compute_mean_curve(of) for method, of in rows.groupby("method", sort=False)}


def compute_anytime(steps: pd.DataFrame, cost: str = "full") -> pd.DataFrame:
    """Compute mean and band of each method at times that all methods of a problem share: anytime.csv.

    The times are 8 per doubling, up to the method's own end; the band is the 10 % and 90 % quantiles of its curves.
    Times at which the mean is unknown are left out.
    """
    parts = []
    for problem, rows in iterate_groups(steps, PROBLEM):
        least, most = max(rows["seconds"].min(), 1e-9), max(rows["seconds"].max(), 1e-9)
        count = np.ceil(np.log2(most / least) * POINTS_PER_DOUBLING) + 1
        times = least * 2 ** (np.arange(count) / POINTS_PER_DOUBLING)
        for method, of in rows.groupby("method", sort=False):
            curve = compute_mean_curve(of)
            own = np.append(times[times < curve.ends], curve.ends)
            mean, (low, high) = curve.at(own), _band(of, own)
            values = {"seconds": own, "test_acc": mean, "low": low, "high": high}
            more = {"method": method, "seeds": len(curve.seeds), "curves": curve.curves, "cost": cost}
            parts.append(pd.DataFrame(values)[np.isfinite(mean)].assign(**more, **problem))
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True)[ANYTIME] if parts else pd.DataFrame(columns=ANYTIME)


def _curve_breaks(steps: pd.DataFrame) -> NDArray[np.int64]:
    """Rows at which the second and later curves of one method on one problem begin."""
    seed, repetition = (np.diff(steps[name].to_numpy()) != 0 for name in ("seed", "repetition"))
    breaks: NDArray[np.int64] = np.flatnonzero(seed | repetition) + 1
    return breaks


def _reached_at(seconds: Array) -> Array:
    """Time from which each step holds: steps of unknown time, or followed by a cheaper one, last no time."""
    reached = np.fmax.accumulate(np.fmin.accumulate(seconds[::-1])[::-1])
    return np.nan_to_num(reached)


def _step_values(starts: Array, values: Array, times: Array) -> Array:
    """Values of a step function at some times; NaN before its first step."""
    place = np.searchsorted(starts, times, side="right") - 1
    return np.where(place >= 0, values[np.maximum(place, 0)], np.nan)


def _band(steps: pd.DataFrame, times: Array) -> tuple[Array, Array]:
    """10 % and 90 % quantiles over all curves of a method at each time; NaN where a curve is unknown."""
    breaks = _curve_breaks(steps)
    columns = (np.split(steps[name].to_numpy(np.float64), breaks) for name in ("seconds", "test_acc"))
    curves = [_step_values(_reached_at(seconds), accuracy, times) for seconds, accuracy in zip(*columns, strict=True)]
    low, high = np.quantile(np.array(curves), [0.1, 0.9], axis=0, method="inverted_cdf")
    return low, high
