"""Ranks by hand, their bootstrap against all possible draws, Friedman's test against scipy's."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import friedmanchisquare

from bench.results.ranking import compute_rank_pairs, compute_ranking

pytestmark = pytest.mark.filterwarnings("error")


def results(table: dict[str, list[float | None]], seeds: int = 1, **more: Any) -> pd.DataFrame:
    """Make final accuracies of methods; every ``seeds`` values in a row are the splits of one problem."""
    rows = [
        {"source": "", "dataset": "d", "backbone": "b", "prior": "l2-sp", "n": 100 + i // seeds, "seed": i % seeds}
        | {"method": method, "test_acc": accuracy, "total_seconds": 1.0}
        | more
        for method, values in table.items()
        for i, accuracy in enumerate(values)
        if accuracy is not None
    ]
    return pd.DataFrame(rows)


def test_mean_ranks_by_hand() -> None:
    """1 is the most accurate; ties, also those but for rounding, are averaged."""
    table = compute_ranking(results({"a": [0.9, 0.3, 0.1 + 0.2], "b": [0.8, 0.3, 0.3], "c": [0.7, 0.9, 0.2]}), draws=50)
    assert table.set_index("method")["mean_rank"].to_dict() == {
        "a": pytest.approx((1 + 2.5 + 1.5) / 3),
        "b": pytest.approx((2 + 2.5 + 1.5) / 3),
        "c": pytest.approx((3 + 1 + 3) / 3),
    }
    assert table[["methods", "cells", "problems"]].drop_duplicates().to_numpy().tolist() == [[3, 3, 3]]


def test_the_bootstrap_draws_problems_with_their_splits() -> None:
    """Interval, p_first and pairs agree with all 3^3 draws of three problems, within the sampling error."""
    table = {
        "a": [0.9, 0.8, 0.3, 0.4, 0.6, 0.5],
        "b": [0.8, 0.9, 0.6, 0.5, 0.5, 0.4],
        "c": [0.7, 0.7, 0.5, 0.6, 0.7, 0.3],
    }
    values = np.array(list(table.values())).T
    ranks = (-values).argsort(axis=1).argsort(axis=1) + 1.0
    means = np.array(
        [
            np.concatenate([ranks[2 * i : 2 * i + 2] for i in drawn]).mean(axis=0)
            for drawn in product(range(3), repeat=3)
        ]
    )
    found = compute_ranking(results(table, seeds=2)).set_index("method")
    first = means == means.min(axis=1, keepdims=True)
    np.testing.assert_allclose(found["p_first"], (first / first.sum(axis=1, keepdims=True)).mean(axis=0), atol=0.02)
    assert found["p_first"].sum() == pytest.approx(1)
    for i, method in enumerate(table):
        values_of = np.unique(np.round(means[:, i], 9))
        assert round(found.loc[method, "rank_low"], 9) in values_of
        assert round(found.loc[method, "rank_high"], 9) in values_of
        assert (means[:, i] < found.loc[method, "rank_low"] - 1e-9).mean() <= 0.04
        assert (means[:, i] > found.loc[method, "rank_high"] + 1e-9).mean() <= 0.04
    pairs = compute_rank_pairs(results(table, seeds=2)).set_index(["method", "against"])["p_better"]
    for (i, one), (j, other) in product(enumerate(table), repeat=2):
        if i != j:
            expected = np.mean((means[:, i] < means[:, j]) + 0.5 * (means[:, i] == means[:, j]))
            assert pairs[one, other] == pytest.approx(expected, abs=0.02)
            assert pairs[one, other] + pairs[other, one] == pytest.approx(1)


def test_splits_of_one_problem_are_not_evidence() -> None:
    """Twenty splits of one problem leave only one draw: the interval is a point."""
    random = np.random.default_rng(0)
    table = compute_ranking(results({"a": list(random.random(20)), "b": list(random.random(20))}, seeds=20))
    assert (table["rank_low"] == table["rank_high"]).all()
    assert set(table["problems"]) == {1}
    assert table["friedman_p"].isna().all()


def test_friedmans_test() -> None:
    """p is that of scipy on means over splits; missing with two methods or one problem, or if all are equal."""
    random = np.random.default_rng(1)
    table: dict[str, list[float | None]] = {name: list(random.random(10)) for name in "abcd"}
    means = [np.reshape(values, (5, 2)).mean(axis=1) for values in table.values()]
    assert compute_ranking(results(table, seeds=2))["friedman_p"].iloc[0] == pytest.approx(
        friedmanchisquare(*means).pvalue
    )
    assert compute_ranking(results({"a": [0.1, 0.2], "b": [0.3, 0.4]}))["friedman_p"].isna().all()
    assert compute_ranking(results({name: [0.5, 0.5] for name in "abc"}))["friedman_p"].isna().all()


def test_a_method_that_is_always_better_is_always_first() -> None:
    """It is first in every draw; two methods that are equal everywhere are equally likely."""
    table = results({"a": [0.9] * 4, "b": [0.5] * 4, "c": [0.5] * 4})
    assert compute_ranking(table)["p_first"].tolist() == [1, 0, 0]
    pairs = compute_rank_pairs(table).set_index(["method", "against"])["p_better"]
    assert (pairs["a", "b"], pairs["b", "a"], pairs["b", "c"]) == (1, 0, 0.5)


def test_methods_that_lack_cells() -> None:
    """They are left out over all cells, and ranked over the cells that all methods share."""
    table = results({"a": [0.9, 0.8, 0.7], "b": [0.8, 0.9, 0.6], "c": [None, 0.95, 0.9]})
    found = compute_ranking(table)
    groups = {over: group.set_index("method") for over, group in found.groupby("over")}
    assert groups["all cells"].index.tolist() == ["a", "b"]
    assert set(groups["all cells"]["left_out"]) == {"c"}
    assert groups["shared cells"]["mean_rank"].to_dict() == {"a": 2.5, "b": 2.5, "c": 1.0}
    assert set(groups["shared cells"]["cells"]) == {2}
    apart = compute_ranking(results({"a": [0.9, None], "b": [None, 0.9]}))
    assert apart.empty


def test_each_prior_is_ranked() -> None:
    """All priors are ranked together, then each with the methods that it has."""
    both = [results({"a": [0.9, 0.8], "b": [0.7, 0.6]}), results({"a": [0.1], "b": [0.2], "c": [0.3]}, prior="ptyl")]
    found = compute_ranking(pd.concat(both)).set_index(["prior", "over", "method"])["mean_rank"]
    assert found["l2-sp", "all cells"].to_dict() == {"a": 1, "b": 2}
    assert found["ptyl", "all cells"].to_dict() == {"a": 3, "b": 2, "c": 1}
    assert found["all", "all cells"].to_dict() == {"a": pytest.approx(4 / 3), "b": pytest.approx(5 / 3)}
    assert found["all", "shared cells"].to_dict() == {"a": 3, "b": 2, "c": 1}


def test_sources_and_seeds() -> None:
    """Sources are ranked apart; the same seed gives the same draws."""
    both = pd.concat([results({"a": [0.9, 0.1], "b": [0.5, 0.5]}, source=source) for source in ("x", "y")])
    found = compute_ranking(both, draws=100)
    x, y = (found[found["source"] == source].drop(columns="source").reset_index(drop=True) for source in ("x", "y"))
    pd.testing.assert_frame_equal(x, y)
    pd.testing.assert_frame_equal(found, compute_ranking(both, draws=100))
    assert compute_ranking(both.iloc[:0]).empty
    assert compute_rank_pairs(both.iloc[:0]).empty
