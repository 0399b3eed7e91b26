"""The table of trials, and the order of rows: as the papers' tables list them."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pandas as pd
import pytest

from bench.labels import METHOD_NAMES, PRIOR_NAMES, dataset_name, method_name
from bench.methods import METHODS
from bench.results.frame import sort_rows, to_frame
from bench.storage.records import RecordStore


@pytest.mark.parametrize("shuffled", [*permutations(["l2-zero", "l2-sp", "ptyl"])])
def test_priors_are_in_the_papers_order(shuffled: tuple[str, ...]) -> None:
    """L2-zero, L2-SP, PTYL, whatever order they came in; by the alphabet L2-SP would be first."""
    assert sort_rows(pd.DataFrame({"prior": shuffled}))["prior"].tolist() == ["l2-zero", "l2-sp", "ptyl"]


@pytest.mark.parametrize("shuffled", [*permutations(["map-gs", "de-elbo", "elbo"])])
def test_methods_are_in_the_papers_order(shuffled: tuple[str, ...]) -> None:
    """MAP + GS, DE ELBo, ELBo."""
    assert sort_rows(pd.DataFrame({"method": shuffled}))["method"].tolist() == ["map-gs", "de-elbo", "elbo"]


@pytest.mark.parametrize(("column", "names"), [("prior", PRIOR_NAMES), ("method", METHOD_NAMES)])
def test_unknown_names_are_last(column: str, names: dict[str, str]) -> None:
    """A prior or method that the papers do not have comes behind all that they have."""
    table = pd.DataFrame({column: ["aaa", *reversed(names)]})
    assert sort_rows(table)[column].tolist() == [*names, "aaa"]


def test_methods_have_their_own_titles() -> None:
    """What a method is called stands with the method; an entry of another name is called as it is, and what was
    replayed is said to be."""
    assert {method.name: method.title for method in METHODS} == METHOD_NAMES
    assert method_name("map-gs (replayed)") == "MAP + GS (replayed)"
    assert [method_name(name) for name in ("de-elbo-layer", "x (replayed)")] == ["de-elbo-layer", "x (replayed)"]


def test_other_entries_are_by_the_alphabet() -> None:
    """Behind all methods, whatever order they came in; what was replayed is behind itself."""
    expected = ["map-gs", "map-gs (replayed)", "elbo", "elbo-b", "elbo-c", "elbo-c (replayed)", "z"]
    for names in (expected, expected[::-1], expected[3:] + expected[:3]):
        assert sort_rows(pd.DataFrame({"method": names}))["method"].tolist() == expected


def test_the_cell_comes_before_prior_and_method() -> None:
    """By dataset, backbone and N as a number; in each by prior, then method, then source, then what else is asked."""
    rows = [
        ("A", "r", 100, "l2-zero", "map-gs", "x", 1),
        ("A", "r", 100, "l2-zero", "map-gs", "x", 2),
        ("A", "r", 100, "l2-zero", "map-gs", "y", 1),
        ("A", "r", 100, "l2-zero", "de-elbo", "x", 1),
        ("A", "r", 100, "l2-sp", "map-gs", "x", 1),
        ("A", "r", 1000, "l2-zero", "map-gs", "x", 1),
        ("A", "s", 100, "l2-zero", "map-gs", "x", 1),
        ("B", "r", 100, "l2-zero", "map-gs", "x", 1),
    ]
    columns = ["dataset", "backbone", "n", "prior", "method", "source", "split_seed"]
    table = pd.DataFrame(rows, columns=columns)
    for seed in range(5):
        ordered = sort_rows(table.sample(frac=1, random_state=seed), "split_seed")
        pd.testing.assert_frame_equal(ordered, table)


def test_a_missing_n_is_last() -> None:
    """The row of all cells together has no N, and stands behind those that have one."""
    table = pd.DataFrame({"dataset": "A", "n": pd.array([None, 100, 10], dtype="Int64")})
    assert sort_rows(table)["n"].tolist() == [10, 100, pd.NA]


@pytest.mark.parametrize("columns", [["prior"], ["method", "prior"]])
def test_equal_rows_keep_their_order(columns: list[str]) -> None:
    """Rows that differ in nothing that is sorted by stay in the order in which they came, and are numbered anew."""
    table = pd.DataFrame({"prior": [*PRIOR_NAMES, "other"] * 60, "method": ["elbo", "map-gs"] * 120, "i": range(240)})
    ordered = sort_rows(table[[*columns, "i"]])
    assert ordered.index.tolist() == list(range(240))
    for _, group in ordered.groupby(columns):
        assert group["i"].tolist() == sorted(group["i"])


def test_the_table_given_is_left_alone() -> None:
    """A new table comes back."""
    table = pd.DataFrame({"prior": ["ptyl", "l2-zero"], "n": [2, 1]}, index=[7, 8])
    before = table.copy()
    sort_rows(table)
    pd.testing.assert_frame_equal(table, before)


def test_a_title_has_spaces() -> None:
    """Oxford-IIIT_Pet is said as Oxford-IIIT Pet."""
    assert dataset_name("Oxford-IIIT_Pet") == "Oxford-IIIT Pet"


def test_trials_that_run_at_the_same_time_are_counted(storage: RecordStore) -> None:
    """A trial counts itself and those that run as it starts and as it ends, also those that are not shown; one that
    ends when another starts is not beside it."""
    spans = [(0.0, 10.0), (0.0, 4.0), (4.0, 6.0), (6.0, 20.0), (30.0, 30.0)]
    records = [
        replace(record, started=started, finished=finished)
        for record, (started, finished) in zip(storage.records(), spans, strict=False)
    ]
    frame = to_frame(records).set_index("key").loc[[record.key for record in records]]
    assert frame["concurrency_start"].tolist() == [2, 2, 2, 2, 1]
    assert frame["concurrency_end"].tolist() == [2, 2, 2, 1, 1]
    assert to_frame(records[:1], ran=records)["concurrency_end"].tolist() == [2]
