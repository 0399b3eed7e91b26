"""The subsampling curve against exact binomials, all subsets, and random ones; and rankings of runs."""

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
from bench.results.published import read_published
from bench.trials.record import TrialRecord
from tests.helpers.result_frames import make_frame, trial

Fake = Callable[..., TrialRecord]
PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "published"
NAN = float("nan")


def made(size: int, seed: int = 0) -> Configurations:
    random = np.random.default_rng(seed)
    tuning, retraining = random.uniform(100, 200, size), random.uniform(300, 400, size)
    rows = np.arange(size)
    return Configurations(tuning, retraining, random.uniform(0, 1, size), rows, rows)


@pytest.mark.parametrize("size", [1, 2, 6, 24, 240])
def test_probabilities_are_ratios_of_binomials(size: int) -> None:
    """P[k-1, i] = C(M-1-i, k-1) / C(M, k), to 12 digits, up to the 240 configurations of PTYL."""
    exact = [[comb(size - 1 - i, k - 1) / comb(size, k) for i in range(size)] for k in range(1, size + 1)]
    np.testing.assert_allclose(selection_probabilities(size), exact, rtol=1e-12, atol=1e-300)


def test_curve_is_the_mean_over_all_subsets() -> None:
    """Hours, accuracy, spread and quantiles are those over all C(6, k) subsets."""
    found = made(6)
    curve = exact_curve(found)
    assert curve["k"].tolist() == [1, 2, 3, 4, 5, 6]
    for row in curve.itertuples():
        subsets = list(combinations(range(6), int(row.k)))
        accuracy = np.array([found.accuracy[min(subset)] for subset in subsets])
        hours = [found.tuning_seconds[list(s)].sum() + found.retraining_seconds[min(s)] for s in subsets]
        assert row.expected_test_acc == pytest.approx(accuracy.mean())
        assert row.sd_test_acc == pytest.approx(accuracy.std(), abs=1e-12)
        assert row.expected_hours == pytest.approx(np.mean(hours) / 3600)
        for level, value in ((0.1, row.q10_test_acc), (0.9, row.q90_test_acc)):
            assert value == np.quantile(accuracy, level, method="inverted_cdf")


def assert_within_sampling_error(found: Configurations, subsamples: int = 500) -> None:
    """Check that the sampled curve lies within 4 standard errors of the exact one at every k."""
    exact, sampled = exact_curve(found), sampled_curve(found, subsamples)
    assert list(sampled.columns) == list(exact.columns)
    assert sampled["k"].tolist() == exact["k"].tolist()
    error = exact["sd_test_acc"] / np.sqrt(subsamples)
    assert (np.abs(sampled["expected_test_acc"] - exact["expected_test_acc"]) <= 4 * error + 1e-9).all()
    hours = np.concatenate([found.tuning_seconds, found.retraining_seconds]).std() * np.sqrt(2 * exact["k"]) / 3600
    difference = np.abs(sampled["expected_hours"] - exact["expected_hours"])
    assert (difference <= 4 * hours / np.sqrt(subsamples) + 1e-9).all()


def test_sampled_curve_agrees() -> None:
    """500 subsamples agree with the exact curve within sampling error; with all configurations drawn there is none."""
    assert_within_sampling_error(made(24, seed=3))
    found = made(5)
    last, exact = sampled_curve(found, 10).iloc[-1], exact_curve(found).iloc[-1]
    assert last["expected_test_acc"] == pytest.approx(exact["expected_test_acc"]) == found.accuracy[0]
    assert last["sd_test_acc"] == pytest.approx(exact["sd_test_acc"], abs=1e-12)
    assert last["q10_test_acc"] == last["q90_test_acc"] == found.accuracy[0]


def test_published_grids_agree() -> None:
    """On every fully retrained published grid of Oxford-IIIT Pet, the exact and the sampled curve agree."""
    files = [PUBLISHED / f"{stage}_Oxford-IIIT_Pet.csv" for stage in ("tuned", "retrained")]
    if not all(file.exists() for file in files):
        pytest.skip(f"{PUBLISHED} is not here")
    grids = [tried for _, tried in iterate_configurations(read_published(*files).frame)]
    whole = [tried for tried in grids if tried.has_test_accuracy.all()]
    assert {len(tried) for tried in whole} == {24}
    for tried in whole:
        assert_within_sampling_error(tried)


def test_curves_with_missing_retrained_runs() -> None:
    """Only the end is known where only the best was retrained; without the worst one the curve begins at k = 2."""
    full = exact_curve(made(6))
    for unknown, rows in ((slice(1, None), full[5:]), (slice(5, None), full[1:])):
        tried = made(6)
        tried.accuracy[unknown] = NAN
        pd.testing.assert_frame_equal(exact_curve(tried), rows.reset_index(drop=True))


def grid(content: dict[str, Any], play: Any, judge: Any) -> pd.DataFrame:
    content["methods"]["map-gs"]["retrain"] = "all"
    return to_frame(play(parse_benchmark(content, "x"), judge))


def the(frame: pd.DataFrame, method: str, cost: str = "train") -> Configurations:
    (found,) = [found for cell, found in iterate_configurations(frame, cost) if cell["method"] == method]
    return found


def test_a_grid_is_ranked_by_validation_nll(content: dict[str, Any], fake: Fake, play: Any) -> None:
    """A grid is ranked by its tuning runs' validation NLL, and its accuracies are of its retrained runs."""
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


def test_an_elbo_is_ranked_by_its_objective() -> None:
    """A method without tuning is ranked by its objective, tested by the same runs, and retrains nothing."""
    rows = [trial("de-elbo", "run", 1 - rate, 1.0, learning_rate=rate, test_acc=rate) for rate in (0.01, 0.1)]
    found = the(make_frame(*rows), "de-elbo")
    assert found.accuracy.tolist() == [0.1, 0.01]
    assert found.retraining_seconds.tolist() == [0, 0]


@pytest.mark.parametrize("nll", [NAN, float("inf"), 0.001])
def test_a_diverged_run_counts_and_ranks_last(nll: float, content: dict[str, Any], fake: Fake, play: Any) -> None:
    """A diverged run's seconds count, and it ranks last, whatever NLL it ended with."""

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
def test_ties_are_broken_as_in_the_grid_search(nll: float, content: dict[str, Any], fake: Fake, play: Any) -> None:
    """If all tuning runs tie or diverge, the configuration that the grid retrained is the best."""

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


def test_failed_runs_are_left_out() -> None:
    """The curve is that of the runs that did not fail."""
    rows = [trial("map-gs", "tune", 1.0, 3.0, learning_rate=0.1), trial("map-gs", "tune", 0.5, 9.0, status="failed")]
    assert the(make_frame(*rows), "map-gs").tuning_seconds.tolist() == [3.0]


def test_rows_of_ranked_and_tested_runs(content: dict[str, Any], play: Any) -> None:
    """Rows are those of the frame's index: of tuning and retraining, or one run for both; -1 if not retrained."""
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
    """The same trials from two storages give each the curves that it would have alone."""
    records = play(parse_benchmark(content, "x"))
    alone = compute_curves(to_frame(records))
    both = compute_curves(pd.concat([to_frame(records, "a"), to_frame(records, "b")], ignore_index=True))
    for source in ("a", "b"):
        part = both[both["source"] == source].drop(columns="source").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone.drop(columns="source"))


def test_curves_csv(content: dict[str, Any], fake: Fake, play: Any) -> None:
    """curves.csv has one row for each cost, cell, method and k; the full cost is higher, the accuracy the same."""
    content["seeds"] = [1, 2]
    table = compute_curves(grid(content, play, fake))
    assert len(table) == 2 * 2 * (4 + 2 + 2)
    keys = ["dataset", "prior", "method", "n", "split_seed", "k"]
    both = table.pivot_table(index=keys, columns="cost", values=["expected_hours", "expected_test_acc"])
    assert (both["expected_hours"]["full"] > both["expected_hours"]["train"]).all()
    assert (both["expected_test_acc"]["full"] == both["expected_test_acc"]["train"]).all()


def test_no_records_give_no_rows() -> None:
    """An empty table of records gives an empty table of curves with the same columns."""
    table = compute_curves(to_frame([]))
    assert table.empty
    assert {"k", "expected_hours", "cost"} <= set(table.columns)
