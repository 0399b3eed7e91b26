"""Tables as text: headings and number formats of the papers, and no columns without information."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import pandas as pd

from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.utils.text import format_duration

ColumnFormat: TypeAlias = tuple[str, str, Callable[[Any], str]]
"""A column: its name in the table, its heading, and the function that formats its values."""


def format_seconds(seconds: float) -> str:
    """Format a duration as in the paper's table 2 (16 h 15 min 55 s): "-" if missing, "never" if infinite."""
    return "-" if pd.isna(seconds) else "never" if math.isinf(seconds) else format_duration(seconds, exact=True)


def _optional(pattern: str, missing: str = "-", infinite: str | None = None) -> Callable[[Any], str]:
    def write(value: Any) -> str:
        if pd.isna(value):
            return missing
        return infinite if infinite is not None and math.isinf(value) else pattern.format(value)

    return write


_percent, _strength, _decimals = _optional("{:.1f}"), _optional("{:.3g}"), _optional("{:.2f}")
_integer = _optional("{:,.0f}")


def _format_hours(hours: float) -> str:
    return format_seconds(3600 * hours)


def _share(value: float) -> str:
    return _percent(100 * value)


def _format_p(value: float) -> str:
    return "-" if pd.isna(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _format_methods(names: str) -> str:
    return ", ".join(map(method_name, names.split(", "))) if names else "-"


COLUMN_FORMATS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "source": ("source", str),
    "dataset": ("dataset", lambda name: dataset_name(str(name))),
    "backbone": ("backbone", str),
    "n": ("N", _optional("{:,.0f}", missing="all")),
    "split_seed": ("seed", _optional("{:.0f}", missing="all")),
    "prior": ("Model", lambda name: PRIOR_NAMES.get(name, str(name))),
    "method": ("method", lambda name: method_name(str(name))),
    "against": ("against", lambda name: method_name(str(name))),
    "stage": ("stage", str),
    "completed": ("completed", _integer),
    "diverged": ("diverged", _integer),
    "failed": ("failed", _integer),
    # table 3
    "seeds": ("splits", _integer),
    "mean": ("mean %", _percent),
    "min": ("min %", _percent),
    "max": ("max %", _percent),
    # table 2
    "num_runs": ("runs", str),
    "mean_run_seconds": ("mean run", format_seconds),
    "total_seconds": ("total", format_seconds),
    "total_seconds_full": ("total, full cost", format_seconds),
    "published_run_seconds": ("published run", format_seconds),
    "published_runs": ("published runs", _integer),
    "published_total_seconds": (
        "published total (seed 1001)",
        lambda seconds: format_seconds(seconds).removesuffix(" 0 s"),
    ),
    "published_mean": ("published mean %", _percent),
    "published_min": ("published min %", _percent),
    "published_max": ("published max %", _percent),
    # equal compute
    "cost": ("time counted", lambda cost: "-" if pd.isna(cost) else str(cost)),
    "de_elbo_from": ("DE ELBo from", str),
    "de_elbo_hours": ("DE ELBo time", _format_hours),
    "de_elbo_acc": ("DE ELBo %", _share),
    "grid_acc": ("grid % in that time", _share),
    "grid_k": ("its runs", _integer),
    "grid_hours": ("grid's time to DE ELBo's %", _format_hours),
    "times_as_long": ("times as long", _optional("{:.1f} x", infinite="never")),
    # regularization
    "learned_alpha": ("learned alpha", _strength),
    "grid_alpha": ("grid's alpha", _strength),
    "learned_beta": ("learned beta", _strength),
    "grid_beta": ("grid's beta", _strength),
    "learned_lambda": ("lambda*", _strength),
    "grid_lambda": ("grid's lambda", _strength),
    "learned_tau": ("tau*", _strength),
    "learned_sigma": ("sigma", _strength),
    "learned_kappa": ("kappa", _strength),
    "learned_rate": ("learned at lr", _strength),
    "grid_rate": ("grid's lr", _strength),
    # paired tests
    "measure": ("measure", lambda name: {"accuracy": "accuracy, points", "time": "time, ratio"}.get(name, str(name))),
    "unit": ("over", lambda unit: {"split": "each split", "mean": "means over splits"}.get(unit, str(unit))),
    "cells": ("cells", _integer),
    "median": ("median", _decimals),
    "least": ("least", _decimals),
    "most": ("most", _decimals),
    "better": ("better in", str),
    "worse": ("worse in", str),
    "p": ("p", _format_p),
    "p_holm": ("p (Holm)", _format_p),
    "least_p": ("least p possible", _format_p),
    # all methods
    "over": ("over which", str),
    "mean_rank": ("mean rank", _decimals),
    "rank_low": ("from", _decimals),
    "rank_high": ("to", _decimals),
    "p_first": ("first in %", _share),
    "friedman_p": ("p (Friedman)", _format_p),
    "methods": ("methods", _integer),
    "problems": ("problems", _integer),
    "left_out": ("not ranked", _format_methods),
    "final_acc": ("at its end %", _share),
    "target_acc": ("to be reached %", _share),
    "seconds": ("reached after", format_seconds),
    "runs": ("in runs", _optional("{:.1f}", infinite="never")),
    # what if
    "one_slot_seconds": ("one after the other", format_seconds),
    "slots": ("slots", str),
    "makespan_seconds": ("with these slots", format_seconds),
}
"""Heading and format of each known column, in the order of display; other columns follow with their own names."""


def visible_columns(table: pd.DataFrame) -> list[ColumnFormat]:
    """Select the columns that carry information, in the order of `COLUMN_FORMATS`.

    Left out are columns without any value, a source, backbone or cost that is the same in all rows, and numbers of lost
    runs that are all 0.
    """
    order = {name: place for place, name in enumerate(COLUMN_FORMATS)}
    names = sorted(map(str, table.columns), key=lambda name: order.get(name, len(order)))
    hidden = {name for name in ("source", "backbone", "cost") if name in table and table[name].nunique() <= 1}
    hidden |= {name for name in ("diverged", "failed") if name in table and not table[name].any()}
    hidden |= {name for name in names if len(table) and (table[name].isna() | (table[name] == "")).all()}
    return [(name, *COLUMN_FORMATS.get(name, (name, str))) for name in names if name not in hidden]


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """Format the visible columns of a table as text."""
    columns = visible_columns(table)
    return pd.DataFrame({heading: table[name].map(write).astype(str) for name, heading, write in columns})


def to_markdown(table: pd.DataFrame) -> str:
    """Format a table in Markdown."""
    text = format_table(table).map(lambda cell: cell.replace("|", r"\|"))
    lines = ["| " + " | ".join(text.columns) + " |", "|" + "---|" * len(text.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in text.itertuples(index=False)]
    return "\n".join(lines) + "\n"
