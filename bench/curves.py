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
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = [
    "CELL",
    "COSTS",
    "PROBLEM",
    "Configurations",
    "configurations",
    "curves",
    "exact_curve",
    "sampled_curve",
    "selection",
]

Array = NDArray[np.float64]

COSTS: dict[str, tuple[str, ...]] = {
    "train": ("train_seconds",),
    "full": ("train_seconds", "evaluate_seconds", "select_seconds"),
}
"""What counts as compute: training steps only, as published; or what the method needs besides, its choice included."""

PROBLEM = ["source", "dataset", "backbone", "prior", "n"]
"""What methods compete on; a split seed more is a cell."""
CELL = [*PROBLEM, "seed"]
SETTINGS = ["learning_rate", "weight_decay", "head_weight_decay", "prior_scale", "kappa"]
CURVE = ["k", "expected_hours", "expected_test_acc", "sd_test_acc", "q10_test_acc", "q90_test_acc"]
COLUMNS = ["dataset", "prior", "method", "n", "split_seed", *CURVE, "cost", "backbone", "source"]


@dataclass(frozen=True)
class Configurations:
    """What one method tried in one cell, best choice first; every array has shape (M,).

    Attributes:
        tuning: seconds of the run that is judged.
        retraining: seconds of training the configuration again on all N images; NaN where that was not run, 0 where
            the method needs none.
        accuracy: test accuracy, 0 to 1; NaN where the run that would be tested was not run.
        judged: rows of the runs that are judged, by the frame's index.
        tested: rows of the runs that are tested, by the frame's index; -1 where not run.
    """

    tuning: Array
    retraining: Array
    accuracy: Array
    judged: NDArray[np.int64]
    tested: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tuning)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Where it is known what choosing the configuration comes to; shape (M,)."""
        return np.isfinite(self.accuracy) & np.isfinite(self.retraining)

    @property
    def possible(self) -> NDArray[np.bool_]:
        """For which k = 1..M that is known of every configuration that can be taken; shape (M,)."""
        possible: NDArray[np.bool_] = (selection(len(self))[:, ~self.known] == 0).all(axis=1)
        return possible


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

    ``sd`` and the quantiles are those of the accuracy over all C(M, k) subsets. Where only the winner was retrained,
    the row k = M is all that can be had.
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
    return frame[found.possible].reset_index(drop=True)


def sampled_curve(found: Configurations, subsamples: int = 500, seed: int | np.random.Generator = 0) -> pd.DataFrame:
    """The published form: over ``subsamples`` random subsets of each size k. Columns and rows as `exact_curve`."""
    random = np.random.default_rng(seed)
    everyone = np.tile(np.arange(len(found)), (subsamples, 1))
    rows = []
    for k in np.flatnonzero(found.possible) + 1:
        drawn = random.permuted(everyone, axis=1)[:, :k]
        best = drawn.min(axis=1)
        seconds = found.tuning[drawn].sum(axis=1) + found.retraining[best]
        accuracy = found.accuracy[best]
        low, high = np.quantile(accuracy, [0.1, 0.9], method="inverted_cdf")
        rows.append((k, seconds.mean() / 3600, accuracy.mean(), accuracy.std(), low, high))
    return pd.DataFrame(rows, columns=CURVE)


def configurations(frame: pd.DataFrame, cost: str = "train") -> Iterator[tuple[dict[str, object], Configurations]]:
    """For each method in each cell, what it tried. ``frame``: as `RecordStore.frame` gives it, its index unique.

    A method that tunes is judged by val_nll, others by their objective. Runs that diverged count, ranked behind all
    others; failed ones are left out. Where a cost's seconds were not kept, as in published files, it is NaN.
    """
    usable = frame.assign(row=frame.index)[frame["status"] != "failed"]
    first, *others = COSTS[cost]
    usable["cost"] = usable[first] + (usable[others].sum(axis=1, min_count=1) if others else 0)
    usable = usable[
        [*CELL, "method", *SETTINGS, "key", "stage", "status", "val_nll", "objective", "test_acc", "cost", "row"]
    ]
    judged = usable[(usable["stage"] != "retrain") & usable["cost"].notna()].copy()
    tunes = judged["stage"] == "tune"
    rank = judged["val_nll"].where(tunes, judged["objective"]).replace(np.inf, np.nan)
    judged["rank"] = rank.where(judged["status"] == "completed")
    again = usable.loc[usable["stage"] == "retrain", [*CELL, "method", *SETTINGS, "cost", "test_acc", "row"]]
    pairs = judged.merge(again, on=[*CELL, "method", *SETTINGS], how="left", suffixes=("", "_again"))
    single = pairs["stage"] != "tune"  # what is judged is tested as it is
    pairs["cost_again"] = pairs["cost_again"].mask(single, 0)
    for column in ("test_acc", "row"):
        pairs[f"{column}_again"] = pairs[f"{column}_again"].mask(single, pairs[column])
    pairs = pairs.sort_values(["rank", "key"], na_position="last")
    for cell, group in pairs.groupby([*CELL, "method"], sort=True):
        yield (
            dict(zip([*CELL, "method"], cell, strict=True)),
            Configurations(
                tuning=group["cost"].to_numpy(np.float64),
                retraining=group["cost_again"].to_numpy(np.float64),
                accuracy=group["test_acc_again"].to_numpy(np.float64),
                judged=group["row"].to_numpy(np.int64),
                tested=group["row_again"].fillna(-1).to_numpy(np.int64),
            ),
        )


def curves(frame: pd.DataFrame, subsamples: int | None = None, seed: int = 0) -> pd.DataFrame:
    """All curves: curves.csv. Accuracy is 0 to 1.

    Args:
        frame: as `RecordStore.frame` gives it.
        subsamples: None: exact. A number: the mean over so many random subsets of each size, by ``seed``.
    """
    random = np.random.default_rng(seed)
    parts = []
    for cost in COSTS:
        for cell, found in configurations(frame, cost):
            curve = exact_curve(found) if subsamples is None else sampled_curve(found, subsamples, random)
            parts.append(curve.assign(cost=cost, **cell).rename(columns={"seed": "split_seed"}))
    return pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)


def _quantile(accuracy: Array, chance: Array, level: float) -> Array:
    """The accuracy below which ``level`` of all subsets lie, for each k; shape (M,)."""
    order = np.argsort(accuracy)
    below = np.cumsum(chance[:, order], axis=1)
    quantiles: Array = accuracy[order][np.clip((below < level - 1e-12).sum(axis=1), 0, len(accuracy) - 1)]
    return quantiles
