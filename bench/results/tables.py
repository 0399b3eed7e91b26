"""Table 2 (compute time) and table 3 (test accuracy), as the papers print them, from any results; published beside."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from bench.labels import PAPER_METHODS
from bench.results.configurations import configurations
from bench.results.frame import sort_rows
from bench.results.paper import TABLE2, TABLE3, paper_de_elbo

__all__ = ["overview", "table2", "table3"]


SECOND = ["prior", "method", "n", "split_seed", "mean_run_seconds", "num_runs", "total_seconds"]
SECOND += ["dataset", "total_seconds_full", "backbone", "source"]
THIRD = ["prior", "method", "n", "mean", "min", "max", "dataset", "seeds", "backbone", "source"]


def table2(frame: pd.DataFrame) -> pd.DataFrame:
    """Compute time, one row a method and cell.

    Columns: prior, method, n, split_seed; mean_run_seconds and num_runs of the runs that are judged, where every
    stretch of a configuration that is trained in stretches is one; total_seconds, of all of them and the retraining of
    the best; then dataset; total_seconds_full, which counts everything a method needs: training, learning of strengths,
    validation, selection, hand-over of parts, choosing what to try next; backbone, source; published_run_seconds,
    published_runs, published_total_seconds, where the paper has the cell. Seconds of training steps otherwise. A total
    is missing where the best configuration was not retrained.
    """
    rows = []
    full = {tuple(cell.values()): found for cell, found in configurations(frame, "full")}
    for cell, found in configurations(frame, "train"):
        everything = full.get(tuple(cell.values()))
        rows.append(
            {**cell, "split_seed": cell["seed"]}
            | {
                "mean_run_seconds": found.tuning.sum() / found.num_trials,
                "num_runs": found.num_trials,
                "total_seconds": found.tuning.sum() + found.retraining[0],
                "total_seconds_full": everything and everything.tuning.sum() + everything.retraining[0],
            }
        )
    table = pd.DataFrame(rows, columns=SECOND).astype({"total_seconds_full": "float64"})
    return _beside(sort_rows(table, "split_seed"), TABLE2)


def table3(frame: pd.DataFrame) -> pd.DataFrame:
    """Class-balanced test accuracy in percent of what each method chose: mean, min and max over split seeds.

    Columns: prior, method, n, mean, min, max; then dataset, seeds, how many splits there are, backbone, source;
    published_mean, published_min, published_max, where the paper has the cell.
    """
    rows = [cell | {"accuracy": 100 * found.accuracy[0]} for cell, found in configurations(frame)]
    by = ["source", "dataset", "backbone", "prior", "method", "n"]
    chosen = pd.DataFrame(rows, columns=[*by, "seed", "accuracy"]).dropna(subset="accuracy")
    table = chosen.groupby(by)["accuracy"].agg(["mean", "min", "max", "count"]).reset_index()
    return _beside(sort_rows(table.rename(columns={"count": "seeds"})[THIRD]), TABLE3)


def overview(frame: pd.DataFrame, published: Collection[str] = ()) -> pd.DataFrame:
    """Table 3 with the mean over splits of table 2's totals, and how many runs diverged or failed. The full cost stands
    beside where a method is not the paper's, as training steps alone would not be all that it needs.

    Args:
        frame: as `RecordStore.frame` gives it.
        published: the sources that are the paper's own: where their cells have a grid and no DE ELBo, there is a row
            for it, with published numbers alone.
    """
    second, third = table2(frame), table3(frame)
    where = ["dataset", "backbone", "prior", "n"]
    lost = pd.DataFrame({status: frame["status"] == status for status in ("diverged", "failed")})
    lost = lost.groupby([frame[name] for name in ("source", *where, "method")]).sum().reset_index()
    others = not set(second["method"]) <= set(PAPER_METHODS)
    totaled = ["total_seconds", "total_seconds_full"] if others else ["total_seconds"]
    times = second.groupby(["source", *where, "method"])[totaled].mean().reset_index()
    both = third.merge(times, on=["source", *where, "method"], how="left")
    totals = TABLE2[[*where, "method", "published_total_seconds"]]
    both = both.merge(totals, on=[*where, "method"], how="left")
    both = both.merge(lost, on=["source", *where, "method"], how="left")
    printed = paper_de_elbo(third, published)
    return sort_rows(pd.concat([both, printed[[name for name in printed if name in both]]], ignore_index=True))


def _beside(table: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The table with the published numbers of the same cells; rows and their order stay."""
    keys = [name for name in published if not str(name).startswith("published")]
    return table.merge(published, on=keys, how="left")
