"""The two sentences on the race: what they say follows from the numbers, whatever those are."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.report.all_methods import raced
from bench.report.race_narrative import race_sentences
from bench.results.budgets import budgets, time_to
from bench.results.curves import curves
from bench.results.ranking import ranking
from tests.bench.results.test_anytime import Curve
from tests.bench.results.test_budgets import RACE, TEN, key, problem
from tests.bench.results.test_ranking import results
from tests.helpers.result_frames import frame_made, trial

NO_RANKS = ranking(results({"a": [0.5]}))


def told(table: pd.DataFrame, units: dict[Any, float], ranks: pd.DataFrame = NO_RANKS) -> list[str]:
    return race_sentences(budgets(table, units), time_to(table, units), ranks)


def test_the_winners_of_each_budget_in_one_sentence() -> None:
    """Budgets in a row with the same winner are one stretch, with the accuracies at its ends; a single problem is
    named, and a run's seconds are said."""
    first, second = told(problem(RACE), TEN)
    assert first == (
        "Best for d, N = 100, L2-SP (a run takes 10 s; in brackets the accuracy relative to the grid's at its end): "
        "with the compute of 1-2 runs DE ELBo (81.2 %); with the compute of 4-32 runs MAP + GS (100.0 %)."
    )
    assert second == (
        "Soonest within 0.5 points of the best final accuracy is MAP + GS, in 1 of 1 combination, after a median of "
        "4.0 runs' compute."
    )


def test_over_several_problems_it_is_the_mean() -> None:
    """Of several problems their mean is told; with less compute than the first there is no winner, and it is said."""
    late: dict[str, list[Curve]] = {"map-gs": [[(40.0, 0.5)]], "x": [[(40.0, 0.6)]]}
    tables = pd.concat([problem(late), problem(late, n=7)])
    first, _ = told(tables, TEN | {key(n=7): 10.0})
    assert first == (
        "Best on average over 2 combinations of dataset, N and Model (a run takes 10 s on average; in brackets the "
        "accuracy relative to the grid's at its end): with the compute of 4 runs x (120.0 %); with less compute no "
        "method has a result in all of them."
    )


def test_who_is_first_at_the_end_and_how_sure() -> None:
    """The least mean rank, its interval, the share of draws and Friedman's p; those left out are named, ties share."""
    ranks = ranking(results({"map-gs": [0.9] * 8, "x": [0.8] * 8, "y": [0.7] * 8, "z": [None] + [0.99] * 7}))
    (sentence,) = told(problem(RACE).iloc[:0], {}, ranks)
    assert sentence == (
        "At the end MAP + GS ranks first of 3 methods in accuracy (mean rank 1.0 over 8 cells; without z; 95 % "
        "interval 1.0 to 1.0, first in 100 % of resamplings of 8 problems; Friedman p = 0.00034)."
    )
    (tied,) = told(problem(RACE).iloc[:0], {}, ranking(results({"x": [0.5] * 2, "y": [0.5] * 2})))
    assert "x and y rank first of 2 methods" in tied
    assert "(mean rank 1.5 each over 2 cells; 95 % interval 1.5 to 1.5, first in 50 % each of resamplings" in tied


def test_the_widest_interval_of_those_tied_for_first() -> None:
    """Of two that share the least mean rank, the interval that is told holds those of both."""
    ranks = ranking(results({"x": [0.9, 0.9], "y": [0.5, 0.5]})).assign(
        mean_rank=1.5, rank_low=[1.4, 1.2], rank_high=[1.6, 1.8], p_first=[0.4, 0.6]
    )
    (sentence,) = told(problem(RACE).iloc[:0], {}, ranks)
    assert "95 % interval 1.2 to 1.8, first in 40 to 60 % each of resamplings" in sentence


def test_the_soonest_of_as_many_are_all_named() -> None:
    """Two that are soonest in as many problems are told together, and never one of them alone."""
    x: dict[str, list[Curve]] = {"x": [[(10.0, 0.5)]], "y": [[(30.0, 0.5)]]}
    y: dict[str, list[Curve]] = {"x": [[(50.0, 0.5)]], "y": [[(20.0, 0.5)]]}
    _, second = told(pd.concat([problem(x), problem(y, n=7)]), TEN | {key(n=7): 10.0})
    assert second == (
        "Soonest within 0.5 points of the best final accuracy are x and y, in 1 each of 2 combinations, after a median "
        "of 1.0 and 2.0 runs' compute."
    )


def test_who_could_not_be_averaged_is_named() -> None:
    """A method that has no result in one of the problems is left out of their mean, and it is said, with the Model that
    it lacks where that is all."""
    grid: dict[str, list[Curve]] = {"map-gs": [[(10.0, 0.5)]]}
    both = grid | {"laplace": [[(10.0, 0.6)]]}
    units = TEN | {key(prior="ptyl"): 10.0, key(n=7): 10.0}
    first, _ = told(pd.concat([problem(both), problem(grid, prior="ptyl")]), units)
    assert first.endswith("MAP + GS (100.0 %); without Laplace, which lacks PTYL.")
    some = grid | {"x": [[(10.0, 0.6)]]}
    first, _ = told(pd.concat([problem(both), problem(some, n=7)]), units)
    assert first.endswith("; without Laplace, x, which lack some.")


def test_the_measure_is_the_grids_only_where_each_problem_has_one() -> None:
    """Where one problem has no grid, its accuracies are relative to the best method's, and it is said."""
    x: dict[str, list[Curve]] = {"x": [[(10.0, 0.5)]]}
    first, _ = told(pd.concat([problem(x | {"map-gs": [[(10.0, 0.4)]]}), problem(x, n=7)]), TEN | {key(n=7): 10.0})
    assert "relative to the grid's, or where there is none the best method's, at its end)" in first


def test_a_source_without_full_cost_is_named() -> None:
    """Beside a source that has the full cost, one that kept none leaves the race, and a note says so."""
    rows = [trial(m, "run", 1.0, 1.0, test_acc=0.5) for m in ("map-gs", "x")]
    bare = dict.fromkeys(("evaluate_seconds", "select_seconds", "adapt_seconds"))
    frame = frame_made(*(row | {"source": "a"} for row in rows), *(row | bare | {"source": "b"} for row in rows))
    race = raced(frame, curves(frame))
    assert race is not None
    assert set(race.anytime["source"]) == {"a"}
    assert [note for note in race.notes if note.startswith("The race: b is left out, as it kept no full cost")]
    assert len(race.notes) == 1


def test_one_problem_is_no_claim() -> None:
    """From splits of one problem no interval is told."""
    (sentence,) = told(problem(RACE).iloc[:0], {}, ranking(results({"x": [0.9, 0.8], "y": [0.5, 0.4]}, seeds=2)))
    assert "one problem, from which no claim can be made" in sentence
    assert "interval" not in sentence


def test_what_is_not_compared_is_named() -> None:
    """A method that lacks a split is drawn and not compared, and a note says so; the others are."""
    rows = [trial(m, "run", 1.0, 1.0, seed=seed, test_acc=0.5) for m in ("map-gs", "x") for seed in (1, 2)]
    frame = frame_made(*rows, trial("y", "run", 1.0, 1.0, test_acc=0.9))
    race = raced(frame, curves(frame))
    assert race is not None
    (note,) = race.notes
    assert note.startswith("The race: y is not compared in 1 combination of dataset, N and Model, as it lacks a split")
    assert set(race.anytime["method"]) == {"map-gs", "x", "y"}
    assert set(race.budgets["method"]) == {"map-gs", "x"}
    assert raced(frame[frame["method"] == "map-gs"], curves(frame[frame["method"] == "map-gs"])) is None


def test_sources_are_told_apart() -> None:
    """Of several sources each sentence begins with its own."""
    tables = pd.concat([problem(RACE, source="a"), problem(RACE, source="b")])
    lines = told(tables, {key(source="a"): 10.0, key(source="b"): 10.0})
    assert [line[:3] for line in lines] == ["a: ", "a: ", "b: ", "b: "]


def test_nothing_is_told_of_nothing() -> None:
    """Without any number there is no sentence."""
    assert told(problem(RACE).iloc[:0], {}) == []
