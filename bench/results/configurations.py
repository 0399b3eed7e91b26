"""What each method tried in each cell: its configurations, what they cost, what they came to, best choice first."""

from __future__ import annotations

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

__all__ = ["CELL", "COSTS", "PROBLEM", "Configurations", "configurations", "selected_trials"]


Array = NDArray[np.float64]
COSTS: dict[str, tuple[str, ...]] = {
    "train": ("train_seconds",),
    "full": tuple(f"{phase}_seconds" for phase in ("train", "adapt", "evaluate", "select", "checkpoint", "choose")),
}
"""What counts as compute: training steps only, as published; or what the method needs besides: its learning of
strengths beside the steps, its looks at validation images, the choice of a result, handing parts of runs over, and
choosing what to try next."""
PROBLEM = ["source", "dataset", "backbone", "prior", "n"]
"""What methods compete on; a split seed more is a cell."""
CELL = [*PROBLEM, "seed"]
STRENGTHS = ["learning_rate", "weight_decay", "head_weight_decay", "prior_scale", "kappa"]
LATER: dict[str, Any] = {"kappa_share": 1.0, "groups": "backbone+head", "optimizer": "sgd", "options": "{}"}
"""Settings that published files do not have, and what stands there then."""
TRIED = [*CELL, "method", *STRENGTHS, *LATER, "number"]
"""In what the runs of one configuration agree, those of training it again too. Where it has a number, that says which
one it is: the strengths may be others when it is trained again, as they were learned meanwhile."""


def _nothing() -> Array:
    return np.empty(0)


@dataclass(frozen=True)
class Configurations:
    """What one method tried in one cell, best choice first; every array has shape (M,).

    Attributes:
        tuning: seconds of the runs that are judged; of one that was trained in stretches, all of them together.
        retraining: seconds of training the configuration again on all N images; NaN where that was not run, 0 where
            the method needs none.
        accuracy: test accuracy, 0 to 1; NaN where the run that would be tested was not run.
        judged: rows of the runs that are judged, each configuration's last, by the frame's index.
        tested: rows of the runs that are tested, by the frame's index; -1 where not run.
        number: places in the order of a method that decides one after the other; NaN, or none, of a method without, and
            of one whose numbers only tell its configurations apart: one that learns its strengths tries all there are.
        reached: the share of its run at which the configuration was judged last; below 1 it was given up there. None:
            all went to the end.
        trials: how many runs were judged, every stretch being one. None: one each.
    """

    tuning: Array
    retraining: Array
    accuracy: Array
    judged: NDArray[np.int64]
    tested: NDArray[np.int64]
    number: Array = field(default_factory=_nothing)
    reached: Array = field(default_factory=_nothing)
    trials: Array = field(default_factory=_nothing)

    def __len__(self) -> int:
        return len(self.tuning)

    @property
    def ordered(self) -> bool:
        """Whether the method decides one after the other, so that a part of it is its beginning and not any subset."""
        return bool(np.isfinite(self.number).any())

    @property
    def known(self) -> NDArray[np.bool_]:
        """Where it is known what choosing the configuration comes to; shape (M,)."""
        return np.isfinite(self.accuracy) & np.isfinite(self.retraining)

    @property
    def given_up(self) -> NDArray[np.bool_]:
        """Which configurations were stopped before the end of their run; shape (M,)."""
        return self.reached < 1 if len(self.reached) else np.zeros(len(self), np.bool_)

    @property
    def num_trials(self) -> int:
        """How many runs were judged; a configuration that was trained in stretches has several."""
        return int(self.trials.sum()) if len(self.trials) else len(self)


def configurations(frame: pd.DataFrame, cost: str = "train") -> Iterator[tuple[dict[str, object], Configurations]]:
    """For each method in each cell, what it tried. ``frame``: as `RecordStore.frame` gives it, its index unique.

    Runs that agree in all settings are stretches of one configuration: their seconds add up, the last one judges it. A
    method that tunes is judged by val_nll, others by their objective. A configuration that was given up ranks behind
    all that went further. Runs that diverged count, ranked behind all others that went as far; failed ones are left
    out. Where a cost's seconds were not kept, as in published files, it is NaN. Of configurations that are equally good
    the one of the least number is chosen, as the methods themselves do; where there are no numbers, of the least key.
    """
    usable = _usable(frame, COSTS[cost])
    judged = _last_stretches(usable[(usable["stage"] != "retrain") & usable["cost"].notna()])
    rank = judged["val_nll"].where(judged["stage"] == "tune", judged["objective"]).replace(np.inf, np.nan)
    judged["rank"] = rank.where(judged["status"] == "completed")
    again = usable.loc[usable["stage"] == "retrain", [*TRIED, "cost", "test_acc", "row"]]
    pairs = judged.merge(again, on=TRIED, how="left", suffixes=("", "_again"))
    single = pairs["stage"] != "tune"  # what is judged is tested as it is
    pairs["cost_again"] = pairs["cost_again"].mask(single, 0)
    for column in ("test_acc", "row"):
        pairs[f"{column}_again"] = pairs[f"{column}_again"].mask(single, pairs[column])
    pairs["given_up"] = -pairs["until"]
    pairs = pairs.sort_values(["given_up", "rank", "number", "key"], na_position="last")
    owner = pairs.groupby([*CELL, "method"], sort=True).ngroup()
    pairs = pairs.iloc[np.argsort(owner.to_numpy(), kind="stable")]
    ends = np.cumsum(np.bincount(owner))
    kinds = dict.fromkeys(("cost", "cost_again", "test_acc_again", "place", "until", "trials"), np.float64)
    columns = {name: pairs[name].to_numpy(kind) for name, kind in kinds.items()}
    columns |= {"row": pairs["row"].to_numpy(), "row_again": pairs["row_again"].fillna(-1).to_numpy(np.int64)}
    for cell, end, size in zip(
        pairs[[*CELL, "method"]].iloc[ends - 1].to_dict("records"), ends, np.diff(ends, prepend=0), strict=True
    ):
        of = {name: values[end - size : end] for name, values in columns.items()}
        yield (
            {str(name): value for name, value in cell.items()},
            Configurations(
                tuning=of["cost"],
                retraining=of["cost_again"],
                accuracy=of["test_acc_again"],
                judged=of["row"],
                tested=of["row_again"],
                number=of["place"],
                reached=of["until"],
                trials=of["trials"],
            ),
        )


def _usable(frame: pd.DataFrame, phases: tuple[str, ...]) -> pd.DataFrame:
    """The runs that did not fail, with a column ``cost`` and their settings, those that came later by default."""
    usable = frame.assign(row=frame.index)[frame["status"] != "failed"].copy()
    for name, value in (LATER | {"until": 1.0, "number": np.nan} | dict.fromkeys(phases, np.nan)).items():
        if name not in usable:
            usable[name] = value
        elif not isinstance(value, float):
            usable[name] = usable[name].where(usable[name].notna() & ~usable[name].isin(["", "None"]), value)
        elif np.isfinite(value):
            usable[name] = usable[name].astype("float64").fillna(value)
    decided = usable[["weight_decay", "head_weight_decay", "prior_scale"]].notna().any(axis=1)
    usable["place"] = usable["number"].where(decided)  # without, all rates are tried, whatever they come to
    usable[STRENGTHS] = usable[STRENGTHS].mask(usable["number"].notna())
    first, *others = phases
    usable["cost"] = usable[first] + (usable[others].sum(axis=1, min_count=1) if others else 0)
    told = ["key", "stage", "status", "val_nll", "objective", "test_acc", "until", "place", "cost", "row"]
    return usable[[*TRIED, *told]]


def _last_stretches(judged: pd.DataFrame) -> pd.DataFrame:
    """A row a configuration: the run that went furthest, with ``cost`` of all its stretches and how many they are."""
    if not (judged["until"] < 1).any():
        return judged.assign(trials=1)
    judged = judged.sort_values("until", kind="stable")
    tries = judged.groupby(TRIED, dropna=False, sort=False).ngroup()
    last = judged.assign(tries=tries).drop_duplicates("tries", keep="last").set_index("tries")
    return last.assign(cost=judged.groupby(tries)["cost"].sum(), trials=judged.groupby(tries).size())


def selected_trials(benchmark: Benchmark, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Keys of the trials that are tested for their methods, one a method and cell, as the report counts them.

    Returns:
        Seconds by key: all that the method needed in that cell, its judged runs and the training again of the best. A
        cell that a method is not done with has none, and neither has one whose choice was not trained again.
    """
    kept, _, _ = split_finished(make_methods(benchmark), list(records))
    if not kept:
        return {}
    frame = to_frame(kept)
    found = {}
    for _, tried in configurations(frame, "full"):
        if tried.tested[0] >= 0:
            found[str(frame.loc[tried.tested[0], "key"])] = float(tried.tuning.sum() + tried.retraining[0])
    return found
