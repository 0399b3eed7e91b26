"""The DE ELBo beside the grid: at equal compute, and in the strength of regularization that each ends with."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from bench.results.configurations import PROBLEM, configurations
from bench.results.frame import sort_rows
from bench.results.paper import paper_de_elbo

__all__ = ["equal_compute", "regularization"]


SPLIT = [*PROBLEM, "split_seed"]
EQUAL = ["dataset", "prior", "n", "split_seed", "cost", "de_elbo_from", "de_elbo_hours", "de_elbo_acc"]
EQUAL += ["grid_acc", "grid_k", "grid_hours", "times_as_long", "backbone", "source"]
STRENGTH = ["dataset", "prior", "n", "split_seed", "learned_rate", "learned_sigma", "learned_lambda", "learned_tau"]
STRENGTH += ["learned_alpha", "learned_beta", "grid_alpha", "grid_beta", "grid_lambda", "grid_rate"]
STRENGTH += ["learned_kappa", "backbone", "source"]


def equal_compute(curves: pd.DataFrame, published: Collection[str] = ()) -> pd.DataFrame:
    """What the grid reaches in the DE ELBo's time, and how long it needs to reach the DE ELBo's accuracy.

    One row a cell and cost. Columns: dataset, prior, n, split_seed, cost; de_elbo_from, "run" or "paper" (its accuracy
    is the mean over three splits); de_elbo_hours and de_elbo_acc, of all its runs; grid_acc and grid_k, the
    expected accuracy of the most configurations whose expected hours are no more than that, missing where not one
    is; grid_hours, the least expected hours at which the grid's expected accuracy is no less, infinity where it
    never is; times_as_long, their ratio; backbone, source. Accuracies are 0 to 1. Where the curve has holes, as
    only the best was trained again, the grid's numbers are missing.

    Args:
        curves: as `bench.results.curves.curves` gives.
        published: the sources that are the paper's own, where what it prints of the DE ELBo stands in for runs.
    """
    rows = []
    printed = paper_de_elbo(curves, published).dropna(subset="published_total_seconds")
    in_paper = {tuple(row[name] for name in SPLIT): row for row in printed.to_dict("records")}
    for cost, shown in curves.groupby("cost", sort=False):
        methods = {name: dict(list(part.groupby(SPLIT))) for name, part in shown.groupby("method")}
        for cell, grid in methods.get("map-gs", {}).items():
            known = dict(zip(SPLIT, cell, strict=True)) | {"cost": cost}
            ours = methods.get("de-elbo", {}).get(cell)
            if ours is not None:
                last = ours[ours["k"] == ours["k"].max()].iloc[0]
                target = ("run", last["expected_hours"], last["expected_test_acc"])
            elif cost == "train" and cell in in_paper:
                paper = in_paper[cell]
                target = ("paper", paper["published_total_seconds"] / 3600, paper["published_mean"] / 100)
            else:
                continue
            rows.append(known | _meet(grid.sort_values("k"), *target))
    return sort_rows(pd.DataFrame(rows, columns=EQUAL), "split_seed", "cost")


def _meet(grid: pd.DataFrame, origin: str, hours: float, accuracy: float) -> dict[str, Any]:
    row: dict[str, Any] = {"de_elbo_from": origin, "de_elbo_hours": hours, "de_elbo_acc": accuracy}
    if grid["k"].iloc[0] > 1:
        return row | dict.fromkeys(("grid_acc", "grid_k", "grid_hours", "times_as_long"), math.nan)
    paid = grid[grid["expected_hours"] <= hours]
    enough = grid.loc[grid["expected_test_acc"] >= accuracy - 1e-9, "expected_hours"]  # equal but for rounding is equal
    least = enough.min() if len(enough) else math.inf
    row |= {"grid_acc": math.nan, "grid_k": 0}
    if len(paid):
        row |= {"grid_acc": paid["expected_test_acc"].iloc[-1], "grid_k": paid["k"].iloc[-1]}
    return row | {"grid_hours": least, "times_as_long": least / hours}


def regularization(frame: pd.DataFrame) -> pd.DataFrame:
    """The strength that the DE ELBo learned beside the one that the grid chose, one row a cell.

    Columns: dataset, prior, n, split_seed; of the DE ELBo's chosen run, missing where that diverged, learned_rate
    (learning rate), learned_kappa, learned_sigma, learned_lambda and learned_tau (the closed forms at its end),
    learned_alpha = 1/(kappa N lambda*) and learned_beta = 1/(kappa N tau*), which with kappa = D/N are 1/(D
    lambda*) and 1/(D tau*); of the grid's chosen configuration grid_alpha (for PTYL 1/(N lambda)), grid_beta,
    grid_lambda (PTYL) and grid_rate; backbone, source.

    Args:
        frame: as `RecordStore.frame` gives it.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cell, found in configurations(frame):
        if cell["method"] not in ("map-gs", "de-elbo"):
            continue
        chosen = frame.loc[found.judged[0]]
        where = {name: cell[name] for name in PROBLEM} | {"split_seed": cell["seed"]}
        row = rows.setdefault(tuple(where.values()), where)
        if cell["method"] == "map-gs":
            scale = chosen["prior_scale"]
            row |= {
                "grid_rate": chosen["learning_rate"],
                "grid_alpha": chosen["weight_decay"] if np.isnan(scale) else 1 / (chosen["n"] * scale),
                "grid_beta": chosen["head_weight_decay"],
                "grid_lambda": scale,
            }
        else:
            learned = chosen["status"] == "completed"  # a diverged run has learned nothing
            row |= {"learned_rate": chosen["learning_rate"]}
            row |= {f"learned_{name}": chosen.get(f"state_{kept}") if learned else None for name, kept in STATE.items()}
    table = pd.DataFrame(list(rows.values()), columns=STRENGTH)
    numbers = [name for name in STRENGTH if name.startswith(("learned_", "grid_"))]
    return sort_rows(table.astype(dict.fromkeys(numbers, "float64")), "split_seed")


STATE = {
    "kappa": "kappa",
    "sigma": "sigma",
    "lambda": "scale_backbone",
    "tau": "scale_head",
    "alpha": "weight_decay_backbone",
    "beta": "weight_decay_head",
}
