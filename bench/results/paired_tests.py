"""Is the difference between two methods more than chance? A paired test over cells; never a claim from one cell."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from bench.labels import PAPER_METHODS, PRIOR_NAMES
from bench.results.configurations import CELL, PROBLEM, Configurations, configurations
from bench.results.frame import sort_rows

__all__ = ["chosen", "paired_tests"]


COLUMNS = ["method", "against", "prior", "measure", "unit", "cells", "median", "least", "most", "better", "worse"]
COLUMNS += ["p", "p_holm", "least_p", "cost", "source"]


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """What each method came to in each cell: source to seed, test_acc (0 to 1), total_seconds of training, and
    total_seconds_full of all that it needs, missing where that was not kept."""
    full = {tuple(cell.values()): _total(found) for cell, found in configurations(frame, "full")}
    rows = [
        cell
        | {"test_acc": found.accuracy[0], "total_seconds": _total(found)}
        | {"total_seconds_full": full.get(tuple(cell.values()), math.nan)}
        for cell, found in configurations(frame)
    ]
    known = ["test_acc", "total_seconds"]
    return pd.DataFrame(rows, columns=[*CELL, "method", *known, "total_seconds_full"]).dropna(subset=known)


def paired_tests(frame: pd.DataFrame) -> pd.DataFrame:
    """Wilcoxon's signed-rank test, two-sided, of two methods over the cells that both have, within a source.

    Every two of the paper's methods are compared, and every other with the paper's grid and DE ELBo: Holm's correction
    over all pairs of many methods would leave nothing. `bench.results.ranking` compares all with all. Where the source
    has neither grid nor DE ELBo, all pairs are.

    One row for all priors together and, where there are several, one a prior; on two measures, by two units. Columns:
    method, against; prior, "all" or one; measure, "accuracy" (difference in percentage points) or "time" (ratio of
    total seconds, tested on its logarithm); unit, "split" (each (dataset, prior, N, seed) by itself) or
    "mean" (the mean over the seeds of each (dataset, prior, N), as splits of one dataset share its test images);
    cells; median, least and most difference or ratio; better and worse, in how many cells ``method`` is; p; p_holm,
    Holm's correction over all rows of a source, measure and unit; least_p = 2 / 2^(cells that differ), below which
    p cannot fall; cost, which seconds are meant: "train" between the paper's methods, as published; "full" where one is
    another and both have it in all their cells, as it may need much beside training steps. With a single cell there is
    no test, and p is missing.

    Source: Demsar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets".
    """
    rows = []
    results = chosen(frame)
    results["train"], results["full"] = (np.log(results[f"total_seconds{name}"]) for name in ("", "_full"))
    for source, of in results.groupby("source"):
        for unit, measure in product(("split", "mean"), ("accuracy", "time")):
            table = of.pivot_table("test_acc" if measure == "accuracy" else "train", CELL, "method")
            full = of.pivot_table("full", CELL, "method").reindex_like(table) if measure == "time" else None
            known = {"source": source, "unit": unit, "measure": measure}
            tests = [known | row for row in _pairs(table, full, unit)]
            for row, corrected in zip(tests, _holm([row["p"] for row in tests]), strict=True):
                rows.append(row | {"p_holm": corrected})
    return pd.DataFrame(rows, columns=COLUMNS)


def _total(found: Configurations) -> float:
    return float(found.tuning.sum() + found.retraining[0])


def _pairs(table: pd.DataFrame, full: pd.DataFrame | None, unit: str) -> Iterator[dict[str, Any]]:
    """A row for every two methods and every group of priors.

    Args:
        table: a row a cell, a column a method: accuracies, or where ``full`` is given logarithms of training seconds.
        full: those of the full cost, rows and columns the same.
        unit: as `paired_tests` says.
    """
    measure = "accuracy" if full is None else "time"
    methods = sort_rows(pd.DataFrame({"method": table.columns}))["method"].tolist()
    references = set(methods) & {"map-gs", "de-elbo"} or set(methods)
    priors = table.index.get_level_values("prior").to_numpy()
    problem = table.groupby(PROBLEM).ngroup().to_numpy()
    groups = ["all", *(prior for prior in PRIOR_NAMES if prior in set(priors))]
    for against, method in combinations(methods, 2):
        if not {method, against} & references and not {method, against} <= set(PAPER_METHODS):
            continue
        both, cost = (table[method] - table[against]).to_numpy(np.float64), None
        if full is not None:
            everything = (full[method] - full[against]).to_numpy(np.float64)
            kept = np.isfinite(everything[np.isfinite(both)]).all()
            other = not {method, against} <= set(PAPER_METHODS)
            both, cost = (everything, "full") if other and kept else (both, "train")
        for prior in groups if len(groups) > 2 else groups[:1]:
            shared = np.isfinite(both) & ((priors == prior) | (prior == "all"))
            values = both[shared]
            if unit == "mean":  # over the splits that both have
                counts = np.bincount(problem[shared])
                values = np.bincount(problem[shared], weights=values)[counts > 0] / counts[counts > 0]
            if len(values):
                yield {"method": method, "against": against, "prior": prior, "cost": cost} | _test(values, measure)


def _test(difference: NDArray[np.float64], measure: str) -> dict[str, Any]:
    cells, good = len(difference), 1 if measure == "accuracy" else -1
    exact = np.round(difference, 12)  # equal accuracies that differ in their last bit are equal
    differing = exact[exact != 0]  # Wilcoxon's own way with ties of the methods
    p = math.nan if cells < 2 else 1.0 if len(differing) < 2 else float(wilcoxon(differing).pvalue)
    span = np.array([np.median(difference), difference.min(), difference.max()])
    median, least, most = 100 * span if measure == "accuracy" else np.exp(span)
    return {
        "cells": cells,
        "median": median,
        "least": least,
        "most": most,
        "better": int((good * exact > 0).sum()),
        "worse": int((good * exact < 0).sum()),
        "p": p,
        "least_p": min(2.0 ** (1 - len(differing)), 1.0),
    }


def _holm(values: list[float]) -> list[float]:
    """Holm's step-down correction; missing values stay missing and do not count."""
    order = [i for i in np.argsort(values) if not math.isnan(values[i])]
    corrected, highest = [math.nan] * len(values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * values[i]))
        corrected[i] = highest
    return corrected
