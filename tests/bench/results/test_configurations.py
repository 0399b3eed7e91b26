"""What belongs together as one configuration, what it costs, which is best; and the curve of one after the other."""

from __future__ import annotations

import itertools
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
from tests.helpers.result_frames import frame_made, overview, trial

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


@pytest.mark.parametrize("order", [*itertools.islice(itertools.permutations(range(6)), 0, 720, 97)])
def test_stretches_are_one_configuration(order: tuple[int, ...]) -> None:
    """Seconds of all stretches add up, the last judges; whoever went further ranks before, whatever it is judged by."""
    found = only(frame_made(*(HALVING[i] for i in order)))
    assert found.tuning_seconds.tolist() == [10.0, 4.0, 1.25]
    assert found.fraction.tolist() == [1.0, 0.3, 0.1]
    np.testing.assert_equal(found.accuracy, [0.9, NAN, NAN])
    assert (found.num_trials, found.is_sequential, found.stopped_early.tolist()) == (6, False, [False, True, True])
    assert only(frame_made(*HALVING), "full").tuning_seconds.tolist() == [10.5, 4.0, 1.25]


def test_a_rung_ranks_by_its_value() -> None:
    """Among those given up at the same rung the lesser objective is first; one that diverged there is last."""
    lost = rung(0.4, 0.0, 0.1, NAN, 1.0, status="diverged")
    frame = frame_made(lost, rung(0.5, 0.0, 0.1, 2.0, 1.0), *HALVING[:3], rung(0.6, 0.0, 0.1, 1.0, 1.0))
    assert frame.loc[only(frame).selection_rows, "learning_rate"].tolist() == [0.1, 0.6, 0.5, 0.4]


def test_what_gave_up_configurations_is_a_whole() -> None:
    """A halving has the end of its curve alone, with all its stretches paid for, and that is no hole."""
    frame = frame_made(*HALVING)
    curve = exact_curve(only(frame))
    assert curve[["k", "expected_hours", "expected_test_acc"]].to_numpy().tolist() == [[3, 15.25 / 3600, 0.9]]
    assert sampled_curve(only(frame))["expected_test_acc"].tolist() == [pytest.approx(0.9)]
    assert find_missing(frame) == []
    assert "1 of 1 runs have no test accuracy, the chosen one among them" in find_missing(frame.assign(test_acc=NAN))[0]
    assert "no run was trained to its end" in find_missing(frame[frame["until"] < 1])[0]


def test_table_2_counts_every_stretch() -> None:
    """num_runs is how many trials were judged, mean_run_seconds their mean, total_seconds their sum."""
    (row,) = compute_table2(frame_made(*HALVING)).to_dict("records")
    assert (row["num_runs"], row["total_seconds"], row["total_seconds_full"]) == (6, 15.25, 15.75)
    assert row["mean_run_seconds"] == pytest.approx(15.25 / 6)


def search(*runs: tuple[float, float, float], again: dict[int, float], name: str = "bo") -> pd.DataFrame:
    """A search one after the other: (validation NLL, seconds, seconds of training again); ``again``: accuracies."""
    rows = []
    for number, (value, seconds, retraining) in enumerate(runs):
        more = {"number": number, "learning_rate": 0.1, "weight_decay": 0.01}  # one may be tried twice
        rows.append(trial(name, "tune", value, seconds, **more))
        if number in again:
            rows.append(trial(name, "retrain", again[number], retraining, **more))
    return frame_made(*rows[::-1])


SEARCH = ((3.0, 10.0, 5.0), (4.0, 20.0, 6.0), (1.0, 30.0, 7.0), (2.0, 40.0, 8.0))


def test_a_search_is_its_beginning() -> None:
    """Row k: the seconds of its first k configurations and of training again the best of them, and that one's
    accuracy, which may fall; those that were the best for a while and were trained again cost nothing later."""
    found = only(search(*SEARCH, again={0: 0.8, 2: 0.7}))
    assert found.is_sequential
    assert found.number.tolist() == [2, 3, 0, 1]
    curve = prefix_curve(found)
    assert curve["k"].tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(3600 * curve["expected_hours"], [15, 35, 67, 107])
    assert curve["expected_test_acc"].tolist() == curve["q10_test_acc"].tolist() == [0.8, 0.8, 0.7, 0.7]
    assert curve["sd_test_acc"].tolist() == [0.0] * 4


def test_the_curves_of_a_search_are_prefixes() -> None:
    """`compute_curves` gives prefixes for what has numbers, sampled or not, and subsets for what has none."""
    frame = search(*SEARCH, again={i: 0.1 * i for i in range(4)})
    for subsamples in (None, 50):
        table = compute_curves(frame, subsamples)
        assert table.loc[table["cost"] == "train", "expected_test_acc"].tolist() == [0.0, 0.0, 0.2, 0.2]
    grid = frame.assign(number=NAN, learning_rate=frame["number"])
    assert compute_curves(grid)["sd_test_acc"].max() > 0


def test_an_unknown_incumbent_leaves_a_hole() -> None:
    """Of rows whose best so far was not trained again nothing is known: the first are left out, later ones are missing
    instead of standing where the method stood before; and the hole is told."""
    frame = search(*SEARCH, again={2: 0.7})
    assert prefix_curve(only(frame))["k"].tolist() == [3, 4]
    inner = search(*SEARCH[:3], (0.5, 40.0, 9.0), again={0: 0.8, 3: 0.6})
    np.testing.assert_equal(prefix_curve(only(inner))["expected_test_acc"].to_numpy(), [0.8, 0.8, NAN, 0.6])
    ((_, found),) = iterate_mean_curves(compute_steps(compute_curves(inner)))
    np.testing.assert_equal(found["bo"].at(np.array([15.0, 66.0, 67.0, 108.9, 109.0])), [0.8, 0.8, NAN, NAN, 0.6])
    assert "1 of 4 times the best so far was not retrained" in find_missing(inner)[0]
    assert "2 of 4 times the best so far was not retrained" in find_missing(frame)[0]
    assert find_missing(search(*SEARCH, again={0: 0.8, 2: 0.7})) == []


def test_a_search_whose_winner_is_unknown_has_no_curve() -> None:
    """Where the best of all was not trained again, or has no test accuracy, nothing of it is drawn: what it came to
    before is not its end."""
    frame = search(*SEARCH, again={0: 0.8})
    assert compute_curves(frame).empty
    assert "the best configuration has no retrained run: no curve" in find_missing(frame)[0]
    assert compute_curves(search(*SEARCH, again={0: 0.8, 2: NAN})).empty
    assert set(compute_curves(search(*SEARCH, again={0: 0.8, 2: 0.7}))["k"]) == {1, 2, 3, 4}


def test_numbers_without_strengths_are_no_order() -> None:
    """Of a method that learns its strengths the numbers only say what was trained again, with the strengths that it
    learned: its rates are a set, of which the best was trained again, so that all of them are its only row."""
    rows = [
        trial("hypergradient", "tune", value, 10.0 + i, number=i, learning_rate=10.0**-i)
        for i, value in enumerate((3.0, 1.0, 2.0, 4.0))
    ]
    learned = {"number": 1, "learning_rate": 0.1, "weight_decay": 0.02, "head_weight_decay": 0.03}
    frame = frame_made(*rows, trial("hypergradient", "retrain", 0.9, 5.0, **learned))
    found = only(frame)
    assert not found.is_sequential
    assert (found.accuracy[0], found.retraining_seconds[0]) == (0.9, 5.0)
    curve = compute_curves(frame).query("cost == 'train'")
    assert (curve["k"].tolist(), curve["expected_test_acc"].tolist()) == ([4], [0.9])
    np.testing.assert_allclose(3600 * curve["expected_hours"], [46 + 5])


def test_of_equals_the_least_number_is_chosen() -> None:
    """Equal validation NLLs are decided by the number, whatever the keys are, as the search itself decides."""
    frame = search((1.0, 10.0, 5.0), (1.0, 20.0, 6.0), (1.0, 30.0, 7.0), again={0: 0.8})  # the last has the least key
    assert only(frame).number.tolist() == [0, 1, 2]
    assert prefix_curve(only(frame))["expected_test_acc"].tolist() == [0.8] * 3


def test_rungs_of_a_search_add_up() -> None:
    """Successive halving one after the other: rungs have one number, and are matched with one retraining."""
    first, second = ({"number": i, "weight_decay": 0.01 * i} for i in range(2))
    rows = [
        trial("asha", "tune", 2.0, 1.0, until=0.1, **first),
        trial("asha", "tune", 1.0, 1.0, until=0.1, **second),
        trial("asha", "tune", 1.5, 9.0, since=0.1, **second),
        trial("asha", "retrain", 0.6, 10.0, **second),
        trial("asha", "retrain", 0.5, 10.0, **first),
    ]
    found = only(frame_made(*rows))
    assert (found.tuning_seconds.tolist(), found.number.tolist(), found.accuracy.tolist()) == (
        [10, 1],
        [1, 0],
        [0.6, 0.5],
    )
    np.testing.assert_allclose(3600 * prefix_curve(found)["expected_hours"], [11, 21])


def test_learning_strengths_is_part_of_the_full_cost() -> None:
    """Full cost = training + learning of strengths + evaluation + selection; training steps alone otherwise."""
    more = {"adapt_seconds": 8.0, "evaluate_seconds": 4.0, "select_seconds": 2.0, "test_acc": 0.5}
    frame = frame_made(trial("laplace", "run", 0.0, 1.0, **more))
    assert only(frame, "full").tuning_seconds.tolist() == [15.0]
    assert only(frame).tuning_seconds.tolist() == [1.0]


@pytest.mark.parametrize("blank", ["", "None", None, "absent"])
def test_files_without_the_later_columns_mean_their_defaults(blank: str | None) -> None:
    """Published files know nothing of kappa's share, groups, optimizers, stretches: they stand at their defaults."""
    frame = frame_made(*(row for row in HALVING if row["until"] == 1), trial("elbo", "run", 1.0, 1.0, test_acc=0.5))
    later = ["kappa_share", "groups", "optimizer", "options", "until", "since", "number", "adapt_seconds"]
    bare = frame.drop(columns=later) if blank == "absent" else frame.assign(**dict.fromkeys(later[1:4], blank))
    if blank != "absent":
        bare = bare.assign(kappa_share=NAN, until=NAN, since=NAN, adapt_seconds=NAN)
    pd.testing.assert_frame_equal(compute_curves(bare), compute_curves(frame))
    pd.testing.assert_frame_equal(compute_table3(bare), compute_table3(frame))


def test_entries_that_differ_by_a_later_setting_are_apart() -> None:
    """kappa's share, groups, optimizer and options tell configurations of one entry apart."""
    first = {"test_acc": 0.5, "until": 0.5}
    for name, value in {"kappa_share": 0.1, "groups": "layer", "optimizer": "prodigy", "options": '{"a":1}'}.items():
        found = only(frame_made(trial("m", "run", 1.0, 1.0, **first), trial("m", "run", 2.0, 2.0, **{name: value})))
        assert found.tuning_seconds.tolist() == [2.0, 1.0], name


def test_other_methods_are_tested_against_grid_and_de_elbo() -> None:
    """Every two of the paper's methods are compared, and any other with its grid and DE ELBo; without these, all."""

    def pairs(*methods: str) -> list[tuple[str, str]]:
        rows = [trial(m, "run", 1.0, 1.0, seed=i, test_acc=0.5 + i / 100) for m in methods for i in range(3)]
        table = compute_paired_tests(select_results(frame_made(*rows))).query(
            "unit == 'split' and measure == 'accuracy'"
        )
        return list(zip(table["method"], table["against"], strict=True))

    found = pairs("map-gs", "de-elbo", "elbo", "x", "y")
    assert {frozenset(pair) for pair in found} == {
        frozenset(pair)
        for pair in (
            ("map-gs", "de-elbo"),
            ("map-gs", "elbo"),
            ("de-elbo", "elbo"),
            ("x", "map-gs"),
            ("x", "de-elbo"),
            ("y", "map-gs"),
            ("y", "de-elbo"),
        )
    }
    assert pairs("x", "y") == [("y", "x")]


def test_what_others_need_beside_training_counts_in_their_pairs() -> None:
    """Time against a method that is not the paper's is the full cost where both kept it, else training steps alone, as
    between the paper's methods; each row says which."""
    rows = [
        trial(m, "run", 1.0, 10.0, seed=i, test_acc=0.5, adapt_seconds=extra)
        for m, extra in (("de-elbo", 10.0), ("elbo", 30.0), ("laplace", 70.0))
        for i in range(3)
    ]
    frame = frame_made(*rows)

    def times(frame: pd.DataFrame) -> dict[str, tuple[float, str]]:
        table = (
            compute_paired_tests(select_results(frame))
            .query("unit == 'split' and measure == 'time'")
            .set_index("method")
        )
        return {name: (round(row["median"], 6), row["cost"]) for name, row in table.iterrows()}

    assert times(frame) == {"elbo": (1.0, "train"), "laplace": (4.0, "full")}
    kept = ["evaluate_seconds", "select_seconds", "adapt_seconds"]
    frame.loc[(frame["method"] == "laplace") & (frame["seed"] == 1), kept] = NAN
    assert times(frame)["laplace"] == (1.0, "train")
    assert compute_paired_tests(select_results(frame)).query("measure == 'accuracy'")["cost"].isna().all()


def test_table_3_has_the_full_cost_of_other_methods() -> None:
    """Beside the total of training steps stands the full cost once a method is not the paper's."""
    rows = [trial(m, "run", 1.0, 10.0, test_acc=0.5, adapt_seconds=6.0) for m in ("de-elbo", "laplace")]
    table = overview(frame_made(*rows))
    assert table[["total_seconds", "total_seconds_full"]].to_numpy().tolist() == [[10.0, 16.0]] * 2
    assert "total_seconds_full" not in overview(frame_made(rows[0]))


def test_parts_that_began_anew_are_told() -> None:
    """Later parts of runs that were trained from their start, as the part before was lost, cost more than they should,
    and it is said how many they are."""
    frame = frame_made(*HALVING).assign(state_handed_over_at_step=[NAN, 0.0, 12.0, NAN, 5.0, NAN])
    (line,) = find_missing(frame)
    assert line == (
        "1 of 3 later segments were trained from the start, as the checkpoint of the segment before was lost: the "
        "seconds of these methods are too high (halving)."
    )
    assert find_missing(frame.assign(state_handed_over_at_step=7.0)) == []


def test_a_choice_without_merit_is_told() -> None:
    """Where several runs completed and none has its objective, one is chosen by its name, and that is said; one run
    alone, or one that has its objective, needs no such line."""
    runs = [trial("m", "run", NAN, 1.0, learning_rate=rate, test_acc=0.5) for rate in (0.1, 0.2)]
    (line,) = find_missing(frame_made(*runs))
    assert line == "d, m, L2-SP: no run has objective: chosen by name, not by merit (N = 100 seed 1)."
    assert find_missing(frame_made(runs[0])) == []
    assert find_missing(frame_made(runs[0], runs[1] | {"objective": 1.0})) == []


def test_no_records_are_no_configurations() -> None:
    """An empty frame gives nothing, for either cost."""
    assert [*iterate_configurations(to_frame([])), *iterate_configurations(to_frame([]), "full")] == []
