"""What each method chose in each cell: the strengths, the test accuracy and the cost of its choice."""

from typing import Any

import pandas as pd

from bench.results.configurations import CELL, iterate_configurations
from bench.results.frame import sort_rows

CHOSEN = [name for name in CELL if name != "source"] + ["method", "key", "learning_rate"]
STRENGTHS = {
    "weight_decay": "state_weight_decay_backbone",
    "head_weight_decay": "state_weight_decay_head",
    "lambda": "state_scale_backbone",
    "tau": "state_scale_head",
    "sigma": "state_sigma",
    "kappa": "state_kappa",
}
"""Columns of the table by name: as a trial ended with them, whether they were set or learned."""
SCORES = [f"{kind}_{name}" for kind in ("test", "predictive") for name in ("acc", "nll", "ece", "brier")]
"""Columns of test metrics, of the trained weights and of predictions averaged over the posterior."""
RESULTS = [*SCORES, "trials", "train_seconds", "full_seconds"]


def compute_chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """Compute a row for each method and cell, of the trial that is tested; ``frame`` as `to_frame` returns it.

    Where the choice was not retrained, the row is of its tuning run, and has no test accuracy. ``trials`` and the
    seconds are of all trials that the choice needed: training steps alone, and everything.
    """
    full = {tuple(cell.values()): tried.total_seconds for cell, tried in iterate_configurations(frame, "full")}
    rows = []
    for cell, tried in iterate_configurations(frame):
        is_tested = tried.test_rows[0] >= 0
        trial = frame.loc[tried.test_rows[0] if is_tested else tried.selection_rows[0]]
        row: dict[str, Any] = cell | {name: trial.get(name) for name in ("key", "learning_rate", *SCORES)}
        row |= {name: trial.get(column) for name, column in STRENGTHS.items()}
        row["trials"] = tried.num_trials + (is_tested and trial["stage"] == "retrain")
        row |= {"train_seconds": tried.total_seconds, "full_seconds": full.get(tuple(cell.values()))}
        rows.append(row)
    table = pd.DataFrame(rows, columns=[*CHOSEN, *STRENGTHS, *RESULTS])
    numbers = ["learning_rate", *STRENGTHS, *SCORES, "train_seconds", "full_seconds"]
    return sort_rows(table.astype(dict.fromkeys(numbers, "float64")), "seed")
