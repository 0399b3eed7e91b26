"""Configurations that each method tried in each cell, with their costs and test accuracies, best choice first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.config.benchmark import Benchmark, make_methods
from bench.results.frame import to_frame
from bench.scheduling.queue import split_finished
from bench.trials.record import TrialRecord

Array = NDArray[np.float64]
COSTS: dict[str, tuple[str, ...]] = {
    "train": ("train_seconds",),
    "full": tuple(f"{phase}_seconds" for phase in ("train", "adapt", "evaluate", "select", "checkpoint", "choose")),
}
"""Columns that count as compute: training steps only, as published; or everything a method needs, which adds learning
regularization strengths, validation, selection, checkpoints between segments, and choosing what to try next."""
PROBLEM = ["source", "dataset", "backbone", "prior", "n"]
"""Methods compete on a problem; each of its split seeds is a cell."""
CELL = [*PROBLEM, "seed"]
HYPERPARAMETERS = ["learning_rate", "weight_decay", "head_weight_decay", "prior_scale", "kappa"]
SETTING_DEFAULTS: dict[str, Any] = {
    "kappa_share": 1.0,
    "groups": "backbone+head",
    "optimizer": "sgd",
    "options": "{}",
}
"""Settings that published files lack, with the values that hold there."""
CONFIGURATION = [*CELL, "method", *HYPERPARAMETERS, *SETTING_DEFAULTS, "number"]
"""Columns in which all runs of a configuration agree, its retraining included. Where a configuration has a number, the
number identifies it: retraining may use other hyperparameters, learned by the tuning run."""


def _empty() -> Array:
    return np.empty(0)


@dataclass(frozen=True)
class Configurations:
    """The M configurations that a method tried in a cell, best choice first; arrays have shape (M,).

    ``tuning_seconds`` are of all segments. ``retraining_seconds`` and ``accuracy`` (0 to 1) are NaN if the run to be
    tested was not run; a method that needs no retraining has 0 s. ``selection_rows`` and ``test_rows`` are the indexes
    in the frame of the last tuning segment and of the tested run (-1 if not run). ``number`` is the position in a
    sequential search (NaN or empty in others), ``fraction`` the part of the full run that was trained (empty: all),
    ``trials`` the number of segments (empty: one each).
    """

    tuning_seconds: Array
    retraining_seconds: Array
    accuracy: Array
    selection_rows: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    number: Array = field(default_factory=_empty)
    fraction: Array = field(default_factory=_empty)
    trials: Array = field(default_factory=_empty)

    def __len__(self) -> int:
        return len(self.tuning_seconds)

    @property
    def is_sequential(self) -> bool:
        """True if the method chose its configurations one after the other; False if they are a set, such as a grid."""
        return bool(np.isfinite(self.number).any())

    @property
    def has_test_accuracy(self) -> NDArray[np.bool_]:
        """Mask of configurations whose test accuracy and retraining time are known; shape (M,)."""
        return np.isfinite(self.accuracy) & np.isfinite(self.retraining_seconds)

    @property
    def stopped_early(self) -> NDArray[np.bool_]:
        """Mask of configurations that were stopped before the end of their run; shape (M,)."""
        return self.fraction < 1 if len(self.fraction) else np.zeros(len(self), np.bool_)

    @property
    def num_trials(self) -> int:
        """Number of tuning trials; a configuration that ran in segments has several."""
        return int(self.trials.sum()) if len(self.trials) else len(self)

    @property
    def total_seconds(self) -> float:
        """Seconds of all tuning and of retraining the best choice; NaN if that was not retrained."""
        return float(self.tuning_seconds.sum() + self.retraining_seconds[0])


def iterate_configurations(frame: pd.DataFrame, cost: str = "train") -> Iterator[tuple[dict[str, Any], Configurations]]:
    """Iterate over methods and cells: the values of `CELL` and method, and the configurations tried there.

    Tuning runs are ranked by val_nll, runs of methods that need no tuning by their objective. Stopped configurations
    rank behind all that went further, diverged ones behind all others that went as far; failed runs are left out. Ties
    go to the lower number, or to the lower key where there are no numbers, as the methods themselves choose.
    """
    usable = _usable(frame, COSTS[cost])
    tuned = _last_segments(usable[(usable["stage"] != "retrain") & usable["cost"].notna()])
    rank = tuned["val_nll"].where(tuned["stage"] == "tune", tuned["objective"]).replace(np.inf, np.nan)
    tuned["rank"] = rank.where(tuned["status"] == "completed")
    retrained = usable.loc[usable["stage"] == "retrain", [*CONFIGURATION, "cost", "test_acc", "row"]]
    pairs = tuned.merge(retrained, on=CONFIGURATION, how="left", suffixes=("", "_retrained"))
    single = (pairs["stage"] != "tune") & pairs["number"].isna()  # these runs are tested themselves
    pairs["cost_retrained"] = pairs["cost_retrained"].mask(single, 0)
    for column in ("test_acc", "row"):
        pairs[f"{column}_retrained"] = pairs[f"{column}_retrained"].mask(single, pairs[column])
    pairs["remaining"] = -pairs["until"]
    pairs = pairs.sort_values(["remaining", "rank", "number", "key"], na_position="last")
    owner = pairs.groupby([*CELL, "method"], sort=True).ngroup()
    pairs = pairs.iloc[np.argsort(owner.to_numpy(), kind="stable")]
    ends = np.cumsum(np.bincount(owner))
    columns = {
        "tuning_seconds": pairs["cost"].to_numpy(np.float64),
        "retraining_seconds": pairs["cost_retrained"].to_numpy(np.float64),
        "accuracy": pairs["test_acc_retrained"].to_numpy(np.float64),
        "selection_rows": pairs["row"].to_numpy(),
        "test_rows": pairs["row_retrained"].fillna(-1).to_numpy(np.int64),
        "number": pairs["place"].to_numpy(np.float64),
        "fraction": pairs["until"].to_numpy(np.float64),
        "trials": pairs["trials"].to_numpy(np.float64),
    }
    cells = pairs[[*CELL, "method"]].iloc[ends - 1].to_dict("records")
    for cell, end, size in zip(cells, ends, np.diff(ends, prepend=0), strict=True):
        part = {name: values[end - size : end] for name, values in columns.items()}
        yield {str(name): value for name, value in cell.items()}, Configurations(**part)


def _usable(frame: pd.DataFrame, phases: tuple[str, ...]) -> pd.DataFrame:
    """Runs that did not fail, with a column ``cost`` and default values for settings that they lack."""
    usable = frame.assign(row=frame.index)[frame["status"] != "failed"].copy()
    for name, value in (SETTING_DEFAULTS | {"until": 1.0, "number": np.nan} | dict.fromkeys(phases, np.nan)).items():
        if name not in usable:
            usable[name] = value
        elif not isinstance(value, float):
            usable[name] = usable[name].where(usable[name].notna() & ~usable[name].isin(["", "None"]), value)
        elif np.isfinite(value):
            usable[name] = usable[name].astype("float64").fillna(value)
    fixed = usable[["weight_decay", "head_weight_decay", "prior_scale"]].notna().any(axis=1)
    usable["place"] = usable["number"].where(fixed)  # methods that learn strengths try all learning rates in any order
    usable[HYPERPARAMETERS] = usable[HYPERPARAMETERS].mask(usable["number"].notna())
    first, *others = phases
    usable["cost"] = usable[first] + (usable[others].sum(axis=1, min_count=1) if others else 0)
    measured = ["key", "stage", "status", "val_nll", "objective", "test_acc", "until", "place", "cost", "row"]
    return usable[[*CONFIGURATION, *measured]]


def _last_segments(tuned: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration: its last segment, with the ``cost`` and number of all its segments."""
    if not (tuned["until"] < 1).any():
        return tuned.assign(trials=1)
    tuned = tuned.sort_values("until", kind="stable")
    owner = tuned.groupby(CONFIGURATION, dropna=False, sort=False).ngroup()
    last = tuned.assign(owner=owner).drop_duplicates("owner", keep="last").set_index("owner")
    return last.assign(cost=tuned.groupby(owner)["cost"].sum(), trials=tuned.groupby(owner).size())


def selected_trials(benchmark: Benchmark, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Return the full cost in seconds, by trial key, of the trial tested for each method and finished cell."""
    finished = split_finished(make_methods(benchmark), list(records)).records
    if not finished:
        return {}
    frame = to_frame(finished)
    return {
        str(frame.loc[tried.test_rows[0], "key"]): tried.total_seconds
        for _, tried in iterate_configurations(frame, "full")
        if tried.test_rows[0] >= 0
    }
