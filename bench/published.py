"""Reads the published result files into the table that our own records give.

The authors' 2024 files hold one row a run: ``tuned_*.csv`` (runtime in seconds, val_acc, val_nll) and
``retrained_*.csv`` (runtime, test_acc, test_nll), keyed by ``model_name``, in which ``tau`` is the weight decay (of
backbone and head for L2-zero and L2-SP, of the head for PTYL).
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from bench.records import COLUMNS

__all__ = ["read_published"]

SHARED = {"model_name", "method", "n", "random_state", "runtime"}
NAME = re.compile(r"(?:^|_)(lr_0|tau|lambda)=([0-9.eE+-]+)")


def read_published(tuned: Path, retrained: Path, dataset: str | None = None) -> pd.DataFrame:
    """Both files as one table in the schema of `bench.records.COLUMNS`; columns they do not have are missing values.

    Args:
        tuned, retrained: the two files of one dataset.
        dataset: its name; by default what stands behind ``tuned_`` in the file's name.

    Raises:
        ValueError: a file that is not such a table.
    """
    name = dataset or tuned.stem.removeprefix("tuned_")
    parts = [
        _read(tuned, "tune", {"val_acc", "val_nll"}),
        _read(retrained, "retrain", {"test_acc", "test_nll"}),
    ]
    frame = pd.concat(parts, ignore_index=True).assign(dataset=name, backbone="resnet50")
    for column, kind in COLUMNS.items():
        if column not in frame:
            frame[column] = float("nan") if kind == "float64" else ""
        frame[column] = frame[column].astype(kind)
    return frame[list(COLUMNS)]


def _read(path: Path, stage: str, metrics: set[str]) -> pd.DataFrame:
    try:
        raw = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV table ({error}): give the published {stage}d results") from error
    if missing := sorted((SHARED | metrics) - set(raw.columns)):
        raise ValueError(f"{path} has no column {', '.join(missing)}: give the published {stage}d results")
    settings = raw["model_name"].map(lambda text: {key: float(value) for key, value in NAME.findall(str(text))})
    unread = raw["model_name"][settings.map(lambda found: not {"lr_0", "tau"} <= set(found))]
    if len(unread):
        raise ValueError(f"{path}: model_name {unread.iloc[0]!r} cannot be read: expected lr_0=... and tau=... in it")
    decay = settings.map(lambda found: found["tau"])
    ptyl = raw["method"] == "ptyl"
    return pd.DataFrame(
        {
            "key": raw["model_name"],
            "method": "map-gs",
            "prior": raw["method"],
            "n": raw["n"],
            "seed": raw["random_state"],
            "stage": stage,
            "learning_rate": settings.map(lambda found: found["lr_0"]),
            "weight_decay": decay.where(~ptyl),
            "head_weight_decay": decay,
            "prior_scale": settings.map(lambda found: found.get("lambda")),
            "status": "completed",
            "train_seconds": raw["runtime"],
            **{metric: raw[metric] for metric in sorted(metrics)},
        }
    )
