"""The table of trials, and the order of rows."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice, permutations

import pandas as pd
import pytest

from bench.labels import METHOD_NAMES, PAPER_METHODS, PRIOR_NAMES, dataset_name, method_name
from bench.methods import METHODS
from bench.results.frame import sort_rows, to_frame
from bench.storage.records import RecordStore


@pytest.mark.parametrize(
    ("column", "names"), [("prior", PRIOR_NAMES), ("method", PAPER_METHODS), ("method", METHOD_NAMES)]
)
def test_priors_and_methods_are_in_order(column: str, names: Iterable[str]) -> None:
    """Priors and methods have the order of the papers, whatever order they came in; others follow."""
    known = [*names]
    for shuffled in islice(permutations(known), 12):
        table = pd.DataFrame({column: ["aaa", *reversed(shuffled)]})
        assert sort_rows(table)[column].tolist() == [*known, "aaa"]


def test_display_names() -> None:
    """Methods have their titles, other entries their own names, replays a suffix, and datasets spaces."""
    assert {method.name: method.title for method in METHODS} == METHOD_NAMES
    assert method_name("map-gs (replayed)") == "MAP + GS (replayed)"
    assert [method_name(name) for name in ("de-elbo-layer", "x (replayed)")] == ["de-elbo-layer", "x (replayed)"]
    assert dataset_name("Oxford-IIIT_Pet") == "Oxford-IIIT Pet"


def test_other_entries_are_sorted_by_name() -> None:
    """They follow all methods, and a replayed entry follows the entry itself."""
    expected = ["map-gs", "map-gs (replayed)", "elbo", "elbo-b", "elbo-c", "elbo-c (replayed)", "z"]
    for names in (expected, expected[::-1], expected[3:] + expected[:3]):
        assert sort_rows(pd.DataFrame({"method": names}))["method"].tolist() == expected


def test_order_of_columns() -> None:
    """Rows are sorted by dataset, backbone, N, prior, method, source, then other columns."""
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
    """The row of all cells together has no N, and follows those that have one."""
    table = pd.DataFrame({"dataset": "A", "n": pd.array([None, 100, 10], dtype="Int64")})
    assert sort_rows(table)["n"].tolist() == [10, 100, pd.NA]


@pytest.mark.parametrize("columns", [["prior"], ["method", "prior"]])
def test_equal_rows_keep_their_order(columns: list[str]) -> None:
    """Rows that agree in all sorted columns keep their order, and are numbered anew."""
    table = pd.DataFrame({"prior": [*PRIOR_NAMES, "other"] * 60, "method": ["elbo", "map-gs"] * 120, "i": range(240)})
    ordered = sort_rows(table[[*columns, "i"]])
    assert ordered.index.tolist() == list(range(240))
    for _, group in ordered.groupby(columns):
        assert group["i"].tolist() == sorted(group["i"])


def test_trials_that_run_at_the_same_time_are_counted(storage: RecordStore) -> None:
    """A trial counts itself and those that run as it starts and as it ends, also those that are not shown."""
    spans = [(0.0, 10.0), (0.0, 4.0), (4.0, 6.0), (6.0, 20.0), (30.0, 30.0)]
    records = [
        replace(record, started=started, finished=finished)
        for record, (started, finished) in zip(storage.records(), spans, strict=False)
    ]
    frame = to_frame(records).set_index("key").loc[[record.key for record in records]]
    assert frame["concurrency_start"].tolist() == [2, 2, 2, 2, 1]
    assert frame["concurrency_end"].tolist() == [2, 2, 2, 1, 1]
    assert to_frame(records[:1], ran=records)["concurrency_end"].tolist() == [2]
