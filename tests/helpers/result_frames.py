"""Synthetic results of many methods, in the columns of the records."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from bench.results.curves import compute_curves
from bench.results.frame import COLUMNS
from bench.results.paper import find_paper_de_elbo
from bench.results.tables import compute_overview, compute_table2, compute_table3

TRIAL: dict[str, Any] = {
    "source": "",
    "dataset": "d",
    "backbone": "b",
    "prior": "l2-sp",
    "n": 100,
    "seed": 1,
    "status": "completed",
    "learning_rate": 0.1,
    "kappa_share": 1.0,
    "groups": "backbone+head",
    "optimizer": "sgd",
    "options": "{}",
    "until": 1.0,
    "since": 0.0,
}


def trial(method: str, stage: str, value: float, seconds: float, **more: Any) -> dict[str, Any]:
    """Make a run; ``value`` is the metric that ranks it, or of a retraining its test accuracy."""
    metric = {"tune": "val_nll", "retrain": "test_acc", "run": "objective"}[stage]
    full = {"evaluate_seconds": 0.0, "select_seconds": 0.0, "adapt_seconds": 0.0, "train_seconds": seconds}
    return full | {"method": method, "stage": stage, metric: value} | more


def make_frame(*rows: dict[str, Any], **shared: Any) -> pd.DataFrame:
    """Make a table of trials from the columns that matter, those shared by all rows, and the defaults of `TRIAL`."""
    filled = [dict.fromkeys(COLUMNS) | TRIAL | {"key": f"{i:05d}"} | shared | row for i, row in enumerate(rows)]
    frame = pd.DataFrame(filled, columns=None if filled else list(COLUMNS))
    return frame.astype({name: kind for name, kind in COLUMNS.items() if kind != "str"})


def overview(frame: pd.DataFrame, published: Collection[str] = ()) -> pd.DataFrame:
    """Compute table 3 as the report's page shows it."""
    paper = find_paper_de_elbo(compute_curves(frame), published)
    return compute_overview(frame, compute_table2(frame), compute_table3(frame), paper)


def many_methods(
    priors: tuple[str, ...] = ("l2-zero", "l2-sp", "ptyl"), sizes: tuple[int, ...] = (100, 1000), seeds: int = 3
) -> pd.DataFrame:
    """Make results of a dozen methods: a grid, sequential searches, halvings, and runs that learn their strength."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for prior in priors:
        for n in sizes:
            for seed in range(seeds):
                where = {"prior": prior, "n": n, "seed": seed}
                best = 0.80 + 0.15 * (n > 100) + 0.01 * random.normal()
                rows += _grid(random, where, best)
                for name, size, gain in (("random", 12, 0.0), ("bo", 36, 0.006), ("bo-tpe", 36, 0.004)):
                    rows += _search(random, where, name, size, best + gain)
                rows += _halving(random, where, best)
                for name, rates, gain in (
                    ("de-elbo", 4, 0.004),
                    ("elbo", 4, -0.15),
                    ("de-elbo-layer", 4, 0.008),
                    ("de-elbo-kappa", 12, 0.006),
                    ("laplace", 4, -0.02),
                    ("hypergradient", 4, -0.01),
                    ("de-elbo-prodigy", 1, -0.005),
                ):
                    for rate in range(rates):
                        loss = abs(random.normal()) * (0.02 + 0.1 * rate)
                        result = {"learning_rate": 10.0**-rate, "test_acc": max(best + gain - loss, 0.1)}
                        result |= {"select_seconds": 0.1, "adapt_seconds": 1.5 if name == "laplace" else 0.0}
                        rows.append(trial(name, "run", loss, 1.6 + 0.1 * random.random(), **where, **result))
    return make_frame(*rows)


def _grid(random: np.random.Generator, where: dict[str, Any], best: float) -> list[dict[str, Any]]:
    rows = []
    losses = np.abs(random.normal(size=24)) * 0.15
    for i, loss in enumerate(losses):
        settings = {
            "learning_rate": 10.0 ** -(i % 4),
            "weight_decay": float(i // 4),
            "head_weight_decay": float(i // 4),
        }
        nll = float(loss + 0.01 * random.normal())
        rows.append(trial("map-gs", "tune", nll, 1.5 + 0.1 * random.random(), **where, **settings))
        again = trial("map-gs", "retrain", float(np.clip(best - loss, 0.1, 1)), 1.55, **where, **settings)
        if where["prior"] != "ptyl":
            rows.append(again)
    if where["prior"] == "ptyl":
        chosen = min((row for row in rows if row["stage"] == "tune"), key=lambda row: row["val_nll"])
        names = ("learning_rate", "weight_decay", "head_weight_decay")
        rows.append(trial("map-gs", "retrain", best, 1.55, **where, **{name: chosen[name] for name in names}))
    return rows


def _search(random: np.random.Generator, where: dict[str, Any], name: str, size: int, best: float) -> list[Any]:
    """Make a sequential search that retrains each best configuration so far."""
    rows, least = [], np.inf
    for number in range(size):
        settings = {"learning_rate": random.random(), "weight_decay": random.random(), "number": number}
        spread = 0.15 if name == "random" else 0.15 * 0.9**number
        loss = float(abs(random.normal()) * spread)
        rows.append(trial(name, "tune", loss, 1.5 + 0.1 * random.random(), **where, **settings))
        if loss < least:
            least = loss
            rows.append(trial(name, "retrain", max(best - loss, 0.1), 1.55, **where, **settings))
    return rows


def _halving(random: np.random.Generator, where: dict[str, Any], best: float) -> list[dict[str, Any]]:
    """Make four runs, of which the better half is continued, twice."""
    losses = np.sort(np.abs(random.normal(size=4))) * 0.1
    rows = []
    for i, loss in enumerate(losses):
        since = 0.0
        for until in (0.1, 0.3, 1.0)[: 3 if i == 0 else 2 if i == 1 else 1]:
            end = {"test_acc": best - loss} if until == 1 else {}
            settings = {"learning_rate": 10.0**-i, "until": until, "since": since}
            seconds = 1.5 * (until - since)
            rows.append(trial("de-elbo-halving", "run", float(loss), seconds, **where, **settings, **end))
            since = until
    return rows


def replayed(frame: pd.DataFrame, repetitions: int = 20) -> pd.DataFrame:
    """Replay random search on the grid of a `many_methods` frame."""
    random = np.random.default_rng(1)
    rows = []
    where = ["source", "dataset", "backbone", "prior", "n", "seed"]
    for cell, of in frame[(frame["method"] == "map-gs") & (frame["prior"] != "ptyl")].groupby(where):
        settings = ["learning_rate", "weight_decay"]
        retrained = of.loc[of["stage"] == "retrain", [*settings, "test_acc", "train_seconds"]]
        runs = (
            of[of["stage"] == "tune"]
            .drop(columns="test_acc")
            .merge(retrained, on=settings, suffixes=("", "_retrained"))
        )
        for repetition in range(repetitions):
            drawn = runs.iloc[random.permutation(len(runs))[:12]].reset_index(drop=True)
            for number, spent in enumerate(drawn["train_seconds"].cumsum()):
                best = drawn.loc[drawn["val_nll"][: number + 1].idxmin()]
                result = {"hours": (spent + best["train_seconds_retrained"]) / 3600, "test_acc": best["test_acc"]}
                place = {"method": "random", "repetition": repetition, "number": number, "cost": "full"}
                rows.append(dict(zip(where, cell, strict=True)) | place | result)
    return pd.DataFrame(rows)
