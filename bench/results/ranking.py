"""Which method is best over many cells: mean ranks of the final accuracy, and how sure their order is."""

from __future__ import annotations

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

__all__ = ["rank_pairs", "ranking"]


Array = NDArray[np.float64]
RANKING = ["method", "prior", "over", "mean_rank", "rank_low", "rank_high", "p_first", "friedman_p"]
RANKING += ["methods", "cells", "problems", "left_out", "source"]
PAIRS = ["method", "against", "prior", "over", "p_better", "cells", "problems", "source"]
DRAWS = 10_000


def ranking(results: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Mean rank of every method's final test accuracy, 1 is best, ties averaged; one row a group and method.

    Groups are all priors together and, where there are several, each; and in each of them "all cells" that any method
    has, of the methods that have all of these, and, where methods lack some, "shared cells" that all methods have.
    Columns: method, prior, over; mean_rank; rank_low and rank_high, the 2.5 % and 97.5 % quantiles of a bootstrap;
    p_first, in how many of its draws the method's mean rank is the least, ties shared; friedman_p; methods, cells,
    problems, how many; left_out, the methods that are not ranked in this group for want of cells; source.

    The bootstrap draws problems (dataset, backbone, prior, N) with all their split seeds, as splits of one problem
    share its test images. Friedman's test is over problems, each with the mean accuracy over its seeds: missing with
    fewer than three methods or two problems. Source: Demsar 2006, "Statistical Comparisons of Classifiers over Multiple
    Data Sets". With few problems neither can be sure of much: their number is in every row.

    Args:
        results: as `bench.results.paired_tests.chosen` gives.
        draws: of the bootstrap, by ``seed``.
    """
    rows = []
    for known, table, lacking in _groups(results):
        means = _draws(table, draws, seed)
        first = means == means.min(axis=1, keepdims=True)
        share = (first / first.sum(axis=1, keepdims=True)).mean(axis=0)
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
        p = _friedman(table)
        for i, method in enumerate(table.columns):
            row = {"method": method, "mean_rank": _ranks(table)[:, i].mean(), "rank_low": low[i], "rank_high": high[i]}
            more = {"p_first": share[i], "friedman_p": p, "left_out": ", ".join(lacking)}
            rows.append(known | row | more | {"methods": len(table.columns)})
    return pd.DataFrame(rows, columns=RANKING)


def rank_pairs(results: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """How sure it is of every two methods that one ranks before the other: p_better, in how many draws of the same
    bootstrap ``method`` has the lesser mean rank than ``against``, equal ones counting half.

    Columns: method, against, prior, over, p_better, cells, problems, source. Arguments as `ranking`.
    """
    rows = []
    for known, table, _ in _groups(results):
        means = _draws(table, draws, seed)
        for i, method in enumerate(table.columns):
            for j, against in enumerate(table.columns):
                if i != j:
                    better = np.sign(means[:, j] - means[:, i]).mean() / 2 + 0.5
                    rows.append(known | {"method": method, "against": against, "p_better": better})
    return pd.DataFrame(rows, columns=PAIRS)


def _groups(results: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame, list[str]]]:
    """What is ranked together: what is known of the group; accuracies, a row a cell, a column a method; who is left
    out."""
    for source, of in results.groupby("source", sort=True):
        order = sort_rows(of[["method"]].drop_duplicates())["method"]
        everything = of.pivot_table("test_acc", CELL, "method").reindex(columns=order)
        priors = everything.index.get_level_values("prior")
        several = [prior for prior in PRIOR_NAMES if prior in set(priors)]
        for prior in ["all", *(several if len(several) > 1 else [])]:
            table = everything if prior == "all" else everything[priors == prior]
            table = table.dropna(axis=1, how="all")
            lacking = [str(name) for name in table.columns[table.isna().any()]]
            absent = [str(name) for name in everything.columns.difference(table.columns, sort=False)]
            choices = {"all cells": (table.dropna(axis=1), lacking + absent)}
            if lacking:
                choices["shared cells"] = (table.dropna(axis=0), absent)
            for over, (chosen, out) in choices.items():
                if chosen.shape[1] > 1 and len(chosen):
                    count = len(chosen.groupby(PROBLEM))
                    known = {"source": source, "prior": prior, "over": over, "cells": len(chosen), "problems": count}
                    yield known, chosen, out


def _ranks(table: pd.DataFrame) -> Array:
    """Ranks of the methods in each cell, 1 is best; accuracies that differ in their last bit are equal."""
    ranks: Array = rankdata(-np.round(table.to_numpy(np.float64), 12), axis=1)
    return ranks


def _draws(table: pd.DataFrame, draws: int, seed: int) -> Array:
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
