"""Compute time against accuracy, had only k of the M configurations been tried. Exact; sampled for parity.

Draw k of M configurations without replacement, and take the one that is best by what the method may see. Sorted best
first, i = 0..M-1, configuration i is taken with probability

    P_i = C(M-1-i, k-1) / C(M, k),

so that E[accuracy] = sum P_i acc_i and E[hours] = k mean(tuning hours) + sum P_i (retraining hours)_i, without sampling
(Dodge et al. 2019, "Show Your Work"; Tang et al. 2020, who show that this estimator is unbiased).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["COSTS", "Configurations", "configurations", "curves", "exact_curve", "sampled_curve", "selection"]

Array = NDArray[np.float64]

COSTS: dict[str, tuple[str, ...]] = {
    "train": ("train_seconds",),
    "full": ("train_seconds", "evaluate_seconds", "select_seconds"),
}
"""What counts as compute: training steps only, as published; or what the method needs besides, its choice included."""

CELL = ["dataset", "prior", "method", "n", "seed"]


@dataclass(frozen=True)
class Configurations:
    """What one method tried in one cell, best choice first; every array has shape (M,).

    Attributes:
        tuning: seconds of the run that is judged.
        retraining: seconds of training the configuration again on all N images; NaN where that was not run, 0 where
            the method needs none.
        accuracy: test accuracy, 0 to 1; NaN where the run that would be tested was not run.
        keys: of the judged runs.
    """

    tuning: Array
    retraining: Array
    accuracy: Array
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tuning)


def selection(size: int) -> Array:
    """P[k-1, i]: the probability that the i-th best of M is taken when k are drawn. Shape (M, M).

    By P_0 = k/M and P_i+1 = P_i (M-i-k)/(M-1-i): no large binomial is formed.
    """
    k = np.arange(1, size + 1, dtype=np.float64)[:, None]
    i = np.arange(size - 1, dtype=np.float64)[None, :]
    ratios = np.clip((size - i - k) / (size - 1 - i), 0, None)
    return np.cumprod(np.concatenate([k / size, ratios], axis=1), axis=1)


def exact_curve(found: Configurations) -> pd.DataFrame:
    """The expected curve, one row a k = 1..M: k, expected_hours, expected_test_acc, sd_test_acc, q10_ and q90_test_acc.

    ``sd`` and the quantiles are those of the accuracy over all C(M, k) subsets. Where only the winner was retrained,
    the row k = M is all that can be had.
    """
    size = len(found)
    chance = selection(size)
    known = np.isfinite(found.accuracy) & np.isfinite(found.retraining)
    possible = ~(chance[:, ~known] > 0).any(axis=1)
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
    return frame[possible].reset_index(drop=True)


def sampled_curve(found: Configurations, subsamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """The published form: the mean over ``subsamples`` random subsets of each size. Columns: k to sd_test_acc."""
    random = np.random.default_rng(seed)
    rows = []
    for k in range(1, len(found) + 1):
        drawn = np.stack([random.permutation(len(found))[:k] for _ in range(subsamples)])
        best = drawn.min(axis=1)
        seconds = found.tuning[drawn].sum(axis=1) + found.retraining[best]
        accuracy = found.accuracy[best]
        rows.append((k, seconds.mean() / 3600, accuracy.mean(), accuracy.std()))
    return pd.DataFrame(rows, columns=["k", "expected_hours", "expected_test_acc", "sd_test_acc"])


def configurations(frame: pd.DataFrame, cost: str = "train") -> Iterator[tuple[dict[str, object], Configurations]]:
    """For each method in each cell, what it tried. ``frame``: as `RecordStore.frame` gives it.

    A method that tunes is judged by val_nll, others by their objective. Runs that diverged count, ranked behind all
    others; failed ones are left out. Where a cost's seconds were not kept, as in published files, it is NaN.
    """
    usable = frame[frame["status"] != "failed"].copy()
    first, *others = COSTS[cost]
    usable["cost"] = usable[first] + (usable[others].sum(axis=1, min_count=1) if others else 0)
    for cell, group in usable.groupby(CELL, sort=True):
        judged = group[group["stage"] != "retrain"].copy()
        if judged.empty:
            continue
        tunes = bool((judged["stage"] == "tune").any())
        ranks = judged["val_nll" if tunes else "objective"].replace(np.inf, np.nan)
        judged["rank"] = ranks.where(judged["status"] == "completed")
        judged = judged.sort_values(["rank", "key"], na_position="last", ignore_index=True)
        if tunes:
            again = group[group["stage"] == "retrain"]
            joined = judged[SETTINGS].merge(again[[*SETTINGS, "cost", "test_acc"]], on=SETTINGS, how="left")
            retraining, accuracy = joined["cost"], joined["test_acc"]
        else:
            retraining, accuracy = judged["cost"] * 0, judged["test_acc"]
        yield (
            dict(zip(CELL, cell, strict=True)),
            Configurations(
                tuning=judged["cost"].to_numpy(np.float64),
                retraining=retraining.to_numpy(np.float64),
                accuracy=accuracy.to_numpy(np.float64),
                keys=tuple(judged["key"]),
            ),
        )


SETTINGS = ["learning_rate", "weight_decay", "head_weight_decay", "prior_scale", "kappa"]


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """All curves: curves.csv. Accuracy is 0 to 1."""
    parts = [
        exact_curve(found).assign(cost=cost, **cell).rename(columns={"seed": "split_seed"})
        for cost in COSTS
        for cell, found in configurations(frame, cost)
    ]
    columns = ["dataset", "prior", "method", "n", "split_seed", "k", "expected_hours", "expected_test_acc"]
    columns += ["sd_test_acc", "q10_test_acc", "q90_test_acc", "cost"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _quantile(accuracy: Array, chance: Array, level: float) -> Array:
    """The accuracy below which ``level`` of all subsets lie, for each k; shape (M,)."""
    order = np.argsort(accuracy)
    below = np.cumsum(chance[:, order], axis=1)
    quantiles: Array = accuracy[order][np.clip((below < level - 1e-12).sum(axis=1), 0, len(accuracy) - 1)]
    return quantiles
