"""Reads the authors' result files into the table that our own records give.

The files hold one row a run: ``tuned_*.csv`` (runtime in seconds, val_acc, val_nll) and ``retrained_*.csv`` (runtime,
test_acc, test_nll), keyed by ``model_name``. Its parts are lr_0, and either tau (2024: the weight decay of backbone and
head for L2-zero and L2-SP, of the head for PTYL) with PTYL's lambda, or alpha and beta (later). The column that names
the prior is ``method`` (2024) or ``criterion`` (later).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.labels import PRIOR_NAMES
from bench.results.frame import COLUMNS
from bench.utils.text import short_repr, single_line

__all__ = ["Published", "read_published"]


SHARED = {"model_name", "n", "random_state", "runtime"}
PART = re.compile(r"(?:^|_)(lr_0|tau|lambda|alpha|beta|n|random_state)=([0-9.eE+-]+)(?=_|$)")
SETTINGS = ["learning_rate", "weight_decay", "head_weight_decay", "prior_scale"]
SPLIT = ["prior", "n", "seed"]
STAGES = {"tune": ("tuning", ["val_acc", "val_nll"]), "retrain": ("retraining", ["test_acc", "test_nll"])}
MOST = 2**31
LARGEST_FILE = 50_000_000


class Published(NamedTuple):
    """The runs of a dataset's two files, what is wrong with some of their rows, and what else is to be said."""

    frame: pd.DataFrame
    problems: list[str]
    notes: list[str]


def read_published(tuned: Path, retrained: Path, dataset: str | None = None, source: str = "published") -> Published:
    """Both files as one table in the schema of `bench.results.frame.COLUMNS`.

    Columns that the files do not have are missing values. Rows without a runtime are placeholders and left out. A run
    with a runtime but no finite NLL diverged. A row that cannot be read, or two that disagree about one run, take their
    cell (prior, N, seed) with them, by the columns and by the name: a grid with a hole would pass for a smaller grid.

    Args:
        tuned, retrained: the two files of one dataset.
        dataset: its name; by default what stands behind ``tuned_`` in the file's name.
        source: what to call these results beside others.

    Raises:
        ValueError: a file that is not such a table, or of which no row is left.
    """
    names = [path.stem.removeprefix(prefix) for path, prefix in ((tuned, "tuned_"), (retrained, "retrained_"))]
    if names[0] != names[1] and all(name != path.stem for name, path in zip(names, (tuned, retrained), strict=True)):
        raise ValueError(f"{tuned} and {retrained} are named after two datasets: give the two files of one")
    parts, problems, notes = [], [], []
    spoilt: set[tuple[object, ...]] = set()
    for path, stage in ((tuned, "tune"), (retrained, "retrain")):
        rows, placeholders = _read(path, stage)
        rows["problem"] = rows["problem"].where(rows["problem"] != "", _disagreement(rows))
        for text, group in rows[rows["problem"] != ""].groupby("problem", sort=False):
            cells = dict.fromkeys(cell for row in group.to_dict("records") for cell in _cells(row))
            where = " and ".join(f"{prior}, N = {n}, seed {seed}" for prior, n, seed in cells)
            problems.append(single_line(f"{path}: {text}; left out: {where}"))
            spoilt |= set(cells)
        if placeholders:
            notes.append(f"{path.name}: {placeholders} rows without a runtime are placeholders, and left out.")
        parts.append(rows)
    frame = pd.concat(parts, ignore_index=True)
    for cell, count in _orphans(frame[frame["problem"] == ""]).items():
        if cell in spoilt:
            continue
        prior, n, seed = cell
        words = f"{count} retrained run{'s' * (count > 1)} without a tuning run, so that its grid has holes"
        problems.append(f"{tuned}: {words}; left out: {prior}, N = {n}, seed {seed}")
        spoilt.add(cell)
    frame = frame[[cell not in spoilt for cell in frame[SPLIT].itertuples(index=False, name=None)]]
    if frame.empty:
        words = f": {problems[0]}" if problems else ", only placeholders"
        raise ValueError(f"{tuned} and {retrained} hold no run that can be used{words}")
    frame = frame.reset_index(drop=True)
    frame = frame.assign(dataset=dataset or names[0], backbone="resnet50", method="map-gs", source=source)
    absent = {name: float("nan") if kind == "float64" else "" for name, kind in COLUMNS.items() if name not in frame}
    return Published(frame.assign(**absent)[list(COLUMNS)].astype(COLUMNS), problems, notes)


def _read(path: Path, stage: str) -> tuple[pd.DataFrame, int]:
    """One file's runs, with a column ``problem``: why a row cannot be used, or empty; and how many are placeholders."""
    words, metrics = STAGES[stage]
    raw, prior = _table(path, f"the published {words} results", metrics)
    run = raw["runtime"].notna()
    raw, placeholders = raw[run].fillna({"model_name": ""}).reset_index(drop=True), int((~run).sum())
    texts = raw[["n", "random_state", "runtime", *metrics]]
    numbers = texts.apply(pd.to_numeric, errors="coerce").astype("float64")
    for column in ("n", "random_state"):
        lost = ~((numbers[column] % 1 == 0) & numbers[column].between(0, MOST))
        if lost.any():
            value = texts.loc[lost, column].iloc[0]
            raise ValueError(
                f"{path}: {column} = {short_repr.repr(value)} is no whole number from 0 to {MOST}: mend the file"
            )
    settings = pd.DataFrame(
        [_settings(name, found) for name, found in zip(raw["model_name"], raw[prior], strict=True)],
        columns=[*SETTINGS, "n", "seed"],
        dtype="float64",
    )
    known = settings["head_weight_decay"].notna()
    other = (settings["n"] != numbers["n"]) | (settings["seed"] != numbers["random_state"])
    other |= raw["model_name"].str.split("_").str[0] != raw[prior]
    checks = {
        f"expected a prior of {', '.join(PRIOR_NAMES)}": ~raw[prior].isin(list(PRIOR_NAMES)),
        "cannot be read, expected PRIOR_..._lr_0=..._n=..._random_state=... with tau=... or alpha=..._beta=...": ~known,
        f"says another prior, n or random_state than the columns {prior}, n and random_state": known & other,
        "has a number that cannot be read": (numbers.isna() & texts.notna()).any(axis=1),
        f"has a runtime that is not above 0 and below {MOST} s": ~numbers["runtime"].between(0, MOST, "neither"),
        "has an accuracy outside 0 to 1": numbers[metrics[0]].notna() & ~numbers[metrics[0]].between(0, 1),
    }
    problem = pd.Series("", index=raw.index, dtype=object)
    for text, bad in checks.items():
        problem = problem.where(~bad | (problem != ""), "model_name " + raw["model_name"].map(_shown) + " " + text)
    rows = pd.DataFrame(
        {
            "key": raw["model_name"],
            "prior": raw[prior].fillna("?"),
            "n": numbers["n"].astype("int64"),
            "seed": numbers["random_state"].astype("int64"),
            "stage": stage,
            "status": np.where(np.isfinite(numbers[metrics[1]]), "completed", "diverged"),
            "train_seconds": numbers["runtime"],
            **{metric: numbers[metric] for metric in metrics},
            **{name: settings[name] for name in SETTINGS},
            "problem": problem,
        }
    )
    again = rows.duplicated([name for name in rows if name not in ("key", "problem")]) & (rows["problem"] == "")
    return rows[~again].reset_index(drop=True), placeholders


def _table(path: Path, what: str, metrics: list[str]) -> tuple[pd.DataFrame, str]:
    """The file as text, and which of its columns names the prior."""
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise ValueError(f"{size} bytes, at most {LARGEST_FILE} are read")
        content = path.read_bytes()
        raw = pd.read_csv(io.BytesIO(content), dtype=str).drop_duplicates()
        lines = content.splitlines(keepends=True)
        header, last = lines[0], lines[-1]
        if not last.endswith((b"\n", b"\r")) and last.count(b",") < header.count(b","):
            raise ValueError("it ends in the middle of a row")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a CSV table ({single_line(error)}): give {what}") from error
    prior = next((column for column in ("criterion", "method") if column in raw), None)
    missing = sorted((SHARED | set(metrics)) - set(raw.columns)) + ([] if prior else ["method or criterion"])
    if prior is None or missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}: give {what}")
    return raw, prior


def _cells(row: dict[Any, Any]) -> Iterator[tuple[object, ...]]:
    """The cells that a bad row may belong to: by its columns, and by its name."""
    yield tuple(row[name] for name in SPLIT)
    found = dict(PART.findall(row["key"]))
    prior = next((prior for prior in PRIOR_NAMES if row["key"].startswith(f"{prior}_")), row["prior"])
    try:
        yield prior, int(found.get("n", row["n"])), int(found.get("random_state", row["seed"]))
    except ValueError:
        return


def _orphans(rows: pd.DataFrame) -> dict[tuple[object, ...], int]:
    """How many retrained runs of each cell have no tuning run."""
    pairs = rows.merge(rows.loc[rows["stage"] == "tune", [*SPLIT, *SETTINGS]], how="left", indicator="tuned")
    alone = pairs[(pairs["stage"] == "retrain") & (pairs["tuned"] == "left_only")]
    return {cell: len(group) for cell, group in alone.groupby(SPLIT)}


def _disagreement(rows: pd.DataFrame) -> pd.Series:
    """For each run that stands twice with different results, why it cannot be used; else empty."""
    twice = rows.duplicated([*SPLIT, *SETTINGS], keep=False) & (rows["problem"] == "")
    first = rows.groupby([*SPLIT, *SETTINGS], dropna=False)["key"].transform("first")
    words = "model_name " + first.map(_shown) + " has two rows that disagree"
    return words.where(twice, "")


def _shown(name: str) -> str:
    return single_line(repr(name), 120)


def _settings(name: str, prior: object) -> dict[str, float]:
    """What a model_name says of a run; nothing where it cannot be read."""
    try:
        found = {key: float(value) for key, value in PART.findall(name)}
        settings = {"learning_rate": found["lr_0"]}
        head = found["beta"] if "beta" in found else found["tau"]
        backbone = {"prior_scale": found["lambda"]} if prior == "ptyl" else {"weight_decay": found.get("alpha", head)}
        where = {"n": found["n"], "seed": found["random_state"]}
    except (KeyError, ValueError):
        return {}
    return settings | backbone | {"head_weight_decay": head} | where
