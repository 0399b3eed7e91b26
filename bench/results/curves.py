"""Compute time against accuracy, had only k of the M configurations been tried. Exact; sampled for parity.

Draw k of M configurations without replacement, and take the one that is best by what the method may see. Sorted best
first, i = 0..M-1, configuration i is taken with probability

    P_i = C(M-1-i, k-1) / C(M, k),

so that E[accuracy] = sum P_i acc_i and E[hours] = k mean(tuning hours) + sum P_i (retraining hours)_i, without sampling
(Dodge et al. 2019, "Show Your Work"; Tang et al. 2020, who show that this estimator is unbiased).

A method that decides one after the other has no subsets: of it, k configurations are its first k. Nor has one that gave
up some of its configurations for being worse than others: it is a whole.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.results.configurations import CELL, COSTS, PROBLEM, Configurations, configurations

__all__ = [
    "CELL",
    "COSTS",
    "PROBLEM",
    "Configurations",
    "configurations",
    "curves",
    "exact_curve",
    "prefix_curve",
    "sampled_curve",
    "selection",
]


Array = NDArray[np.float64]
CURVE = ["k", "expected_hours", "expected_test_acc", "sd_test_acc", "q10_test_acc", "q90_test_acc"]
COLUMNS = ["dataset", "prior", "method", "n", "split_seed", *CURVE, "cost", "backbone", "source"]


@lru_cache(maxsize=32)
def selection(size: int) -> Array:
    """P[k-1, i]: the probability that the i-th best of M is taken when k are drawn. Shape (M, M), not to be written to.

    By P_0 = k/M and P_i+1 = P_i (M-i-k)/(M-1-i): no large binomial is formed.
    """
    k = np.arange(1, size + 1, dtype=np.float64)[:, None]
    i = np.arange(size - 1, dtype=np.float64)[None, :]
    ratios = np.clip((size - i - k) / (size - 1 - i), 0, None)
    chance = np.cumprod(np.concatenate([k / size, ratios], axis=1), axis=1)
    chance.flags.writeable = False
    return chance


def exact_curve(found: Configurations) -> pd.DataFrame:
    """The expected curve, one row a k = 1..M: k, expected_hours, expected_test_acc, sd_test_acc, q10_ and q90_test_acc.

    ``sd`` and the quantiles are those of the accuracy over all C(M, k) subsets. Where only the winner was retrained, or
    where configurations were given up, the row k = M is all that can be had.
    """
    size = len(found)
    chance, known = selection(size), found.known
    accuracy, retraining = np.where(known, found.accuracy, 0), np.where(known, found.retraining, 0)
    mean = chance @ accuracy
    spread = np.sqrt((chance * (accuracy[None, :] - mean[:, None]) ** 2).sum(axis=1))
    k = np.arange(1, size + 1)
    frame = pd.DataFrame(
        {
            "k": k,
            "expected_hours": (k * found.tuning.mean() + chance @ retraining) / 3600,
            "expected_test_acc": mean,
            "sd_test_acc": spread,
            "q10_test_acc": _quantile(accuracy, chance, 0.1),
            "q90_test_acc": _quantile(accuracy, chance, 0.9),
        }
    )
    return frame[_possible(found)].reset_index(drop=True)


def prefix_curve(found: Configurations) -> pd.DataFrame:
    """The curve of a method that decides one after the other. Columns as `exact_curve`; the accuracy has no spread.

    Row k: the hours of its first k configurations and of training again the best of them, by what the method sees; and
    that one's test accuracy, missing where it is not known; the hours count a mean retraining there. Rows before the
    first that is known are left out, and where it is not known what the best of all comes to there is no curve.
    """
    order = np.argsort(found.number, kind="stable")
    best = np.minimum.accumulate(order)  # configurations stand best first
    known = found.known[best]
    if not known[-1]:
        return pd.DataFrame(columns=CURVE, dtype="float64")
    accuracy = np.where(known, found.accuracy[best], np.nan)
    again = np.where(known, found.retraining[best], found.retraining[found.known].mean())
    seconds = np.cumsum(found.tuning[order]) + again
    values = (np.arange(1, len(found) + 1), seconds / 3600, accuracy, np.where(known, 0.0, np.nan), accuracy, accuracy)
    return pd.DataFrame(dict(zip(CURVE, values, strict=True)))[known.argmax() :].reset_index(drop=True)


def sampled_curve(found: Configurations, subsamples: int = 500, seed: int | np.random.Generator = 0) -> pd.DataFrame:
    """The published form: over ``subsamples`` random subsets of each size k. Columns and rows as `exact_curve`."""
    random = np.random.default_rng(seed)
    everyone = np.tile(np.arange(len(found)), (subsamples, 1))
    rows = []
    for k in np.flatnonzero(_possible(found)) + 1:
        drawn = random.permuted(everyone, axis=1)[:, :k]
        best = drawn.min(axis=1)
        seconds = found.tuning[drawn].sum(axis=1) + found.retraining[best]
        accuracy = found.accuracy[best]
        low, high = np.quantile(accuracy, [0.1, 0.9], method="inverted_cdf")
        rows.append((k, seconds.mean() / 3600, accuracy.mean(), accuracy.std(), low, high))
    return pd.DataFrame(rows, columns=CURVE)


def curves(frame: pd.DataFrame, subsamples: int | None = None, seed: int = 0) -> pd.DataFrame:
    """All curves: curves.csv. Accuracy is 0 to 1.

    Args:
        frame: as `RecordStore.frame` gives it.
        subsamples: None: exact. A number: the mean over so many random subsets of each size, by ``seed``.
    """
    random = np.random.default_rng(seed)
    cells, parts = [], []
    for cost in COSTS:
        for cell, found in configurations(frame, cost):
            if found.ordered:
                curve = prefix_curve(found)
            else:
                curve = exact_curve(found) if subsamples is None else sampled_curve(found, subsamples, random)
            if len(curve):
                cells.append(cell | {"cost": cost})
                parts.append(curve)
    if not parts:
        return pd.DataFrame(columns=COLUMNS)
    where = pd.DataFrame(cells).rename(columns={"seed": "split_seed"})
    where = where.loc[np.repeat(where.index, [len(curve) for curve in parts])].reset_index(drop=True)
    return pd.concat([pd.concat(parts, ignore_index=True), where], axis=1)[COLUMNS]


def _possible(found: Configurations) -> NDArray[np.bool_]:
    """For which k = 1..M it is known what every configuration comes to that can be taken; shape (M,)."""
    size = len(found)
    possible: NDArray[np.bool_] = (selection(size)[:, ~found.known] == 0).all(axis=1)
    if found.given_up.any():
        possible = (np.arange(1, size + 1) == size) & found.known[0]
    return possible


def _quantile(accuracy: Array, chance: Array, level: float) -> Array:
    """The accuracy below which ``level`` of all subsets lie, for each k; shape (M,)."""
    order = np.argsort(accuracy)
    below = np.cumsum(chance[:, order], axis=1)
    quantiles: Array = accuracy[order][np.clip((below < level - 1e-12).sum(axis=1), 0, len(accuracy) - 1)]
    return quantiles
