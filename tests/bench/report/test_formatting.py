"""Tables as text: the papers' names, durations, hidden columns, Markdown."""

import math
from typing import Any

import pandas as pd
import pytest

from bench.report.formatting import COLUMN_FORMATS, format_seconds, format_table, to_markdown, visible_columns

NAN, INF = float("nan"), float("inf")

DURATIONS = [
    (0, "0.0 s"),
    (4.2, "4.2 s"),
    (59.94, "59.9 s"),
    (59.95, "1 min 0 s"),
    (59.999, "1 min 0 s"),
    (60, "1 min 0 s"),
    (39 * 60 + 10.6, "39 min 11 s"),
    (3599.4, "59 min 59 s"),
    (3599.6, "1 h 0 min 0 s"),
    (3600, "1 h 0 min 0 s"),
    (16 * 3600 + 15 * 60 + 55.2, "16 h 15 min 55 s"),
    (149 * 3600 + 36 * 60 + 5, "149 h 36 min 5 s"),
    (INF, "never"),
    (NAN, "-"),
    (pd.NA, "-"),
]


@pytest.mark.parametrize(("seconds", "text"), DURATIONS, ids=[str(seconds) for seconds, _ in DURATIONS])
def test_durations(seconds: Any, text: str) -> None:
    """Durations are formatted as in the paper's table 2; rounding carries over, so that no 60 s or 60 min appear."""
    assert format_seconds(seconds) == text


TABLE = pd.DataFrame(
    {
        "source": ["", ""],
        "total_seconds": [3661.0, NAN],
        "prior": ["l2-sp", "other"],
        "method": ["map-gs", "de-elbo"],
        "n": [50000, 100],
        "mean": [97.14, NAN],
        "zebra": ["x", "y"],
        "published_mean": [NAN, NAN],
    }
)


def test_tables_use_the_names_and_formats_of_the_papers() -> None:
    """Columns have the papers' order, headings, names and decimals; unknown columns follow; missing values are -."""
    shown = format_table(TABLE)
    assert list(shown.columns) == ["N", "Model", "method", "mean %", "total", "zebra"]
    assert shown.to_numpy().tolist() == [
        ["50,000", "L2-SP", "MAP + GS", "97.1", "1 h 1 min 1 s", "x"],
        ["100", "other", "DE ELBo", "-", "-", "y"],
    ]


def test_columns_without_information_are_hidden() -> None:
    """A column without any value, and a source, backbone or cost that all rows share, is hidden."""
    table = TABLE.assign(backbone="resnet50", cost=["train", "full"], dataset="CIFAR-10", published_mean=[97.1, NAN])
    shown = {name for name, *_ in visible_columns(table)}
    assert not {"backbone", "source"} & shown
    assert {"cost", "dataset", "published_mean"} <= shown
    assert {"source", "backbone"} <= {
        name for name, *_ in visible_columns(table.assign(source=list("ab"), backbone=list("cd")))
    }


def test_lost_runs_are_shown_if_there_are_any() -> None:
    """The columns of diverged and failed runs are shown if a value is not zero."""
    for lost, expected in ((0, False), (2, True)):
        shown = {name for name, *_ in visible_columns(TABLE.assign(diverged=[0, lost], failed=[NAN, lost]))}
        assert ({"diverged", "failed"} <= shown) == expected
        assert bool({"diverged", "failed"} & shown) == expected


def test_a_table_without_rows_keeps_its_columns() -> None:
    """An empty table shows its columns, except those that are hidden if all rows agree."""
    names = " ".join(name for name, *_ in visible_columns(TABLE.iloc[:0]))
    assert names == "n prior method mean total_seconds published_mean zebra"


def test_headings_are_all_different() -> None:
    """No two columns have the same heading, as one would replace the other."""
    headings = [heading for heading, _ in COLUMN_FORMATS.values()]
    assert len(set(headings)) == len(headings)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("n", pd.NA, "all"),
        ("split_seed", pd.NA, "all"),
        ("split_seed", 1001, "1001"),
        ("dataset", "Oxford-IIIT_Pet", "Oxford-IIIT Pet"),
        ("published_total_seconds", 2 * 3600 + 36 * 60, "2 h 36 min"),
        ("published_total_seconds", 2 * 3600, "2 h 0 min"),
        ("grid_hours", INF, "never"),
        ("grid_hours", 0.5, "30 min 0 s"),
        ("times_as_long", INF, "never"),
        ("times_as_long", 12.34, "12.3 x"),
        ("times_as_long", NAN, "-"),
        ("de_elbo_acc", 0.9685, "96.9"),
        ("p", 0.0004, "< 0.001"),
        ("p", 0.0316, "0.032"),
        ("p", NAN, "-"),
        ("learned_alpha", 4.25e-8, "4.25e-08"),
        ("measure", "time", "time, ratio"),
        ("unit", "mean", "means over splits"),
        ("diverged", 2.0, "2"),
        ("diverged", NAN, "-"),
        ("failed", NAN, "-"),
        ("grid_k", NAN, "-"),
        ("grid_k", 12.0, "12"),
    ],
)
def test_values_are_formatted_by_column(name: str, value: Any, text: str) -> None:
    """Each column has its format, also for missing and infinite values."""
    assert COLUMN_FORMATS[name][1](value) == text


def test_markdown_is_a_table() -> None:
    """Markdown has a heading, a rule, and a line per row, each with a cell per visible column."""
    lines = to_markdown(TABLE).splitlines()
    assert len(lines) == 2 + len(TABLE)
    assert lines[0] == "| N | Model | method | mean % | total | zebra |"
    assert set(lines[1]) == {"|", "-"}
    assert {line.count("|") for line in lines} == {6 + 1}
    assert to_markdown(TABLE.iloc[:0]).count("\n") == 2


def test_a_bar_does_not_break_markdown() -> None:
    """A bar in a name, as a folder may have, is escaped."""
    lines = to_markdown(pd.DataFrame({"source": ["a|b", "c"], "mean": [1.0, math.pi]})).splitlines()
    assert len(lines) == 4
    assert {line.replace(r"\|", "").count("|") for line in lines} == {3}
