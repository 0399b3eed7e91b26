"""What people call the things that records name by a key, and the order in which tables list them."""

from __future__ import annotations

import pandas as pd

from bench.methods import METHODS

__all__ = ["METHOD_NAMES", "OF_THE_PAPER", "PRIOR_NAMES", "REPLAYED", "dataset_name", "in_order", "method_name"]

METHOD_NAMES: dict[str, str] = {method.name: method.title for method in METHODS}
PRIOR_NAMES = {"l2-zero": "L2-zero", "l2-sp": "L2-SP", "ptyl": "PTYL"}
OF_THE_PAPER = ("map-gs", "de-elbo", "elbo")
"""What the papers compare: figure 2 and the first sentences are about these alone."""
REPLAYED = " (replayed)"
"""What stands behind a method's name where its trials were taken from a finished grid."""


def dataset_name(name: str) -> str:
    """A dataset's name in a title: published files say Oxford-IIIT_Pet."""
    return name.replace("_", " ")


def method_name(entry: str) -> str:
    """What to call an entry under ``methods``: its method's title where it has the method's name, else as it is."""
    name = entry.removesuffix(REPLAYED)
    return METHOD_NAMES.get(name, name) + entry[len(name) :]


def in_order(table: pd.DataFrame, *last: str) -> pd.DataFrame:
    """Rows by dataset, backbone and N, then priors and methods as `bench.methods.METHODS` lists them, entries of other
    names behind them by the alphabet, a replayed method behind itself; sources side by side."""
    by = [name for name in ("dataset", "backbone", "n", "prior", "method", "source", *last) if name in table]
    return table.sort_values(by, key=_rank, ignore_index=True, kind="stable")


def _rank(column: pd.Series) -> pd.Series:
    if column.name not in ("prior", "method"):
        return column
    ranks = {name: _place(name, str(column.name)) for name in column.unique()}
    places = {rank: i for i, rank in enumerate(sorted(set(ranks.values())))}
    return column.map(lambda name: places[ranks[name]])


def _place(name: str, kind: str) -> tuple[int, str, bool]:
    """By what a prior or method is sorted: its place, its name where it has none, whether it was replayed."""
    known = list(PRIOR_NAMES if kind == "prior" else METHOD_NAMES)
    entry = name.removesuffix(REPLAYED)
    place = known.index(entry) if entry in known else len(known)
    return place, "" if entry in known else entry, entry != name
