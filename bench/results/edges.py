"""Find methods whose choice lies at an end of the values that they tried: a wider search may give another result."""

import json
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
MARGIN = 0.1
"""Share of a range, in logarithms, that is its end."""


def find_edges(frame: pd.DataFrame) -> list[str]:
    """Return a line for each dataset, method, prior and hyperparameter whose chosen value is an end of its search.

    That is the largest or the smallest value that was tried of a grid, or one in the first or last tenth of a range, in
    logarithms. A weight decay of 0 is no end, as none is smaller.
    """
    ends: Counter[tuple[str, str, str, str, str]] = Counter()
    cells: Counter[tuple[str, str, str]] = Counter()
    for cell, tried in iterate_configurations(frame):
        place = (cell["dataset"], cell["method"], cell["prior"])
        cells[place] += 1
        rows = frame.loc[tried.selection_rows]
        options = json.loads(rows["options"].iloc[0]) if tried.is_sequential else {}
        ranges = {} if options.get("grid") else options.get("axes", {})
        for column, name in NAMES.items():
            values = rows[column].astype("float64")
            if values.nunique() < MIN_VALUES or (column == "head_weight_decay" and values.equals(rows["weight_decay"])):
                continue
            if end := _describe_end(values, ranges.get(column)):
                ends[(*place, name, end)] += 1
    return [
        f"{dataset_name(dataset)}, {method_name(method)}, {PRIOR_NAMES.get(prior, prior)}: the chosen {name} is {end} "
        f"in {count} of {cells[dataset, method, prior]} cells: a wider search may give another result."
        for (dataset, method, prior, name, end), count in ends.items()
    ]


def _describe_end(values: pd.Series, bounds: tuple[float, float] | None) -> str | None:
    """Name the end of the grid ``values``, or of the range with these ``bounds``, that the first value is; or None."""
    chosen = values.iloc[0]
    if bounds is not None:
        low, high = bounds
        margin = (high / low) ** MARGIN
        end = "highest" if chosen >= high / margin else "lowest" if chosen <= low * margin else None
        return end and f"in the {end} tenth of its range, {low:g} to {high:g},"
    end = "largest" if chosen == values.max() else "smallest" if chosen == values.min() > 0 else None
    return end and f"the {end} that was tried, {chosen:g},"
