"""Paired significance tests between methods over the cells that both have."""

import math
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from bench.labels import PAPER_METHODS, PRIOR_NAMES
from bench.results.configurations import CELL, PROBLEM, iterate_configurations
from bench.results.frame import sort_rows

COLUMNS = ["method", "against", "prior", "measure", "unit", "cells", "median", "least", "most", "better", "worse"]
COLUMNS += ["p", "p_holm", "least_p", "cost", "source"]


def select_results(frame: pd.DataFrame) -> pd.DataFrame:
    """Select the accuracy (0 to 1) and seconds of each method in each cell where its best was tested."""
    full = {tuple(cell.values()): tried.total_seconds for cell, tried in iterate_configurations(frame, "full")}
    rows = [
        cell
        | {"test_acc": tried.accuracy[0], "total_seconds": tried.total_seconds}
        | {"total_seconds_full": full.get(tuple(cell.values()), math.nan)}
        for cell, tried in iterate_configurations(frame)
    ]
    required = ["test_acc", "total_seconds"]
    return pd.DataFrame(rows, columns=[*CELL, "method", *required, "total_seconds_full"]).dropna(subset=required)


def compute_paired_tests(selected: pd.DataFrame) -> pd.DataFrame:
    """Compute two-sided Wilcoxon signed-rank tests of two methods over their shared cells: paired_tests.csv.

    All pairs of the paper's methods are tested, and each other method against the paper's grid and DE ELBo only, as
    Holm's correction over all pairs of many methods leaves nothing (`bench.results.ranking` compares all with all).
    Without a grid and a DE ELBo, all pairs are tested. The unit "split" is each cell, "mean" the means over the split
    seeds of a problem, which share its test images. Times are compared by their logarithm: those of training between
    the paper's methods, as published, else the full cost where both recorded it. Holm's correction is over all rows of
    a source, measure and unit; least_p is the lowest p that so many cells allow.

    Source: Demsar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets".
    """
    rows = []
    log_train, log_full = (np.log(selected[f"total_seconds{name}"]) for name in ("", "_full"))
    results = selected.assign(train=log_train, full=log_full)
    for source, of in results.groupby("source"):
        for unit, measure in product(("split", "mean"), ("accuracy", "time")):
            table = of.pivot_table("test_acc" if measure == "accuracy" else "train", CELL, "method")
            full = of.pivot_table("full", CELL, "method").reindex_like(table) if measure == "time" else None
            shared = {"source": source, "unit": unit, "measure": measure}
            tests = [shared | row for row in _pairs(table, full, unit)]
            corrected = _holm([row["p"] for row in tests])
            rows += [row | {"p_holm": p} for row, p in zip(tests, corrected, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _pairs(table: pd.DataFrame, full: pd.DataFrame | None, unit: str) -> Iterator[dict[str, Any]]:
    """Yield a row per pair of methods and group of priors; ``table`` has log training seconds if ``full`` is given."""
    measure = "accuracy" if full is None else "time"
    methods = sort_rows(pd.DataFrame({"method": table.columns}))["method"].tolist()
    references = set(methods) & {"map-gs", "de-elbo"} or set(methods)
    priors = table.index.get_level_values("prior").to_numpy()
    problem = table.groupby(PROBLEM).ngroup().to_numpy()
    groups = ["all", *(prior for prior in PRIOR_NAMES if prior in set(priors))]
    for against, method in combinations(methods, 2):
        both_in_paper = {method, against} <= set(PAPER_METHODS)
        if not {method, against} & references and not both_in_paper:
            continue
        difference, cost = (table[method] - table[against]).to_numpy(np.float64), None
        if full is not None:
            full_difference = (full[method] - full[against]).to_numpy(np.float64)
            recorded = np.isfinite(full_difference[np.isfinite(difference)]).all()
            difference, cost = (full_difference, "full") if recorded and not both_in_paper else (difference, "train")
        for prior in groups if len(groups) > 2 else groups[:1]:
            shared = np.isfinite(difference) & ((priors == prior) | (prior == "all"))
            values = difference[shared]
            if unit == "mean":
                counts = np.bincount(problem[shared])
                values = np.bincount(problem[shared], weights=values)[counts > 0] / counts[counts > 0]
            if len(values):
                yield {"method": method, "against": against, "prior": prior, "cost": cost} | _test(values, measure)


def _test(difference: NDArray[np.float64], measure: str) -> dict[str, Any]:
    cells, sign = len(difference), 1 if measure == "accuracy" else -1
    exact = np.round(difference, 12)  # accuracies that differ by rounding only are equal
    differing = exact[exact != 0]  # Wilcoxon's own treatment of ties
    p = math.nan if cells < 2 else 1.0 if len(differing) < 2 else float(wilcoxon(differing).pvalue)
    span = np.array([np.median(difference), difference.min(), difference.max()])
    median, least, most = 100 * span if measure == "accuracy" else np.exp(span)
    return {
        "cells": cells,
        "median": median,
        "least": least,
        "most": most,
        "better": int((sign * exact > 0).sum()),
        "worse": int((sign * exact < 0).sum()),
        "p": p,
        "least_p": min(2.0 ** (1 - len(differing)), 1.0),
    }


def _holm(values: list[float]) -> list[float]:
    """Apply Holm's step-down correction; missing values stay missing and are not counted."""
    order = [i for i in np.argsort(values) if not math.isnan(values[i])]
    corrected, highest = [math.nan] * len(values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * values[i]))
        corrected[i] = highest
    return corrected
