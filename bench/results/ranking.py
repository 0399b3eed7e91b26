"""Mean ranks of the methods' final accuracies over many cells, with bootstrap intervals and Friedman's test."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import friedmanchisquare, rankdata

from bench.labels import PRIOR_NAMES
from bench.results.configurations import CELL, PROBLEM
from bench.results.frame import sort_rows

Array = NDArray[np.float64]
RANKING = ["method", "prior", "over", "mean_rank", "rank_low", "rank_high", "p_first", "friedman_p"]
RANKING += ["methods", "cells", "problems", "left_out", "source"]
PAIRS = ["method", "against", "prior", "over", "p_better", "cells", "problems", "source"]
DRAWS = 10_000


def compute_ranking(results: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Compute the mean rank of each method's final test accuracy, 1 is best, ties averaged: ranking.csv.

    Groups are all priors together and, if there are several, each prior; in each group "all cells", ranking the methods
    that have every cell, and, if methods lack cells, "shared cells", ranking all methods on the cells that all have.
    The bootstrap draws problems with all their split seeds, which share test images. Friedman's test is over problems,
    each with its mean accuracy over seeds; it is missing for fewer than three methods or two problems.

    Source: Demsar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets".
    """
    rows = []
    for group, table, left_out in _groups(results):
        means = _bootstrap_means(table, draws, seed)
        first = means == means.min(axis=1, keepdims=True)
        columns = {
            "method": table.columns,
            "mean_rank": _ranks(table).mean(axis=0),
            "rank_low": np.quantile(means, 0.025, axis=0),
            "rank_high": np.quantile(means, 0.975, axis=0),
            "p_first": (first / first.sum(axis=1, keepdims=True)).mean(axis=0),
        }
        more = {"friedman_p": _friedman(table), "methods": len(table.columns), "left_out": ", ".join(left_out)}
        rows += [
            dict(zip(columns, values, strict=True)) | group | more for values in zip(*columns.values(), strict=True)
        ]
    return pd.DataFrame(rows, columns=RANKING)


def compute_rank_pairs(results: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Compute how often each method ranks before each other one in the bootstrap, ties half: rank_pairs.csv."""
    rows = []
    for group, table, _ in _groups(results):
        means = _bootstrap_means(table, draws, seed)
        for i, method in enumerate(table.columns):
            for j, against in enumerate(table.columns):
                if i != j:
                    better = np.sign(means[:, j] - means[:, i]).mean() / 2 + 0.5
                    rows.append(group | {"method": method, "against": against, "p_better": better})
    return pd.DataFrame(rows, columns=PAIRS)


def _groups(results: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame, list[str]]]:
    """Iterate over groups: their columns; accuracies, one row per cell and one column per method; methods left out."""
    for source, of in results.groupby("source", sort=True):
        order = sort_rows(of[["method"]].drop_duplicates())["method"]
        everything = of.pivot_table("test_acc", CELL, "method").reindex(columns=order)
        priors = everything.index.get_level_values("prior")
        several = [prior for prior in PRIOR_NAMES if prior in set(priors)]
        for prior in ["all", *(several if len(several) > 1 else [])]:
            table = everything if prior == "all" else everything[priors == prior]
            table = table.dropna(axis=1, how="all")
            incomplete = [str(name) for name in table.columns[table.isna().any()]]
            absent = [str(name) for name in everything.columns.difference(table.columns, sort=False)]
            choices = {"all cells": (table.dropna(axis=1), incomplete + absent)}
            if incomplete:
                choices["shared cells"] = (table.dropna(axis=0), absent)
            for over, (ranked, left_out) in choices.items():
                if ranked.shape[1] > 1 and len(ranked):
                    counts = {"cells": len(ranked), "problems": len(ranked.groupby(PROBLEM))}
                    yield {"source": source, "prior": prior, "over": over} | counts, ranked, left_out


def _ranks(table: pd.DataFrame) -> Array:
    """Ranks of the methods in each cell, 1 is best; accuracies that differ by rounding only are equal."""
    ranks: Array = rankdata(-np.round(table.to_numpy(np.float64), 12), axis=1)
    return ranks


def _bootstrap_means(table: pd.DataFrame, draws: int, seed: int) -> Array:
    """Mean ranks in resampled problems; shape (draws, methods)."""
    problem = table.groupby(PROBLEM).ngroup().to_numpy()
    count = int(problem.max()) + 1
    sums, sizes = np.zeros((count, table.shape[1])), np.bincount(problem).astype(np.float64)
    np.add.at(sums, problem, _ranks(table))
    random = np.random.default_rng(seed)
    times = random.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
    means: Array = np.round((times @ sums) / (times @ sizes)[:, None], 12)
    return means


def _friedman(table: pd.DataFrame) -> float:
    means = np.round(table.groupby(PROBLEM).mean().to_numpy(np.float64), 12)
    if means.shape[0] < 2 or means.shape[1] < 3 or (means == means[:, :1]).all():
        return math.nan
    return float(friedmanchisquare(*means.T).pvalue)
