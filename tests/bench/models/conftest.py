"""A storage with a small model for every tested trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.storage.models import write_model
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from deelbo import SavedModel
from deelbo.data import Geometry, ImageTransform, Normalization
from deelbo.pretrained.backbones import build_backbone
from deelbo.saved_model import model_files

Keep = Callable[[RecordStore, TrialRecord], None]


@pytest.fixture(scope="session")
def keep_model() -> Keep:
    """Write a model for a record, as a worker does after a trial that was tested."""
    import torch

    network, head = build_backbone("digits-resnet", 10)
    transform = ImageTransform(Geometry(16, 16), Normalization(torch.zeros(1), torch.ones(1)))
    model = SavedModel(network, transform, tuple("0123456789"), "digits-resnet", head)
    files: dict[str, Any] = model_files(model)
    return lambda store, record: write_model(store, record.key, files)
