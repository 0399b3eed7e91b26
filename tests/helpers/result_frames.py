"""Synthetic results of many methods, in the schema of the records: what each tried, by hand or by a random rule."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from bench.results.curves import compute_curves
from bench.results.frame import COLUMNS
from bench.results.paper import find_paper_de_elbo
from bench.results.tables import compute_overview, compute_table2, compute_table3

__all__ = ["frame_made", "many_methods", "overview", "replayed", "trial"]

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
    """A run: ``value`` is what it is judged by, or of a retraining its test accuracy."""
    judged = {"tune": "val_nll", "retrain": "test_acc", "run": "objective"}[stage]
    full = {"evaluate_seconds": 0.0, "select_seconds": 0.0, "adapt_seconds": 0.0, "train_seconds": seconds}
    return TRIAL | full | {"method": method, "stage": stage, judged: value} | more


def frame_made(*rows: dict[str, Any]) -> pd.DataFrame:
    """Runs as `bench.storage.records.RecordStore.frame` would give them."""
    filled = [dict.fromkeys(COLUMNS) | {"key": f"{i:05d}"} | row for i, row in enumerate(rows)]
    frame = pd.DataFrame(filled, columns=list(COLUMNS))
    return frame.astype({name: kind for name, kind in COLUMNS.items() if kind != "str"})


def overview(frame: pd.DataFrame, published: Collection[str] = ()) -> pd.DataFrame:
    """Table 3 as the report's page shows it."""
    paper = find_paper_de_elbo(compute_curves(frame), published)
    return compute_overview(frame, compute_table2(frame), compute_table3(frame), paper)


def many_methods(
    priors: tuple[str, ...] = ("l2-zero", "l2-sp", "ptyl"), sizes: tuple[int, ...] = (100, 1000), seeds: int = 3
) -> pd.DataFrame:
    """Results of a dozen entries as a benchmark of all methods would leave them: a grid that was trained again as a
    whole (PTYL: its best alone), sequential searches, halvings, runs that learn their strength."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for prior in priors:
        for n in sizes:
            for seed in range(seeds):
                where = {"prior": prior, "n": n, "seed": seed}
                best = 0.80 + 0.15 * (n > 100) + 0.01 * random.normal()
                rows += _grid(random, where, best)
                for name, size, luck in (("random", 12, 0.0), ("bo", 36, 0.006), ("bo-tpe", 36, 0.004)):
                    rows += _search(random, where, name, size, best + luck)
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
                        took = {"learning_rate": 10.0**-rate, "test_acc": max(best + gain - loss, 0.1)}
                        took |= {"select_seconds": 0.1, "adapt_seconds": 1.5 if name == "laplace" else 0.0}
                        rows.append(trial(name, "run", loss, 1.6 + 0.1 * random.random(), **where, **took))
    return frame_made(*rows)


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
    """Trials one after the other, whoever is the best so far being trained again."""
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
    """Four runs, of which the better half goes on, twice."""
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
    """Random search replayed on the grid of a `many_methods` frame, as the replayer writes it."""
    random = np.random.default_rng(1)
    rows = []
    grid = frame[(frame["method"] == "map-gs") & (frame["prior"] != "ptyl")]
    where = ["source", "dataset", "backbone", "prior", "n", "seed"]
    for cell, of in grid.groupby(where):
        tuned = of[of["stage"] == "tune"].reset_index(drop=True)
        settings = ["learning_rate", "weight_decay"]
        again = tuned[settings].merge(of.loc[of["stage"] == "retrain", [*settings, "test_acc", "train_seconds"]])
        for repetition in range(repetitions):
            order = random.permutation(len(tuned))[:12]
            seconds = 0.0
            for number, _ in enumerate(order):
                seconds += tuned["train_seconds"].iloc[order[number]]
                best = tuned["val_nll"].iloc[order[: number + 1]].idxmin()
                hours = (seconds + again["train_seconds"].iloc[best]) / 3600
                known = {"method": "random", "repetition": repetition, "number": number, "cost": "full"}
                found = {"hours": hours, "test_acc": again["test_acc"].iloc[best]}
                rows.append(dict(zip(where, cell, strict=True)) | known | found)
    return pd.DataFrame(rows)
