"""Find what tables and curves lack and why, in one line per kind, so that no gap in a report goes unexplained."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.results.configurations import Configurations, iterate_configurations
from bench.results.curves import prefix_curve
from bench.results.frame import iterate_groups, sort_rows

Cells = list[tuple[dict[str, Any], Configurations]]


def find_missing(frame: pd.DataFrame) -> list[str]:
    """Return a line for each kind of missing result, method and prior; ``frame`` as `to_frame` returns it."""
    cells = list(iterate_configurations(frame))
    return [
        *_missing_retraining(frame, cells),
        *_missing_criterion(frame, cells),
        *_uneven_grids(cells),
        *_unmatched_retraining(frame, cells),
        *_restarted_segments(frame),
        *_failed_and_diverged(frame),
    ]


def _missing_retraining(frame: pd.DataFrame, cells: Cells) -> list[str]:
    """Cells in which the test accuracy of some possible choice is unknown."""
    places: dict[tuple[str, str], list[str]] = {}
    for cell, tried in cells:
        first = frame.loc[tried.selection_rows[0]]
        single = first["stage"] != "tune" and pd.isna(first.get("number"))
        if kind := _missing_runs(tried) if single else _missing_retrained_runs(tried):
            places.setdefault((_name(cell), kind), []).append(f"N = {cell['n']:,} seed {cell['seed']}")
    return [f"{name}: {kind} ({'; '.join(where)})." for (name, kind), where in places.items()]


def _missing_runs(tried: Configurations) -> str:
    """Missing test accuracies of a method that does not retrain; configurations stopped early need none."""
    ended = ~tried.stopped_early
    lost = int((ended & ~tried.has_test_accuracy).sum())
    if not ended.any():
        return "no run was trained to its end"
    chosen = "" if tried.has_test_accuracy[0] else ", the chosen one among them"
    return f"{lost} of {int(ended.sum())} runs have no test accuracy{chosen}" if lost else ""


def _missing_retrained_runs(tried: Configurations) -> str:
    size, known = len(tried), int(tried.has_test_accuracy.sum())
    if tried.test_rows[0] < 0:
        return "the best configuration has no retrained run: no curve, total or accuracy, only mean times"
    if not tried.has_test_accuracy[0]:
        return "the best configuration's retrained run has no test accuracy: no curve or accuracy"
    if tried.is_sequential:
        lost = size - int(prefix_curve(tried)["expected_test_acc"].notna().sum())
        return f"{lost} of {size} times the best so far was not retrained: gaps in the curve" if lost else ""
    if known == size or tried.stopped_early.any():
        return ""
    if known == 1:
        return "only the best configuration was retrained: only the end of the curve"
    retrained = int((tried.test_rows >= 0).sum())
    more = f", and {retrained - known} of these have no test accuracy" if retrained > known else ""
    return f"{retrained} of {size} configurations were retrained{more}: no curve below some size"


def _missing_criterion(frame: pd.DataFrame, cells: Cells) -> list[str]:
    """Cells in which several runs completed and none has the metric that would rank it."""
    places: dict[str, list[str]] = {}
    for cell, tried in cells:
        furthest = tried.fraction == tried.fraction.max() if len(tried.fraction) else np.ones(len(tried), np.bool_)
        runs = frame.loc[tried.selection_rows[furthest]]
        runs = runs[runs["status"] == "completed"]
        criterion = "val_nll" if (runs["stage"] == "tune").any() else "objective"
        if len(runs) > 1 and runs[criterion].replace(np.inf, np.nan).isna().all():
            place = f"N = {cell['n']:,} seed {cell['seed']}"
            places.setdefault(f"{_name(cell)}: no run has {criterion}", []).append(place)
    return [f"{kind}: chosen by name, not by merit ({'; '.join(where)})." for kind, where in places.items()]


def _restarted_segments(frame: pd.DataFrame) -> list[str]:
    """Later segments that were trained from the start, as the checkpoint of the segment before was lost."""
    if "state_handed_over_at_step" not in frame:
        return []
    later = frame[(frame["status"] != "failed") & frame["state_handed_over_at_step"].notna()]
    lost = later[later["state_handed_over_at_step"] == 0]
    if lost.empty:
        return []
    names = ", ".join(map(method_name, sort_rows(lost[["method"]].drop_duplicates())["method"]))
    return [
        f"{len(lost)} of {len(later)} later segments were trained from the start, as the checkpoint of the segment "
        f"before was lost: the seconds of these methods are too high ({names})."
    ]


def _uneven_grids(cells: Cells) -> list[str]:
    """Methods whose numbers of configurations differ between splits."""
    sizes: dict[str, set[int]] = {}
    for cell, tried in cells:
        sizes.setdefault(f"{_name(cell)}, N = {cell['n']:,}", set()).add(len(tried))
    return [
        f"{name}: splits have {' and '.join(map(str, sorted(several)))} configurations; their times differ by that too."
        for name, several in sizes.items()
        if len(several) > 1
    ]


def _unmatched_retraining(frame: pd.DataFrame, cells: Cells) -> list[str]:
    """Retrained runs without a tuning run of their configuration."""
    used = [row for _, tried in cells for row in tried.test_rows]
    retrained = (frame["stage"] == "retrain") & (frame["status"] != "failed")
    count = int((retrained & ~frame.index.isin(used)).sum())
    return [f"{count} retrained runs have no tuning run: they are not used."] if count else []


def _failed_and_diverged(frame: pd.DataFrame) -> list[str]:
    """Numbers of failed and diverged runs."""
    lines = []
    for stage, status, text in (
        ("", "failed", "failed: left out, as if the method did not have them"),
        ("retraining ", "failed", "failed: left out"),
        ("", "diverged", "diverged: the time counts, the rank is last"),
        ("retraining ", "diverged", "diverged: counted with the result at the end"),
    ):
        runs = frame[(frame["status"] == status) & ((frame["stage"] == "retrain") == bool(stage))]
        for cell, group in iterate_groups(runs, ["dataset", "method", "prior"], sort=True):
            lines.append(f"{_name(cell)}: {len(group)} {stage}run{'s' * (len(group) > 1)} {text}.")
    return lines


def _name(cell: Mapping[str, Any]) -> str:
    method, prior = method_name(cell["method"]), PRIOR_NAMES.get(cell["prior"], cell["prior"])
    return f"{dataset_name(cell['dataset'])}, {method}, {prior}"
