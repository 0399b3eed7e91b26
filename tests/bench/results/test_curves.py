"""The subsampling curve against exact binomials, every subset there is, and random ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.config.loading import parse_benchmark
from bench.results.configurations import Configurations, iterate_configurations
from bench.results.curves import compute_curves, exact_curve, sampled_curve, selection_probabilities
from bench.results.frame import to_frame
from bench.trials.record import TrialRecord

Fake = Callable[..., TrialRecord]
PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "published"
NAN = float("nan")


def made(size: int, seed: int = 0) -> Configurations:
    random = np.random.default_rng(seed)
    tuning, retraining = random.uniform(100, 200, size), random.uniform(300, 400, size)
    rows = np.arange(size)
    return Configurations(tuning, retraining, random.uniform(0, 1, size), rows, rows)


@pytest.mark.parametrize("size", [1, 2, 6, 24, 240])
def test_chances_are_ratios_of_binomials(size: int) -> None:
    """P[k-1, i] = C(M-1-i, k-1) / C(M, k), to 12 digits, up to the 240 configurations of PTYL."""
    exact = [[comb(size - 1 - i, k - 1) / comb(size, k) for i in range(size)] for k in range(1, size + 1)]
    np.testing.assert_allclose(selection_probabilities(size), exact, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("size", [1, 7, 240])
def test_something_is_always_chosen(size: int) -> None:
    """For every k the chances sum to 1."""
    np.testing.assert_allclose(selection_probabilities(size).sum(axis=1), 1, rtol=1e-12)


def test_curve_is_the_mean_over_all_subsets() -> None:
    """Hours, accuracy, spread and quantiles are those over all C(6, k) subsets, counted one by one."""
    found = made(6)
    curve = exact_curve(found)
    assert curve["k"].tolist() == [1, 2, 3, 4, 5, 6]
    for row in curve.itertuples():
        subsets = list(combinations(range(6), int(row.k)))
        accuracy = np.array([found.accuracy[min(subset)] for subset in subsets])
        hours = [
            (found.tuning_seconds[list(subset)].sum() + found.retraining_seconds[min(subset)]) / 3600
            for subset in subsets
        ]
        assert row.expected_test_acc == pytest.approx(accuracy.mean())
        assert row.sd_test_acc == pytest.approx(accuracy.std(), abs=1e-12)
        assert row.expected_hours == pytest.approx(np.mean(hours))
        for level, value in ((0.1, row.q10_test_acc), (0.9, row.q90_test_acc)):
            assert value == np.quantile(accuracy, level, method="inverted_cdf")


def assert_within_sampling_error(found: Configurations, subsamples: int = 500) -> None:
    """The sampled curve lies within 4 standard errors of the exact one at every k."""
    exact, sampled = exact_curve(found), sampled_curve(found, subsamples)
    assert list(sampled.columns) == list(exact.columns)
    assert sampled["k"].tolist() == exact["k"].tolist()
    error = exact["sd_test_acc"] / np.sqrt(subsamples)
    assert (np.abs(sampled["expected_test_acc"] - exact["expected_test_acc"]) <= 4 * error + 1e-9).all()
    hours = np.concatenate([found.tuning_seconds, found.retraining_seconds]).std() * np.sqrt(2 * exact["k"]) / 3600
    difference = np.abs(sampled["expected_hours"] - exact["expected_hours"])
    assert (difference <= 4 * hours / np.sqrt(subsamples) + 1e-9).all()


def test_sampled_curve_agrees() -> None:
    """500 subsamples, as published, and the exact curve agree within sampling error."""
    assert_within_sampling_error(made(24, seed=3))


def test_sampled_curve_ends_exactly() -> None:
    """With all configurations drawn there is one subset: no error, no spread."""
    found = made(5)
    last, exact = sampled_curve(found, 10).iloc[-1], exact_curve(found).iloc[-1]
    assert last["expected_test_acc"] == pytest.approx(exact["expected_test_acc"]) == found.accuracy[0]
    assert last["sd_test_acc"] == pytest.approx(exact["sd_test_acc"], abs=1e-12)
    assert last["q10_test_acc"] == last["q90_test_acc"] == found.accuracy[0]


def test_exact_is_far_faster_than_sampling() -> None:
    """At least 10,000 times faster than 100 rounds of 500 subsamples of each size 1 to 24, drawn by DataFrame.sample;
    of which a two-thousandth is drawn here."""
    found, draws = made(24), 25
    columns = {
        "rank": range(24),
        "tuning": found.tuning_seconds,
        "again": found.retraining_seconds,
        "accuracy": found.accuracy,
    }
    table = pd.DataFrame(columns)
    since = time.perf_counter()
    for k in range(1, 25):
        for _ in range(draws):
            drawn = table.sample(k)
            best = drawn.loc[drawn["rank"].idxmin()]
            assert drawn["tuning"].sum() + best["again"] > 0
    sampled = (time.perf_counter() - since) * 100 * 500 / draws
    since = time.perf_counter()
    assert len(exact_curve(found)) == 24
    assert sampled / (time.perf_counter() - since) > 10_000


def published(name: str, stage: str) -> pd.DataFrame:
    file = PUBLISHED / f"{stage}_{name}.csv"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    return pd.read_csv(file)


def test_published_grids_agree() -> None:
    """On every fully retrained published grid of Oxford-IIIT Pet, exact and sampled curve agree."""
    tuned, retrained = published("Oxford-IIIT_Pet", "tuned"), published("Oxford-IIIT_Pet", "retrained")
    joined = tuned.merge(retrained, on="model_name", how="left", suffixes=("", "_again"))
    sizes = []
    for _, grid in joined.groupby(["method", "n", "random_state"]):
        ranked = grid.sort_values(["val_nll", "model_name"])
        if ranked["test_acc"].isna().any():
            continue
        columns = [ranked[name].to_numpy(np.float64) for name in ("runtime", "runtime_again", "test_acc")]
        rows = ranked.index.to_numpy()
        assert_within_sampling_error(Configurations(*columns, rows, rows))
        sizes.append(len(ranked))
    assert sizes
    assert set(sizes) == {24}


def test_only_the_winner_retrained_gives_the_end_alone() -> None:
    """Where only the winner was trained again, the row k = M is all there is."""
    full = made(6)
    unknown = np.array([1.0, NAN, NAN, NAN, NAN, NAN])
    found = Configurations(
        full.tuning_seconds,
        full.retraining_seconds * unknown,
        full.accuracy * unknown,
        full.selection_rows,
        full.test_rows,
    )
    curve = exact_curve(found)
    assert curve["k"].tolist() == [6]
    assert curve["expected_test_acc"].tolist() == [full.accuracy[0]]
    assert curve["expected_hours"].iloc[0] == pytest.approx(
        (full.tuning_seconds.sum() + full.retraining_seconds[0]) / 3600
    )


def test_a_missing_loser_does_not_matter() -> None:
    """The worst of six can win only alone, so without its retraining the curve begins at k = 2, unchanged."""
    full = made(6)
    holes = np.array([1.0, 1, 1, 1, 1, NAN])
    found = Configurations(
        full.tuning_seconds, full.retraining_seconds, full.accuracy * holes, full.selection_rows, full.test_rows
    )
    curve = exact_curve(found)
    pd.testing.assert_frame_equal(curve, exact_curve(full)[1:].reset_index(drop=True))


def grid(content: dict[str, Any], play: Any, judge: Any) -> pd.DataFrame:
    content["methods"]["map-gs"]["retrain"] = "all"
    return to_frame(play(parse_benchmark(content, "x"), judge))


def the(frame: pd.DataFrame, method: str, cost: str = "train") -> Configurations:
    (found,) = [found for cell, found in iterate_configurations(frame, cost) if cell["method"] == method]
    return found


def test_a_grid_is_ranked_by_validation_nll(content: dict[str, Any], fake: Fake, play: Any) -> None:
    """A method that tunes is ranked by its tuning runs' validation NLL, and scored by its retrained runs."""
    nll = {(0.1, 0.01): 3.0, (0.1, 0.0): 1.0, (0.01, 0.01): 2.0, (0.01, 0.0): 4.0}

    def judge(spec: Any) -> TrialRecord:
        if spec.method != "map-gs":
            return fake(spec)
        rank = nll[spec.learning_rate, spec.weight_decay]
        if spec.stage == "tune":
            return fake(spec, metrics={"val_nll": rank}, seconds={"train": 10 * rank, "evaluate": 1.0})
        return fake(spec, metrics={"test_acc": rank / 10}, seconds={"train": 100 * rank, "evaluate": 2.0, "test": 50.0})

    frame = grid(content, play, judge)
    found = the(frame, "map-gs")
    assert found.accuracy.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert found.tuning_seconds.tolist() == [10, 20, 30, 40]
    assert found.retraining_seconds.tolist() == [100, 200, 300, 400]
    full = the(frame, "map-gs", "full")
    assert full.tuning_seconds.tolist() == [11, 21, 31, 41]
    assert full.retraining_seconds.tolist() == [102, 202, 302, 402]


def test_an_elbo_is_ranked_by_its_objective(content: dict[str, Any], fake: Fake, play: Any) -> None:
    """A method without tuning is ranked by its objective, is scored by the same runs, and retrains nothing."""

    def judge(spec: Any) -> TrialRecord:
        return fake(spec, metrics={"objective": 1 - spec.learning_rate, "test_acc": spec.learning_rate, "val_nll": 0.0})

    found = the(grid(content, play, judge), "de-elbo")
    assert found.accuracy.tolist() == [0.1, 0.01]
    assert found.retraining_seconds.tolist() == [0, 0]


@pytest.mark.parametrize("nll", [NAN, float("inf"), 0.001])
def test_a_diverged_run_counts_and_ranks_last(nll: float, content: dict[str, Any], fake: Fake, play: Any) -> None:
    """A diverged run's seconds count, and it is chosen where nothing else was drawn, whatever NLL it ended with."""

    def judge(spec: Any) -> TrialRecord:
        lost = spec.method == "map-gs" and (spec.learning_rate, spec.weight_decay) == (0.1, 0.01)
        if lost and spec.stage == "tune":
            return fake(spec, "diverged", metrics={"val_nll": nll}, seconds={"train": 7.0})
        return fake(spec, "diverged", metrics={"test_acc": 0.1}) if lost else fake(spec)

    found = the(grid(content, play, judge), "map-gs")
    assert len(found) == 4
    assert found.tuning_seconds[-1] == 7.0
    assert found.accuracy[-1] == 0.1
    assert len(exact_curve(found)) == 4


@pytest.mark.parametrize("nll", [NAN, 1.0])
def test_table_and_race_break_ties_alike(nll: float, content: dict[str, Any], fake: Fake, play: Any) -> None:
    """Where all tuning runs tie or diverge, the configuration that the grid retrained is the first of the curve."""

    def judge(spec: Any) -> TrialRecord:
        if spec.stage == "tune":
            return fake(spec, "completed" if nll == 1 else "diverged", metrics={"val_nll": nll})
        return fake(spec)

    content["seeds"] = [1, 2, 3, 4, 5, 6]
    frame = to_frame(play(parse_benchmark(content, "x"), judge))
    ends = [
        exact_curve(found)["k"].tolist() for cell, found in iterate_configurations(frame) if cell["method"] == "map-gs"
    ]
    assert ends == [[4]] * 6


def test_failed_runs_are_left_out(content: dict[str, Any], fake: Fake, play: Any) -> None:
    """A failed run is no result: the curve is that of the others."""

    def judge(spec: Any) -> TrialRecord:
        return fake(spec, "failed" if spec.stage == "tune" and spec.weight_decay == 0 else "completed")

    frame = grid(content, play, judge)
    found = the(frame, "map-gs")
    assert len(found) == 2
    assert frame.loc[found.selection_rows, "weight_decay"].tolist() == [0.01, 0.01]
    assert frame.loc[found.selection_rows, "train_seconds"].tolist() == found.tuning_seconds.tolist()


def test_what_was_judged_and_tested_is_known_by_its_row(content: dict[str, Any], play: Any) -> None:
    """Rows are those of the frame's index, whatever that is: tuning and retraining of one configuration, or one run
    for both; -1 where the configuration was not trained again."""
    frame = to_frame(play(parse_benchmark(content, "x")))
    frame.index = pd.Index(range(1000, 1000 + 10 * len(frame), 10))
    grid, single = the(frame, "map-gs"), the(frame, "de-elbo")
    tuned, again = frame.loc[grid.selection_rows], frame.loc[grid.test_rows[0]]
    assert set(tuned["stage"]) == {"tune"}
    assert tuned["val_nll"].is_monotonic_increasing
    assert again["stage"] == "retrain"
    strengths = ["learning_rate", "weight_decay", "head_weight_decay"]
    assert again[strengths].tolist() == tuned[strengths].iloc[0].tolist()
    assert again["test_acc"] == grid.accuracy[0]
    assert grid.test_rows[1:].tolist() == [-1, -1, -1]
    assert single.selection_rows.tolist() == single.test_rows.tolist()
    assert frame.loc[single.selection_rows, "objective"].is_monotonic_increasing


def test_sources_are_never_pooled(content: dict[str, Any], play: Any) -> None:
    """The same trials from two storages give each its own curves, those that it would have alone."""
    records = play(parse_benchmark(content, "x"))
    alone = compute_curves(to_frame(records))
    both = compute_curves(pd.concat([to_frame(records, "a"), to_frame(records, "b")], ignore_index=True))
    for source in ("a", "b"):
        part = both[both["source"] == source].drop(columns="source").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone.drop(columns="source"))


def test_curves_csv_keeps_its_contract(content: dict[str, Any], fake: Fake, play: Any) -> None:
    """curves.csv has the columns of the contract, and one row for each cost, cell, method and k."""
    content["seeds"] = [1, 2]
    table = compute_curves(grid(content, play, fake))
    contract = ["dataset", "prior", "method", "n", "split_seed", "k"]
    contract += ["expected_hours", "expected_test_acc", "sd_test_acc", "cost"]
    contract += ["q10_test_acc", "q90_test_acc", "backbone", "source"]
    assert set(contract) <= set(table.columns)
    assert set(table["cost"]) == {"train", "full"}
    assert len(table) == 2 * 2 * (4 + 2 + 2)
    assert not table.duplicated([*contract[:6], "cost"]).any()
    assert set(table["split_seed"]) == {1, 2}
    both = table.pivot_table(index=contract[:6], columns="cost", values=["expected_hours", "expected_test_acc"])
    assert (both["expected_hours"]["full"] > both["expected_hours"]["train"]).all()
    assert (both["expected_test_acc"]["full"] == both["expected_test_acc"]["train"]).all()


def test_no_records_give_no_rows() -> None:
    """An empty table of records gives an empty table of curves with the same columns."""
    table = compute_curves(to_frame([]))
    assert table.empty
    assert {"k", "expected_hours", "cost"} <= set(table.columns)
