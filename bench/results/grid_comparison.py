"""The DE ELBo beside grid search: at equal compute, and by the regularization that each ends with."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.results.configurations import PROBLEM, iterate_configurations
from bench.results.frame import iterate_groups, sort_rows

SPLIT = [*PROBLEM, "split_seed"]
EQUAL = ["dataset", "prior", "n", "split_seed", "cost", "de_elbo_from", "de_elbo_hours", "de_elbo_acc"]
EQUAL += ["grid_acc", "grid_k", "grid_hours", "times_as_long", "backbone", "source"]
STRENGTH = ["dataset", "prior", "n", "split_seed", "learned_rate", "learned_sigma", "learned_lambda", "learned_tau"]
STRENGTH += ["learned_alpha", "learned_beta", "grid_alpha", "grid_beta", "grid_lambda", "grid_rate"]
STRENGTH += ["learned_kappa", "backbone", "source"]
STATE = {
    "kappa": "kappa",
    "sigma": "sigma",
    "lambda": "scale_backbone",
    "tau": "scale_head",
    "alpha": "weight_decay_backbone",
    "beta": "weight_decay_head",
}
"""Columns ``state_*`` of the frame by the papers' symbols."""


def compare_at_equal_compute(curves: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Compare accuracies at the DE ELBo's compute, and compute at its accuracy: equal_compute.csv.

    The grid's hours are infinite if its expected accuracy never reaches the DE ELBo's; where only its best was
    retrained its numbers are missing. Printed results of the ``paper`` are used where there are no DE ELBo runs.
    """
    printed = paper.dropna(subset="published_total_seconds").to_dict("records")
    targets = {("train", *(row[name] for name in SPLIT)): _paper_target(row) for row in printed}
    by = ["cost", *SPLIT]
    for cell, ran in iterate_groups(curves[curves["method"] == "de-elbo"], by):
        last = ran[ran["k"] == ran["k"].max()].iloc[0]
        targets[tuple(cell.values())] = ("run", last["expected_hours"], last["expected_test_acc"])
    rows = [
        cell | _meet(grid.sort_values("k"), *targets[tuple(cell.values())])
        for cell, grid in iterate_groups(curves[curves["method"] == "map-gs"], by)
        if tuple(cell.values()) in targets
    ]
    return sort_rows(pd.DataFrame(rows, columns=EQUAL), "split_seed", "cost")


def _paper_target(row: Mapping[Any, Any]) -> tuple[str, float, float]:
    return "paper", row["published_total_seconds"] / 3600, row["published_mean"] / 100


def _meet(grid: pd.DataFrame, origin: str, hours: float, accuracy: float) -> dict[str, Any]:
    row: dict[str, Any] = {"de_elbo_from": origin, "de_elbo_hours": hours, "de_elbo_acc": accuracy}
    if grid["k"].iloc[0] > 1:
        return row | dict.fromkeys(("grid_acc", "grid_k", "grid_hours", "times_as_long"), math.nan)
    affordable = grid[grid["expected_hours"] <= hours]
    enough = grid.loc[grid["expected_test_acc"] >= accuracy - 1e-9, "expected_hours"]  # equal up to rounding
    grid_hours = enough.min() if len(enough) else math.inf
    row |= {"grid_acc": math.nan, "grid_k": 0}
    if len(affordable):
        row |= {"grid_acc": affordable["expected_test_acc"].iloc[-1], "grid_k": affordable["k"].iloc[-1]}
    return row | {"grid_hours": grid_hours, "times_as_long": grid_hours / hours}


def compare_regularization(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare the strength that the DE ELBo learned with the one that the grid chose: regularization.csv.

    alpha = 1/(kappa N lambda*) and beta = 1/(kappa N tau*), which with kappa = D/N are 1/(D lambda*) and 1/(D tau*);
    the alpha of PTYL's grid is 1/(N lambda). What a diverged run learned is missing.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cell, tried in iterate_configurations(frame):
        if cell["method"] not in ("map-gs", "de-elbo"):
            continue
        best = frame.loc[tried.selection_rows[0]]
        split = {name: cell[name] for name in PROBLEM} | {"split_seed": cell["seed"]}
        row = rows.setdefault(tuple(split.values()), split)
        if cell["method"] == "map-gs":
            scale = best["prior_scale"]
            row |= {
                "grid_rate": best["learning_rate"],
                "grid_alpha": best["weight_decay"] if np.isnan(scale) else 1 / (best["n"] * scale),
                "grid_beta": best["head_weight_decay"],
                "grid_lambda": scale,
            }
        else:
            learned = best["status"] == "completed"
            row |= {"learned_rate": best["learning_rate"]}
            row |= {f"learned_{name}": best.get(f"state_{key}") if learned else None for name, key in STATE.items()}
    table = pd.DataFrame(list(rows.values()), columns=STRENGTH)
    numbers = [name for name in STRENGTH if name.startswith(("learned_", "grid_"))]
    return sort_rows(table.astype(dict.fromkeys(numbers, "float64")), "split_seed")
