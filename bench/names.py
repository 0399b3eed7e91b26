"""What the papers call things that records name by a key, and the order in which their tables list them."""

from __future__ import annotations

import pandas as pd

__all__ = ["METHOD_NAMES", "PRIOR_NAMES", "dataset_name", "in_order"]

METHOD_NAMES = {"map-gs": "MAP + GS", "de-elbo": "DE ELBo", "elbo": "ELBo"}
PRIOR_NAMES = {"l2-zero": "L2-zero", "l2-sp": "L2-SP", "ptyl": "PTYL"}

ORDER = {name: i for i, name in enumerate([*PRIOR_NAMES, *METHOD_NAMES])}


def dataset_name(name: str) -> str:
    """A dataset's name in a title: published files say Oxford-IIIT_Pet."""
    return name.replace("_", " ")


def in_order(table: pd.DataFrame, *last: str) -> pd.DataFrame:
    """Rows by dataset, backbone and N, then priors and methods as the papers list them, sources side by side."""
    by = [name for name in ("dataset", "backbone", "n", "prior", "method", "source", *last) if name in table]
    return table.sort_values(by, key=_rank, ignore_index=True, kind="stable")


def _rank(column: pd.Series) -> pd.Series:
    if column.name not in ("prior", "method"):
        return column
    return column.map(lambda name: ORDER.get(name, len(ORDER)))
