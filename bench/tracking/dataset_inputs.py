"""The data of a trial as MLflow keeps it: a dataset that many runs share, and how this one used it."""

from __future__ import annotations

import json
from typing import Any

from bench.tracking.conversion import clipped
from bench.trials.record import TrialRecord

__all__ = ["dataset_inputs"]


LONGEST_NAME, LONGEST_DIGEST, LONGEST_TAG = 500, 36, 500
CONTEXT = "mlflow.data.context"


def dataset_inputs(record: TrialRecord) -> list[Any]:
    """The record's dataset, by its name and the hash of the images that the trial saw, as the input "training".

    The same images are one dataset to MLflow, however many a trial drew of them: ``n``, the split's ``seed`` and
    ``validation``, the share kept to judge by, are tags of the input. Empty where the record names no data: a trial
    that failed before it read them, or that ran before data had a hash.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    digest = record.versions.get("data")
    if not digest:
        return []
    spec = record.spec
    source = json.dumps({"task": spec.dataset})  # how `deelbo.data.load_task` calls it: no path of some machine
    dataset = Dataset(clipped(spec.dataset, LONGEST_NAME), clipped(digest, LONGEST_DIGEST), "deelbo", source)
    tags = {CONTEXT: "training", "n": spec.n, "seed": spec.seed, "validation": "1/5" if spec.stage == "tune" else "0"}
    return [DatasetInput(dataset, [InputTag(name, clipped(str(value), LONGEST_TAG)) for name, value in tags.items()])]
