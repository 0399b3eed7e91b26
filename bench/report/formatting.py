"""Tables for people: the papers' names, numbers that can be read, no column that says nothing. Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.utils.text import format_duration

__all__ = ["Shown", "duration_cell", "for_people", "markdown", "shown_columns"]


Shown = tuple[str, str, Callable[[Any], str]]
"""A column: its name in the table, its heading, and how its values are written."""


def duration_cell(seconds: float) -> str:
    """Format seconds as table 2 of the paper does (16 h 15 min 55 s): "-" if missing, "never" if infinite."""
    if pd.isna(seconds):
        return "-"
    return "never" if math.isinf(seconds) else format_duration(seconds, exact=True)


def _number(pattern: str) -> Callable[[Any], str]:
    return lambda value: "-" if pd.isna(value) else pattern.format(value)


_percent, _strength = _number("{:.1f}"), _number("{:.3g}")


def _whole_or(missing: str) -> Callable[[Any], str]:
    return lambda value: missing if pd.isna(value) else f"{int(value):,}"


def _hours(hours: float) -> str:
    return duration_cell(3600 * hours)


def _ratio(value: float) -> str:
    return "-" if pd.isna(value) else "never" if math.isinf(value) else f"{value:.1f} x"


def _share(value: float) -> str:
    return "-" if pd.isna(value) else f"{100 * value:.1f}"


def _p_value(value: float) -> str:
    return "-" if pd.isna(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _methods(names: str) -> str:
    return ", ".join(map(method_name, names.split(", "))) if names else "-"


def _runs(runs: float) -> str:
    return "-" if pd.isna(runs) else "never" if math.isinf(runs) else f"{runs:.1f}"


WORDS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "source": ("source", str),
    "dataset": ("dataset", lambda name: dataset_name(str(name))),
    "backbone": ("backbone", str),
    "n": ("N", _whole_or("all")),
    "split_seed": ("seed", lambda seed: "all" if pd.isna(seed) else str(int(seed))),
    "prior": ("Model", lambda name: PRIOR_NAMES.get(name, str(name))),
    "method": ("method", lambda name: method_name(str(name))),
    "against": ("against", lambda name: method_name(str(name))),
    "stage": ("stage", str),
    "completed": ("completed", _whole_or("-")),
    "diverged": ("diverged", _whole_or("-")),
    "failed": ("failed", _whole_or("-")),
    # table 3
    "seeds": ("splits", _whole_or("-")),
    "mean": ("mean %", _percent),
    "min": ("min %", _percent),
    "max": ("max %", _percent),
    # table 2
    "num_runs": ("runs", str),
    "mean_run_seconds": ("mean run", duration_cell),
    "total_seconds": ("total", duration_cell),
    "total_seconds_full": ("total, full cost", duration_cell),
    "published_run_seconds": ("published run", duration_cell),
    "published_runs": ("published runs", _whole_or("-")),
    "published_total_seconds": (
        "published total (seed 1001)",
        lambda seconds: duration_cell(seconds).removesuffix(" 0 s"),
    ),
    "published_mean": ("published mean %", _percent),
    "published_min": ("published min %", _percent),
    "published_max": ("published max %", _percent),
    # equal compute
    "cost": ("time counted", lambda cost: "-" if pd.isna(cost) else str(cost)),
    "de_elbo_from": ("DE ELBo from", str),
    "de_elbo_hours": ("DE ELBo time", _hours),
    "de_elbo_acc": ("DE ELBo %", _share),
    "grid_acc": ("grid % in that time", _share),
    "grid_k": ("its runs", _whole_or("-")),
    "grid_hours": ("grid's time to DE ELBo's %", _hours),
    "times_as_long": ("times as long", _ratio),
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
    "cells": ("cells", _whole_or("-")),
    "median": ("median", _number("{:.2f}")),
    "least": ("least", _number("{:.2f}")),
    "most": ("most", _number("{:.2f}")),
    "better": ("better in", str),
    "worse": ("worse in", str),
    "p": ("p", _p_value),
    "p_holm": ("p (Holm)", _p_value),
    "least_p": ("least p possible", _p_value),
    # race
    "over": ("over which", str),
    "mean_rank": ("mean rank", _number("{:.2f}")),
    "rank_low": ("from", _number("{:.2f}")),
    "rank_high": ("to", _number("{:.2f}")),
    "p_first": ("first in %", _share),
    "friedman_p": ("p (Friedman)", _p_value),
    "methods": ("methods", _whole_or("-")),
    "problems": ("problems", _whole_or("-")),
    "left_out": ("not ranked", _methods),
    "final_acc": ("at its end %", _share),
    "target_acc": ("to be reached %", _share),
    "seconds": ("reached after", duration_cell),
    "runs": ("in runs", _runs),
    # what if
    "one_slot_seconds": ("one after the other", duration_cell),
    "slots": ("slots", str),
    "makespan_seconds": ("with these slots", duration_cell),
}
"""Columns as people read them, in the order in which they are read; other columns keep name and place."""


def shown_columns(table: pd.DataFrame) -> list[Shown]:
    """The columns that say something: not those without a value, of which all rows share the source, backbone or cost,
    or in which nothing diverged or failed."""
    names = sorted(map(str, table.columns), key=lambda name: list(WORDS).index(name) if name in WORDS else len(WORDS))
    dull = {name for name in ("source", "backbone", "cost") if name in table and table[name].nunique() <= 1}
    dull |= {name for name in ("diverged", "failed") if name in table and not table[name].any()}
    dull |= {name for name in names if len(table) and (table[name].isna() | (table[name] == "")).all()}
    return [(name, *WORDS.get(name, (name, str))) for name in names if name not in dull]


def for_people(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows as text."""
    return pd.DataFrame({heading: table[name].map(write).astype(str) for name, heading, write in shown_columns(table)})


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    shown = for_people(table).map(lambda text: text.replace("|", r"\|"))
    lines = ["| " + " | ".join(shown.columns) + " |", "|" + "---|" * len(shown.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in shown.itertuples(index=False)]
    return "\n".join(lines) + "\n"
