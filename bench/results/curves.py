"""Expected test accuracy against compute time, had only k of a method's M configurations been tried.

Draw k of M configurations without replacement, and choose the best. Sorted best first, configuration i is chosen with
probability P_i = C(M-1-i, k-1) / C(M, k), so E[accuracy] = sum P_i accuracy_i and E[hours] = k mean(tuning hours) + sum
P_i (retraining hours)_i, exactly. Sources: Dodge et al. 2019, "Show Your Work"; Tang et al. 2020, who show that this
estimator is unbiased. The first k configurations of a sequential method replace the subsets. A method that stops
configurations early, because others are better, has no curve but its end.
"""

from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.results.configurations import COSTS, Configurations, iterate_configurations

Array = NDArray[np.float64]
CURVE = ["k", "expected_hours", "expected_test_acc", "sd_test_acc", "q10_test_acc", "q90_test_acc"]
COLUMNS = ["dataset", "prior", "method", "n", "split_seed", *CURVE, "cost", "backbone", "source"]


@lru_cache(maxsize=32)
def selection_probabilities(size: int) -> Array:
    """Compute P[k-1, i], the probability that the i-th best of M is chosen among k drawn; shape (M, M), read-only.

    Recurrence: P_0 = k/M and P_i+1 = P_i (M-i-k)/(M-1-i), which needs no large binomial.
    """
    k = np.arange(1, size + 1, dtype=np.float64)[:, None]
    i = np.arange(size - 1, dtype=np.float64)[None, :]
    ratios = np.clip((size - i - k) / (size - 1 - i), 0, None)
    probabilities = np.cumprod(np.concatenate([k / size, ratios], axis=1), axis=1)
    probabilities.flags.writeable = False
    return probabilities


def exact_curve(tried: Configurations) -> pd.DataFrame:
    """Compute the expected curve, one row per k = 1..M with the columns of `CURVE`.

    Standard deviation and quantiles are of the accuracy over all C(M, k) subsets. Rows that need an unknown test
    accuracy are left out: only k = M stays where only the winner was retrained or configurations were stopped early.
    """
    size = len(tried)
    probabilities, known = selection_probabilities(size), tried.has_test_accuracy
    accuracy, retraining = np.where(known, tried.accuracy, 0), np.where(known, tried.retraining_seconds, 0)
    mean = probabilities @ accuracy
    k = np.arange(1, size + 1)
    curve = pd.DataFrame(
        {
            "k": k,
            "expected_hours": (k * tried.tuning_seconds.mean() + probabilities @ retraining) / 3600,
            "expected_test_acc": mean,
            "sd_test_acc": np.sqrt((probabilities * (accuracy[None, :] - mean[:, None]) ** 2).sum(axis=1)),
            "q10_test_acc": _quantile(accuracy, probabilities, 0.1),
            "q90_test_acc": _quantile(accuracy, probabilities, 0.9),
        }
    )
    return curve[_known_sizes(tried)].reset_index(drop=True)


def prefix_curve(tried: Configurations) -> pd.DataFrame:
    """Compute the curve of a sequential method: its first k configurations and retraining the best of them.

    Where the accuracy of that one is unknown, it is missing, and the hours count a mean retraining. Rows before the
    first known accuracy are left out; if the accuracy of the best of all is unknown, there is no curve.
    """
    order = np.argsort(tried.number, kind="stable")
    best = np.minimum.accumulate(order)  # configurations are sorted best first
    known = tried.has_test_accuracy[best]
    if not known[-1]:
        return pd.DataFrame(columns=CURVE, dtype="float64")
    accuracy = np.where(known, tried.accuracy[best], np.nan)
    mean_retraining = tried.retraining_seconds[tried.has_test_accuracy].mean()
    retraining = np.where(known, tried.retraining_seconds[best], mean_retraining)
    hours = (np.cumsum(tried.tuning_seconds[order]) + retraining) / 3600
    values = (np.arange(1, len(tried) + 1), hours, accuracy, np.where(known, 0.0, np.nan), accuracy, accuracy)
    return pd.DataFrame(dict(zip(CURVE, values, strict=True)))[known.argmax() :].reset_index(drop=True)


def sampled_curve(tried: Configurations, subsamples: int = 500, seed: int | np.random.Generator = 0) -> pd.DataFrame:
    """Estimate `exact_curve` from ``subsamples`` random subsets of each size k, as published."""
    random = np.random.default_rng(seed)
    indices = np.tile(np.arange(len(tried)), (subsamples, 1))
    rows = []
    for k in np.flatnonzero(_known_sizes(tried)) + 1:
        drawn = random.permuted(indices, axis=1)[:, :k]
        best = drawn.min(axis=1)
        seconds = tried.tuning_seconds[drawn].sum(axis=1) + tried.retraining_seconds[best]
        accuracy = tried.accuracy[best]
        low, high = np.quantile(accuracy, [0.1, 0.9], method="inverted_cdf")
        rows.append((k, seconds.mean() / 3600, accuracy.mean(), accuracy.std(), low, high))
    return pd.DataFrame(rows, columns=CURVE)


def compute_curves(frame: pd.DataFrame, subsamples: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Compute the curves of all methods and cells, exactly or from random subsets of each size: curves.csv."""
    random = np.random.default_rng(seed)
    cells, parts = [], []
    for cost in COSTS:
        for cell, tried in iterate_configurations(frame, cost):
            if tried.is_sequential:
                curve = prefix_curve(tried)
            else:
                curve = exact_curve(tried) if subsamples is None else sampled_curve(tried, subsamples, random)
            if len(curve):
                cells.append(cell | {"cost": cost})
                parts.append(curve)
    if not parts:
        return pd.DataFrame(columns=COLUMNS)
    keys = pd.DataFrame(cells).rename(columns={"seed": "split_seed"})
    keys = keys.loc[np.repeat(keys.index, [len(curve) for curve in parts])].reset_index(drop=True)
    return pd.concat([pd.concat(parts, ignore_index=True), keys], axis=1)[COLUMNS]


def _known_sizes(tried: Configurations) -> NDArray[np.bool_]:
    """Mask of k = 1..M at which the test accuracy of every possible choice is known; shape (M,)."""
    size = len(tried)
    if tried.stopped_early.any():
        known: NDArray[np.bool_] = (np.arange(1, size + 1) == size) & tried.has_test_accuracy[0]
    else:
        known = (selection_probabilities(size)[:, ~tried.has_test_accuracy] == 0).all(axis=1)
    return known


def _quantile(accuracy: Array, probabilities: Array, level: float) -> Array:
    """Accuracy below which ``level`` of all subsets lie, for each k; shape (M,)."""
    order = np.argsort(accuracy)
    below = np.cumsum(probabilities[:, order], axis=1)
    quantiles: Array = accuracy[order][np.clip((below < level - 1e-12).sum(axis=1), 0, len(accuracy) - 1)]
    return quantiles
