"""Table 2 (compute time) and table 3 (test accuracy), as the papers print them, from any results."""

from __future__ import annotations

import pandas as pd

from bench.curves import configurations

__all__ = ["METHOD_NAMES", "PRIOR_NAMES", "for_people", "markdown", "table2", "table3"]

METHOD_NAMES = {"map-gs": "MAP + GS", "de-elbo": "DE ELBo", "elbo": "ELBo"}
HEADINGS = {
    "prior": "Model",
    "n": "N",
    "split_seed": "seed",
    "mean_run_seconds": "mean run (s)",
    "num_runs": "runs",
    "total_seconds": "total (s)",
    "total_seconds_full": "total, full cost (s)",
}
PRIOR_NAMES = {"l2-zero": "L2-zero", "l2-sp": "L2-SP", "ptyl": "PTYL"}


def table2(frame: pd.DataFrame) -> pd.DataFrame:
    """Compute time, one row a method and cell.

    Columns: prior, method, n, split_seed; mean_run_seconds and num_runs of the runs that are judged; total_seconds,
    with the retraining of the best; then dataset, and total_seconds_full, which counts evaluation and selection too.
    Seconds of training steps otherwise. A total is missing where the best configuration was not retrained.
    """
    rows = []
    full = {tuple(cell.values()): found for cell, found in configurations(frame, "full")}
    for cell, found in configurations(frame, "train"):
        everything = full[tuple(cell.values())]
        rows.append(
            {
                "prior": cell["prior"],
                "method": cell["method"],
                "n": cell["n"],
                "split_seed": cell["seed"],
                "mean_run_seconds": found.tuning.mean(),
                "num_runs": len(found),
                "total_seconds": found.tuning.sum() + found.retraining[0],
                "dataset": cell["dataset"],
                "total_seconds_full": everything.tuning.sum() + everything.retraining[0],
            }
        )
    columns = ["prior", "method", "n", "split_seed", "mean_run_seconds", "num_runs", "total_seconds", "dataset"]
    return _sorted(pd.DataFrame(rows, columns=[*columns, "total_seconds_full"]), ["split_seed"])


def table3(frame: pd.DataFrame) -> pd.DataFrame:
    """Class-balanced test accuracy in percent of what each method chose: mean, min and max over split seeds.

    Columns: prior, method, n, mean, min, max; then dataset, and seeds, how many splits there are.
    """
    rows = [
        {"dataset": cell["dataset"], "prior": cell["prior"], "method": cell["method"], "n": cell["n"]}
        | {"accuracy": 100 * found.accuracy[0]}
        for cell, found in configurations(frame)
    ]
    chosen = pd.DataFrame(rows, columns=["dataset", "prior", "method", "n", "accuracy"]).dropna(subset="accuracy")
    grouped = chosen.groupby(["prior", "method", "n", "dataset"])["accuracy"]
    table = grouped.agg(["mean", "min", "max", "count"]).reset_index().rename(columns={"count": "seeds"})
    return _sorted(table[["prior", "method", "n", "mean", "min", "max", "dataset", "seeds"]], [])


def for_people(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with the papers' names, and numbers that can be read."""
    shown = table.copy()
    shown["prior"] = shown["prior"].map(lambda name: PRIOR_NAMES.get(name, name))
    shown["method"] = shown["method"].map(lambda name: METHOD_NAMES.get(name, name))
    for column in [name for name in shown if name in ("mean", "min", "max")]:
        shown[column] = shown[column].map("{:.1f}".format)
    for column in [name for name in shown if "seconds" in str(name)]:
        shown[column] = shown[column].map(lambda seconds: "-" if pd.isna(seconds) else f"{seconds:.1f}")
    return shown.rename(columns=HEADINGS)


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    shown = for_people(table).astype(str)
    lines = ["| " + " | ".join(shown.columns) + " |", "|" + "---|" * len(shown.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in shown.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def _sorted(table: pd.DataFrame, last: list[str]) -> pd.DataFrame:
    """By dataset and n, then priors and methods as the papers list them."""
    order = {name: i for i, name in enumerate([*PRIOR_NAMES, *METHOD_NAMES])}
    return table.sort_values(
        ["dataset", "n", "prior", "method", *last],
        key=lambda column: column.map(lambda value: order.get(value, value)) if column.name in RANKED else column,
        ignore_index=True,
    )


RANKED = ("prior", "method")
