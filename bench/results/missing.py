"""What the tables and curves of some results lack, and why, in lines for people. A hole is never silent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.results.configurations import Configurations, configurations
from bench.results.curves import prefix_curve
from bench.results.frame import sort_rows

__all__ = ["find_missing"]


Cells = list[tuple[dict[str, object], Configurations]]


def find_missing(frame: pd.DataFrame) -> list[str]:
    """A line for each kind of hole, method and prior. ``frame``: see `bench.results.frame.to_frame`."""
    cells = list(configurations(frame))
    told = [*_untested(frame, cells), *_unjudged(frame, cells), *_uneven(cells), *_unused(frame, cells)]
    return [*told, *_lost_parts(frame), *_status(frame)]


def _untested(frame: pd.DataFrame, cells: Cells) -> list[str]:
    """Where it is not known what some or all choices come to."""
    where: dict[tuple[str, str], list[str]] = {}
    for cell, found in cells:
        if kind := _why(frame, found):
            where.setdefault((_name(cell), kind), []).append(f"N = {cell['n']:,} seed {cell['seed']}")
    return [f"{name}: {kind} ({'; '.join(places)})." for (name, kind), places in where.items()]


def _why(frame: pd.DataFrame, found: Configurations) -> str:
    """In words, what is not known of one method in one cell; nothing where all is that can be."""
    known, size = int(found.known.sum()), len(found)
    if frame.loc[found.judged[0], "stage"] != "tune":
        ended = ~found.given_up  # what was given up has no test accuracy, and needs none
        lost, of = int((ended & ~found.known).sum()), int(ended.sum())
        chosen = "" if found.known[0] else ", the chosen one among them"
        if not of:
            return "no run was trained to its end"
        return f"{lost} of {of} runs have no test accuracy{chosen}" if lost else ""
    if found.tested[0] < 0:
        return "the best configuration has no retrained run: no curve, total or accuracy, only mean times"
    if not found.known[0]:
        return "the best configuration's retrained run has no test accuracy: no curve or accuracy"
    if found.ordered:
        lost = size - int(prefix_curve(found)["expected_test_acc"].notna().sum())
        return f"{lost} of {size} times the best so far was not trained again: holes in the curve" if lost else ""
    if known == size or found.given_up.any():
        return ""
    if known == 1:
        return "only the best configuration was trained again: a curve's end, and no curve"
    missing = int((found.tested < 0).sum())
    untested = size - known - missing
    more = f", and {untested} retrained runs have no test accuracy" if untested else ""
    return f"{size - missing} of {size} configurations were trained again{more}: no curve below some size"


def _unjudged(frame: pd.DataFrame, cells: Cells) -> list[str]:
    """Where several runs completed, and none has what it would be judged by."""
    where: dict[str, list[str]] = {}
    for cell, found in cells:
        furthest = found.reached == found.reached.max() if len(found.reached) else np.ones(len(found), np.bool_)
        runs = frame.loc[found.judged[furthest]]
        runs = runs[runs["status"] == "completed"]
        value = runs["val_nll"].where(runs["stage"] == "tune", runs["objective"])
        if len(runs) > 1 and value.replace(np.inf, np.nan).isna().all():
            by = "val_nll" if runs["stage"].iloc[0] == "tune" else "objective"
            where.setdefault(f"{_name(cell)}: no run has {by}", []).append(f"N = {cell['n']:,} seed {cell['seed']}")
    return [f"{what}: chosen by name, not by merit ({'; '.join(places)})." for what, places in where.items()]


def _lost_parts(frame: pd.DataFrame) -> list[str]:
    """Later parts of runs that had to begin anew."""
    if "state_handed_over_at_step" not in frame:
        return []
    later = frame[(frame["status"] != "failed") & frame["state_handed_over_at_step"].notna()]
    lost = later[later["state_handed_over_at_step"] == 0]
    if lost.empty:
        return []
    names = ", ".join(map(method_name, sort_rows(lost[["method"]].drop_duplicates())["method"]))
    return [
        f"{len(lost)} of {len(later)} later parts of runs were trained from the start, as the part before was lost: "
        f"those methods' seconds are too many ({names})."
    ]


def _uneven(cells: Cells) -> list[str]:
    """Splits whose grids differ in size."""
    sizes: dict[str, set[int]] = {}
    for cell, found in cells:
        sizes.setdefault(f"{_name(cell)}, N = {cell['n']:,}", set()).add(len(found))
    return [
        f"{name}: splits have {' and '.join(map(str, sorted(several)))} configurations; their times differ by that too."
        for name, several in sizes.items()
        if len(several) > 1
    ]


def _unused(frame: pd.DataFrame, cells: Cells) -> list[str]:
    """Runs that nothing refers to."""
    used = {row for _, found in cells for row in found.tested}
    again = (frame["stage"] == "retrain") & (frame["status"] != "failed")
    count = int((again & ~frame.index.isin(list(used))).sum())
    return [f"{count} runs were trained again and have no tuning run: they are not used."] if count else []


def _status(frame: pd.DataFrame) -> list[str]:
    """Runs that failed or diverged."""
    lines = []
    for again, status, words in (
        (False, "failed", "failed: left out, as if the method did not have them"),
        (True, "failed", "of training again failed: left out"),
        (False, "diverged", "diverged: the time counts, the rank is last"),
        (True, "diverged", "of training again diverged: counted as it ended"),
    ):
        keys = ["dataset", "method", "prior"]
        chosen = frame[(frame["status"] == status) & ((frame["stage"] == "retrain") == again)]
        for values, runs in chosen.groupby(keys):
            lines.append(
                f"{_name(dict(zip(keys, values, strict=True)))}: {len(runs)} run{'s' * (len(runs) > 1)} {words}."
            )
    return lines


def _name(cell: Mapping[str, Any]) -> str:
    method, prior = method_name(cell["method"]), PRIOR_NAMES.get(cell["prior"], cell["prior"])
    return f"{dataset_name(cell['dataset'])}, {method}, {prior}"
