"""Table 2 (compute time) and table 3 (test accuracy) of the 2024 paper from any results, published numbers beside."""

import pandas as pd

from bench.labels import PAPER_METHODS
from bench.results.configurations import iterate_configurations
from bench.results.frame import sort_rows
from bench.results.paper import TABLE2, TABLE3

SECOND = ["prior", "method", "n", "split_seed", "mean_run_seconds", "num_runs", "total_seconds"]
SECOND += ["dataset", "total_seconds_full", "backbone", "source"]
THIRD = ["prior", "method", "n", "mean", "min", "max", "dataset", "seeds", "backbone", "source"]


def compute_table2(frame: pd.DataFrame) -> pd.DataFrame:
    """Compute the compute time of each method, a row per method and cell: table2.csv.

    Each segment counts as a run. The total is of all tuning runs and of retraining the best, and missing where that was
    not retrained.
    """
    full = {tuple(cell.values()): tried.total_seconds for cell, tried in iterate_configurations(frame, "full")}
    rows = [
        cell
        | {
            "split_seed": cell["seed"],
            "mean_run_seconds": tried.tuning_seconds.sum() / tried.num_trials,
            "num_runs": tried.num_trials,
            "total_seconds": tried.total_seconds,
            "total_seconds_full": full.get(tuple(cell.values())),
        }
        for cell, tried in iterate_configurations(frame)
    ]
    table = pd.DataFrame(rows, columns=SECOND).astype({"total_seconds_full": "float64"})
    return _add_published(sort_rows(table, "split_seed"), TABLE2)


def compute_table3(frame: pd.DataFrame) -> pd.DataFrame:
    """Compute the class-balanced test accuracy of each method's choice over split seeds, in percent: table3.csv."""
    rows = [cell | {"accuracy": 100 * tried.accuracy[0]} for cell, tried in iterate_configurations(frame)]
    by = ["source", "dataset", "backbone", "prior", "method", "n"]
    accuracies = pd.DataFrame(rows, columns=[*by, "seed", "accuracy"]).dropna(subset="accuracy")
    table = accuracies.groupby(by)["accuracy"].agg(["mean", "min", "max", "count"]).reset_index()
    return _add_published(sort_rows(table.rename(columns={"count": "seeds"})[THIRD]), TABLE3)


def compute_overview(
    frame: pd.DataFrame, second: pd.DataFrame, third: pd.DataFrame, paper: pd.DataFrame
) -> pd.DataFrame:
    """Join table 3, mean totals of table 2 over splits, the paper's DE ELBo, and numbers of diverged and failed runs.

    The full cost is included if there are other methods than the paper's, which may need much beside training steps.
    """
    by = ["source", "dataset", "backbone", "prior", "n", "method"]
    lost = pd.DataFrame({status: frame["status"] == status for status in ("diverged", "failed")})
    lost = lost.groupby([frame[name] for name in by]).sum().reset_index()
    totals = (
        ["total_seconds"] if set(second["method"]) <= set(PAPER_METHODS) else ["total_seconds", "total_seconds_full"]
    )
    table = third.merge(second.groupby(by)[totals].mean().reset_index(), on=by, how="left")
    table = table.merge(TABLE2[[*by[1:], "published_total_seconds"]], on=by[1:], how="left")
    table = table.merge(lost, on=by, how="left")
    return sort_rows(pd.concat([table, paper[[name for name in paper if name in table]]], ignore_index=True))


def _add_published(table: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Add the published numbers of the same cells as columns; rows and their order stay."""
    keys = [name for name in published if not str(name).startswith("published")]
    return table.merge(published, on=keys, how="left")
