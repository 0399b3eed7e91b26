"""Reads the published result files into the table that our own records give.

The authors' files hold one row a run: ``tuned_*.csv`` (runtime in seconds, val_acc, val_nll) and ``retrained_*.csv``
(runtime, test_acc, test_nll), keyed by ``model_name``. Its parts are lr_0, and either tau (2024: the weight decay of
backbone and head for L2-zero and L2-SP, of the head for PTYL) with PTYL's lambda, or alpha and beta (later). The column
that names the prior is ``method`` (2024) or ``criterion`` (later).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from bench.records import COLUMNS

__all__ = ["read_published"]

SHARED = {"model_name", "n", "random_state", "runtime"}
PART = re.compile(r"(?:^|_)(lr_0|tau|lambda|alpha|beta)=([0-9.eE+-]+)")
PRIORS = ("l2-zero", "l2-sp", "ptyl")


def read_published(tuned: Path, retrained: Path, dataset: str | None = None) -> pd.DataFrame:
    """Both files as one table in the schema of `bench.records.COLUMNS`; columns they do not have are missing values.

    Rows without a runtime are placeholders and left out. A run with a runtime but no finite NLL diverged.

    Args:
        tuned, retrained: the two files of one dataset.
        dataset: its name; by default what stands behind ``tuned_`` in the file's name.

    Raises:
        ValueError: a file that is not such a table, a name that cannot be read, or two rows of one run that disagree.
    """
    name = dataset or tuned.stem.removeprefix("tuned_")
    parts = [_read(tuned, "tune", ["val_acc", "val_nll"]), _read(retrained, "retrain", ["test_acc", "test_nll"])]
    frame = pd.concat(parts, ignore_index=True).assign(dataset=name, backbone="resnet50")
    for column, kind in COLUMNS.items():
        if column not in frame:
            frame[column] = float("nan") if kind == "float64" else ""
        frame[column] = frame[column].astype(kind)
    return frame[list(COLUMNS)]


def _read(path: Path, stage: str, metrics: list[str]) -> pd.DataFrame:
    try:
        raw = pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a CSV table ({error}): give the published {stage}d results"
        ) from error
    prior = next((column for column in ("criterion", "method") if column in raw), None)
    missing = sorted((SHARED | set(metrics)) - set(raw.columns)) + ([] if prior else ["method or criterion"])
    if prior is None or missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}: give the published {stage}d results")
    try:
        numbers = raw[["n", "random_state", "runtime", *metrics]].astype("float64")
    except ValueError as error:
        raise ValueError(f"{path}: a column of numbers holds something else ({error}): mend the file") from None
    there = numbers["runtime"].notna() & raw["model_name"].notna()
    raw, numbers = raw[there].reset_index(drop=True), numbers[there].reset_index(drop=True)
    parts = pd.DataFrame([_parts(path, str(text)) for text in raw["model_name"]], index=raw.index)
    if len(unknown := raw[~raw[prior].isin(PRIORS)]):
        raise ValueError(
            f"{path}: prior {unknown[prior].iloc[0]!r}, expected one of {', '.join(PRIORS)}: mend the file"
        )
    frame = pd.DataFrame(
        {
            "key": raw["model_name"],
            "method": "map-gs",
            "prior": raw[prior],
            "n": numbers["n"].astype("int64"),
            "seed": numbers["random_state"].astype("int64"),
            "stage": stage,
            "status": np.where(np.isfinite(numbers[metrics[1]]), "completed", "diverged"),
            "train_seconds": numbers["runtime"],
            **{metric: numbers[metric] for metric in metrics},
        }
    )
    frame = pd.concat([frame, parts.reindex(columns=SETTINGS)], axis=1).drop_duplicates()
    if len(twice := frame[frame.duplicated(["key", "prior", "n", "seed"])]):
        raise ValueError(f"{path}: {twice['key'].iloc[0]!r} has two rows that disagree: remove one")
    return frame


SETTINGS = ["learning_rate", "weight_decay", "head_weight_decay", "prior_scale"]


def _parts(path: Path, name: str) -> dict[str, float]:
    """What a model_name says of a run's settings."""
    try:
        found = {key: float(value) for key, value in PART.findall(name)}
        rate = found["lr_0"]
        head = found["beta"] if "beta" in found else found["tau"]
    except (KeyError, ValueError):
        raise ValueError(
            f"{path}: model_name {name!r} cannot be read: expected lr_0=... and tau=... or alpha=..._beta=... in it"
        ) from None
    settings = {"learning_rate": rate, "head_weight_decay": head}
    if "lambda" in found:
        return settings | {"prior_scale": found["lambda"]}
    return settings | {"weight_decay": found.get("alpha", head)}
