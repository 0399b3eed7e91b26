"""The table of trials that all results are computed from: its columns, the order of rows, and groups of rows."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pandas as pd

from bench.labels import METHOD_NAMES, PRIOR_NAMES, REPLAY_SUFFIX
from bench.trials.record import TrialRecord


def sort_rows(table: pd.DataFrame, *last: str) -> pd.DataFrame:
    """Sort by dataset, backbone, N, prior, method, source, then ``last``; priors and methods as in `bench.labels`."""
    by = [name for name in ("dataset", "backbone", "n", "prior", "method", "source", *last) if name in table]
    return table.sort_values(by, key=_sort_key, ignore_index=True, kind="stable")


def iterate_groups(
    table: pd.DataFrame, by: Sequence[str], sort: bool = False
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Iterate over groups of rows that agree in ``by``, also in missing values: shared values by name, and rows."""
    for values, rows in table.groupby(list(by), sort=sort, dropna=False):
        yield dict(zip(by, values, strict=True)), rows


def _sort_key(column: pd.Series) -> pd.Series:
    if column.name not in ("prior", "method"):
        return column
    known = list(PRIOR_NAMES if column.name == "prior" else METHOD_NAMES)

    def rank(name: str) -> tuple[int, str, bool]:
        entry = name.removesuffix(REPLAY_SUFFIX)
        return (known.index(entry), "", entry != name) if entry in known else (len(known), entry, entry != name)

    places = {name: place for place, name in enumerate(sorted(column.unique(), key=rank))}
    return column.map(places)


COLUMNS: dict[str, Literal["str", "int64", "float64"]] = {
    "source": "str",
    "key": "str",
    "dataset": "str",
    "backbone": "str",
    "method": "str",
    "prior": "str",
    "n": "int64",
    "seed": "int64",
    "stage": "str",
    "learning_rate": "float64",
    "weight_decay": "float64",
    "head_weight_decay": "float64",
    "prior_scale": "float64",
    "kappa": "float64",
    "kappa_share": "float64",
    "groups": "str",
    "optimizer": "str",
    "until": "float64",
    "since": "float64",
    "number": "float64",
    "options": "str",
    "noise_until": "float64",
    "final_batchnorm": "str",
    "closing_batchnorm": "str",
    "start_alpha": "float64",
    "status": "str",
    "val_nll": "float64",
    "val_acc": "float64",
    "test_nll": "float64",
    "test_acc": "float64",
    "test_ece": "float64",
    "test_brier": "float64",
    "predictive_nll": "float64",
    "predictive_acc": "float64",
    "predictive_ece": "float64",
    "predictive_brier": "float64",
    "objective": "float64",
    "nll_under_q": "float64",
    "train_seconds": "float64",
    "evaluate_seconds": "float64",
    "select_seconds": "float64",
    "adapt_seconds": "float64",
    "checkpoint_seconds": "float64",
    "choose_seconds": "float64",
    "total_seconds": "float64",
    "started": "float64",
    "finished": "float64",
    "concurrency_start": "float64",
    "concurrency_end": "float64",
}
"""Column types of the table of trials, one row per trial; docs/records.md describes each column."""


def to_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert a table to rows of plain values, as JSON has them: numbers that are missing or not finite are None."""
    finite = table.replace([math.inf, -math.inf], math.nan)
    rows = finite.astype(object).where(finite.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def to_frame(records: list[TrialRecord], source: str = "", ran: Sequence[TrialRecord] | None = None) -> pd.DataFrame:
    """Convert records to a table: the columns of `COLUMNS`, then the learned state (``state_*``).

    Trials at the same time are counted among ``ran``, all records of the storage (default: ``records``).
    """
    rows = []
    starts, ends = sorted(r.started for r in ran or records), sorted(r.finished for r in ran or records)
    for record in records:
        row: dict[str, Any] = {name: getattr(record.spec, name, None) for name in COLUMNS}
        row |= {
            "source": source,
            "key": record.key,
            "status": record.status,
            "started": record.started,
            "finished": record.finished,
            "concurrency_start": max(1, bisect_right(starts, record.started) - bisect_right(ends, record.started)),
            "concurrency_end": max(1, bisect_left(starts, record.finished) - bisect_left(ends, record.finished)),
        }
        row |= {name: value for name, value in record.metrics.items() if name in COLUMNS}
        row |= {f"{phase}_seconds": value for phase, value in record.seconds.items()}
        row |= {f"state_{name}": value for name, value in record.state.items()}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else list(COLUMNS))
    return frame.astype(COLUMNS).sort_values(
        ["dataset", "prior", "n", "seed", "method", "stage", "key"], ignore_index=True
    )
