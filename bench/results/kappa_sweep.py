"""Test results against kappa / (D/N), of methods that differ in kappa alone."""

import numpy as np
import pandas as pd

from bench.results.configurations import CELL, PROBLEM, iterate_configurations
from bench.results.frame import sort_rows

DEFAULTS = {
    "groups": "backbone+head",
    "optimizer": "sgd",
    "options": "{}",
    "noise_until": 1.0,
    "final_batchnorm": "running",
    "closing_batchnorm": "running",
    "start_alpha": None,
}
"""Settings in which the methods of a sweep agree."""
SWEEP = [*(name for name in PROBLEM if name != "n"), "settings"]
COLUMNS = ["dataset", "prior", "method", "n", "split_seed", "kappa_ratio", "test_acc", "test_nll"]
COLUMNS += ["settings", "backbone", "source"]
MIN_VALUES = 3


def compute_kappa_sweep(frame: pd.DataFrame) -> pd.DataFrame:
    """Compute the test results of what each (DE) ELBo method chose, where three values of kappa or more ran.

    ``kappa_ratio`` is kappa / (D/N): 1 for the DE ELBo, N/D for the ELBo. ``settings`` are those that are not at their
    defaults. Methods that stop runs or train the chosen one again are left out.
    """
    rows = []
    for cell, tried in iterate_configurations(frame) if "state_kappa" in frame else ():
        run = frame.loc[tried.selection_rows[0]]
        whole = run["stage"] == "run" and run["until"] == 1 and not run["since"] and pd.isna(run["number"])
        if not whole or pd.isna(run["state_kappa"]):
            continue
        dim = np.nansum([run.get("state_dim_backbone", 0), run["state_dim_head"]])  # or the head alone
        ratio = run["state_kappa"] * run["n"] / dim
        settings = [
            f"{name} {run[name]}" for name, value in DEFAULTS.items() if not pd.isna(run[name]) and run[name] != value
        ]
        rows.append(
            {name: cell[name] for name in [*CELL, "method"]}
            | {"split_seed": cell["seed"], "kappa_ratio": float(f"{ratio:.6g}"), "settings": ", ".join(settings)}
            | {name: run[name] for name in ("test_acc", "test_nll")}
        )
    table = pd.DataFrame(rows, columns=COLUMNS).replace(np.inf, np.nan).dropna(subset=["test_acc", "test_nll"])
    values = table.groupby([*SWEEP, "n"])["kappa_ratio"].transform("nunique")
    return sort_rows(table[values >= MIN_VALUES], "settings", "split_seed", "kappa_ratio")
