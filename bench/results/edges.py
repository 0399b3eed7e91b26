"""Find methods whose choice lies at an end of the values that they tried: a wider grid may give another result."""

from collections import Counter

import pandas as pd

from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.results.configurations import iterate_configurations

NAMES = {
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "head_weight_decay": "head's weight decay",
    "prior_scale": "lambda",
}
MIN_VALUES = 3
"""Of fewer values each is an end."""


def find_edges(frame: pd.DataFrame) -> list[str]:
    """Return a line for each dataset, method, prior and hyperparameter whose chosen value is an end of its grid.

    A weight decay of 0 is no end, as none is smaller. Methods that sample their configurations have no grid.
    """
    ends: Counter[tuple[str, str, str, str, str]] = Counter()
    cells: Counter[tuple[str, str, str]] = Counter()
    for cell, tried in iterate_configurations(frame):
        if tried.is_sequential:
            continue
        place = (cell["dataset"], cell["method"], cell["prior"])
        cells[place] += 1
        rows = frame.loc[tried.selection_rows]
        for column, name in NAMES.items():
            values = rows[column].astype("float64")
            if values.nunique() < MIN_VALUES or (column == "head_weight_decay" and values.equals(rows["weight_decay"])):
                continue
            if values.iloc[0] == values.max():
                ends[(*place, name, f"the largest of its grid, {values.iloc[0]:g},")] += 1
            elif values.iloc[0] == values.min() > 0:
                ends[(*place, name, f"the smallest of its grid, {values.iloc[0]:g},")] += 1
    return [
        f"{dataset_name(dataset)}, {method_name(method)}, {PRIOR_NAMES.get(prior, prior)}: the chosen {name} is {end} "
        f"in {count} of {cells[dataset, method, prior]} cells: a wider grid may give another result."
        for (dataset, method, prior, name, end), count in ends.items()
    ]
