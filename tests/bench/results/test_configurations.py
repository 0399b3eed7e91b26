"""Configurations of each method: segments, costs, ranks, sequential searches, and notes on missing results."""

from itertools import combinations, islice, permutations, product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.results.anytime import compute_steps, iterate_mean_curves
from bench.results.configurations import Configurations, iterate_configurations
from bench.results.curves import compute_curves, exact_curve, prefix_curve, sampled_curve
from bench.results.frame import to_frame
from bench.results.missing import find_missing
from bench.results.paired_tests import compute_paired_tests, select_results
from bench.results.tables import compute_table2, compute_table3
from tests.helpers.result_frames import make_frame, overview, trial

NAN = float("nan")


def only(frame: pd.DataFrame, cost: str = "train") -> Configurations:
    ((_, found),) = iterate_configurations(frame, cost)
    return found


def rung(rate: float, since: float, until: float, value: float, seconds: float, **more: Any) -> dict[str, Any]:
    more = {"learning_rate": rate, "since": since, "until": until} | more
    return trial("halving", "run", value, seconds, **more)


HALVING = [
    rung(0.1, 0.0, 0.1, 5.0, 1.0),
    rung(0.1, 0.1, 0.3, 4.0, 2.0),
    rung(0.1, 0.3, 1.0, 3.0, 7.0, test_acc=0.9, select_seconds=0.5),
    rung(0.2, 0.0, 0.1, 1.0, 1.5),
    rung(0.2, 0.1, 0.3, 4.5, 2.5),
    rung(0.3, 0.0, 0.1, 2.0, 1.25),
]


@pytest.mark.parametrize("order", [*islice(permutations(range(6)), 0, 720, 97)])
def test_segments_are_one_configuration(order: tuple[int, ...]) -> None:
    """Seconds of segments add up, the last one ranks, and configurations that went further rank first."""
    found = only(make_frame(*(HALVING[i] for i in order)))
    assert found.tuning_seconds.tolist() == [10.0, 4.0, 1.25]
    assert found.fraction.tolist() == [1.0, 0.3, 0.1]
    np.testing.assert_equal(found.accuracy, [0.9, NAN, NAN])
    assert (found.num_trials, found.is_sequential, found.stopped_early.tolist()) == (6, False, [False, True, True])
    assert only(make_frame(*HALVING), "full").tuning_seconds.tolist() == [10.5, 4.0, 1.25]


def test_configurations_of_one_rung_rank_by_objective() -> None:
    """Of those stopped at the same rung the lowest objective is first, and a diverged one last."""
    lost = rung(0.4, 0.0, 0.1, NAN, 1.0, status="diverged")
    frame = make_frame(lost, rung(0.5, 0.0, 0.1, 2.0, 1.0), *HALVING[:3], rung(0.6, 0.0, 0.1, 1.0, 1.0))
    assert frame.loc[only(frame).selection_rows, "learning_rate"].tolist() == [0.1, 0.6, 0.5, 0.4]


def test_halving_has_the_end_of_its_curve() -> None:
    """A halving has only the end of its curve, which counts all segments, and nothing is missing."""
    frame = make_frame(*HALVING)
    curve = exact_curve(only(frame))
    assert curve[["k", "expected_hours", "expected_test_acc"]].to_numpy().tolist() == [[3, 15.25 / 3600, 0.9]]
    assert sampled_curve(only(frame))["expected_test_acc"].tolist() == [pytest.approx(0.9)]
    assert find_missing(frame) == []
    assert "1 of 1 runs have no test accuracy, the chosen one among them" in find_missing(frame.assign(test_acc=NAN))[0]
    assert "no run was trained to its end" in find_missing(frame[frame["until"] < 1])[0]


def test_table_2_counts_every_segment() -> None:
    """Each segment is a run: their number, mean and sum are those of all segments."""
    (row,) = compute_table2(make_frame(*HALVING)).to_dict("records")
    assert (row["num_runs"], row["total_seconds"], row["total_seconds_full"]) == (6, 15.25, 15.75)
    assert row["mean_run_seconds"] == pytest.approx(15.25 / 6)


def search(*runs: tuple[float, float, float], again: dict[int, float], name: str = "bo") -> pd.DataFrame:
    """Make a sequential search of (validation NLL, seconds, seconds of retraining); ``again`` has test accuracies."""
    rows = []
    for number, (value, seconds, retraining) in enumerate(runs):
        more = {"number": number, "learning_rate": 0.1, "weight_decay": 0.01}  # one may be tried twice
        rows.append(trial(name, "tune", value, seconds, **more))
        if number in again:
            rows.append(trial(name, "retrain", again[number], retraining, **more))
    return make_frame(*rows[::-1])


SEARCH = ((3.0, 10.0, 5.0), (4.0, 20.0, 6.0), (1.0, 30.0, 7.0), (2.0, 40.0, 8.0))


def test_curve_of_a_sequential_search() -> None:
    """Row k has the seconds of the first k configurations and of retraining their best, and its accuracy."""
    found = only(search(*SEARCH, again={0: 0.8, 2: 0.7}))
    assert found.is_sequential
    assert found.number.tolist() == [2, 3, 0, 1]
    curve = prefix_curve(found)
    assert curve["k"].tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(3600 * curve["expected_hours"], [15, 35, 67, 107])
    assert curve["expected_test_acc"].tolist() == curve["q10_test_acc"].tolist() == [0.8, 0.8, 0.7, 0.7]
    assert curve["sd_test_acc"].tolist() == [0.0] * 4


def test_only_sequential_searches_have_prefix_curves() -> None:
    """Configurations with numbers have prefix curves, sampled or not; those without have subsets."""
    frame = search(*SEARCH, again={i: 0.1 * i for i in range(4)})
    for subsamples in (None, 50):
        table = compute_curves(frame, subsamples)
        assert table.loc[table["cost"] == "train", "expected_test_acc"].tolist() == [0.0, 0.0, 0.2, 0.2]
    grid = frame.assign(number=NAN, learning_rate=frame["number"])
    assert compute_curves(grid)["sd_test_acc"].max() > 0


def test_an_incumbent_that_was_not_retrained_is_missing() -> None:
    """Its row has no accuracy, the first rows are left out, and a note says how many there are."""
    frame = search(*SEARCH, again={2: 0.7})
    assert prefix_curve(only(frame))["k"].tolist() == [3, 4]
    inner = search(*SEARCH[:3], (0.5, 40.0, 9.0), again={0: 0.8, 3: 0.6})
    np.testing.assert_equal(prefix_curve(only(inner))["expected_test_acc"].to_numpy(), [0.8, 0.8, NAN, 0.6])
    ((_, found),) = iterate_mean_curves(compute_steps(compute_curves(inner)))
    np.testing.assert_equal(found["bo"].at(np.array([15.0, 66.0, 67.0, 108.9, 109.0])), [0.8, 0.8, NAN, NAN, 0.6])
    assert "1 of 4 times the best so far was not retrained" in find_missing(inner)[0]
    assert "2 of 4 times the best so far was not retrained" in find_missing(frame)[0]
    assert find_missing(search(*SEARCH, again={0: 0.8, 2: 0.7})) == []


def test_a_search_whose_best_was_not_tested_has_no_curve() -> None:
    """If the best was not retrained, or has no test accuracy, there is no curve."""
    frame = search(*SEARCH, again={0: 0.8})
    assert compute_curves(frame).empty
    assert "the best configuration has no retrained run: no curve" in find_missing(frame)[0]
    assert compute_curves(search(*SEARCH, again={0: 0.8, 2: NAN})).empty
    assert set(compute_curves(search(*SEARCH, again={0: 0.8, 2: 0.7}))["k"]) == {1, 2, 3, 4}


def test_methods_that_learn_strengths_are_not_sequential() -> None:
    """Their learning rates are a set, of which the best was retrained with the learned strengths."""
    rows = [
        trial("hypergradient", "tune", value, 10.0 + i, number=i, learning_rate=10.0**-i)
        for i, value in enumerate((3.0, 1.0, 2.0, 4.0))
    ]
    learned = {"number": 1, "learning_rate": 0.1, "weight_decay": 0.02, "head_weight_decay": 0.03}
    frame = make_frame(*rows, trial("hypergradient", "retrain", 0.9, 5.0, **learned))
    found = only(frame)
    assert not found.is_sequential
    assert (found.accuracy[0], found.retraining_seconds[0]) == (0.9, 5.0)
    curve = compute_curves(frame).query("cost == 'train'")
    assert (curve["k"].tolist(), curve["expected_test_acc"].tolist()) == ([4], [0.9])
    np.testing.assert_allclose(3600 * curve["expected_hours"], [46 + 5])


def test_ties_go_to_the_lowest_number() -> None:
    """Equal validation NLLs are decided by the number, whatever the keys are."""
    frame = search((1.0, 10.0, 5.0), (1.0, 20.0, 6.0), (1.0, 30.0, 7.0), again={0: 0.8})  # the last has the least key
    assert only(frame).number.tolist() == [0, 1, 2]
    assert prefix_curve(only(frame))["expected_test_acc"].tolist() == [0.8] * 3


def test_segments_of_a_search_add_up() -> None:
    """Segments of successive halving share a number, and are matched with one retraining."""
    first, second = ({"number": i, "weight_decay": 0.01 * i} for i in range(2))
    rows = [
        trial("asha", "tune", 2.0, 1.0, until=0.1, **first),
        trial("asha", "tune", 1.0, 1.0, until=0.1, **second),
        trial("asha", "tune", 1.5, 9.0, since=0.1, **second),
        trial("asha", "retrain", 0.6, 10.0, **second),
        trial("asha", "retrain", 0.5, 10.0, **first),
    ]
    found = only(make_frame(*rows))
    results = found.tuning_seconds.tolist(), found.number.tolist(), found.accuracy.tolist()
    assert results == ([10, 1], [1, 0], [0.6, 0.5])
    np.testing.assert_allclose(3600 * prefix_curve(found)["expected_hours"], [11, 21])


def test_full_cost() -> None:
    """It adds learning of strengths, validation and selection to training steps."""
    more = {"adapt_seconds": 8.0, "evaluate_seconds": 4.0, "select_seconds": 2.0, "test_acc": 0.5}
    frame = make_frame(trial("laplace", "run", 0.0, 1.0, **more))
    assert only(frame, "full").tuning_seconds.tolist() == [15.0]
    assert only(frame).tuning_seconds.tolist() == [1.0]


@pytest.mark.parametrize("blank", ["", "None", None, "absent"])
def test_missing_columns_have_default_values(blank: str | None) -> None:
    """Published files lack newer settings, which then have their default values."""
    frame = make_frame(*(row for row in HALVING if row["until"] == 1), trial("elbo", "run", 1.0, 1.0, test_acc=0.5))
    later = ["kappa_share", "groups", "optimizer", "options", "until", "since", "number", "adapt_seconds"]
    bare = frame.drop(columns=later) if blank == "absent" else frame.assign(**dict.fromkeys(later[1:4], blank))
    if blank != "absent":
        bare = bare.assign(kappa_share=NAN, until=NAN, since=NAN, adapt_seconds=NAN)
    pd.testing.assert_frame_equal(compute_curves(bare), compute_curves(frame))
    pd.testing.assert_frame_equal(compute_table3(bare), compute_table3(frame))


def test_newer_settings_distinguish_configurations() -> None:
    """Configurations that differ in kappa_share, groups, optimizer or options are different ones."""
    first = {"test_acc": 0.5, "until": 0.5}
    for name, value in {"kappa_share": 0.1, "groups": "layer", "optimizer": "prodigy", "options": '{"a":1}'}.items():
        found = only(make_frame(trial("m", "run", 1.0, 1.0, **first), trial("m", "run", 2.0, 2.0, **{name: value})))
        assert found.tuning_seconds.tolist() == [2.0, 1.0], name


def test_pairs_of_methods_that_are_tested() -> None:
    """The paper's methods are tested in pairs, any other against its grid and DE ELBo, or without these all."""

    def pairs(*methods: str) -> list[tuple[str, str]]:
        rows = [trial(m, "run", 1.0, 1.0, seed=i, test_acc=0.5 + i / 100) for m in methods for i in range(3)]
        tests = compute_paired_tests(select_results(make_frame(*rows)))
        table = tests.query("unit == 'split' and measure == 'accuracy'")
        return list(zip(table["method"], table["against"], strict=True))

    found = pairs("map-gs", "de-elbo", "elbo", "x", "y")
    expected = {*combinations(("map-gs", "de-elbo", "elbo"), 2), *product("xy", ("map-gs", "de-elbo"))}
    assert {frozenset(pair) for pair in found} == {frozenset(pair) for pair in expected}
    assert pairs("x", "y") == [("y", "x")]


def test_cost_of_paired_tests() -> None:
    """Times against other methods than the paper's are the full cost where both recorded it, else training."""
    rows = [
        trial(m, "run", 1.0, 10.0, seed=i, test_acc=0.5, adapt_seconds=extra)
        for m, extra in (("de-elbo", 10.0), ("elbo", 30.0), ("laplace", 70.0))
        for i in range(3)
    ]
    frame = make_frame(*rows)

    def times(frame: pd.DataFrame) -> dict[str, tuple[float, str]]:
        tests = compute_paired_tests(select_results(frame)).query("unit == 'split' and measure == 'time'")
        table = tests.set_index("method")
        return {name: (round(row["median"], 6), row["cost"]) for name, row in table.iterrows()}

    assert times(frame) == {"elbo": (1.0, "train"), "laplace": (4.0, "full")}
    kept = ["evaluate_seconds", "select_seconds", "adapt_seconds"]
    frame.loc[(frame["method"] == "laplace") & (frame["seed"] == 1), kept] = NAN
    assert times(frame)["laplace"] == (1.0, "train")
    assert compute_paired_tests(select_results(frame)).query("measure == 'accuracy'")["cost"].isna().all()


def test_overview_has_the_full_cost_of_other_methods() -> None:
    """The full cost is shown if there is a method that the paper does not have."""
    rows = [trial(m, "run", 1.0, 10.0, test_acc=0.5, adapt_seconds=6.0) for m in ("de-elbo", "laplace")]
    table = overview(make_frame(*rows))
    assert table[["total_seconds", "total_seconds_full"]].to_numpy().tolist() == [[10.0, 16.0]] * 2
    assert "total_seconds_full" not in overview(make_frame(rows[0]))


def test_restarted_segments_are_noted() -> None:
    """Segments that were trained from the start, as their checkpoint was lost, are counted in a note."""
    frame = make_frame(*HALVING).assign(state_handed_over_at_step=[NAN, 0.0, 12.0, NAN, 5.0, NAN])
    (line,) = find_missing(frame)
    assert line == (
        "1 of 3 later segments were trained from the start, as the checkpoint of the segment before was lost: the "
        "seconds of these methods are too high (halving)."
    )
    assert find_missing(frame.assign(state_handed_over_at_step=7.0)) == []


def test_a_choice_without_a_metric_is_noted() -> None:
    """If several runs completed and none has its objective, a note says that one is chosen by name."""
    runs = [trial("m", "run", NAN, 1.0, learning_rate=rate, test_acc=0.5) for rate in (0.1, 0.2)]
    (line,) = find_missing(make_frame(*runs))
    assert line == "d, m, L2-SP: no run has objective: chosen by name, not by merit (N = 100 seed 1)."
    assert find_missing(make_frame(runs[0])) == []
    assert find_missing(make_frame(runs[0], runs[1] | {"objective": 1.0})) == []


def test_no_records_give_no_configurations() -> None:
    """An empty frame has no configurations, for either cost."""
    assert [*iterate_configurations(to_frame([])), *iterate_configurations(to_frame([]), "full")] == []
