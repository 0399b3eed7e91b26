"""Evaluation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo.data.images import Geometry, Images, Normalization
from deelbo.training.numerics import Numerics

__all__ = ["evaluate"]


EVALUATION_BATCH = 500


def _form(value: Any) -> Any:
    """A nested structure whose tensors have shape and type but no numbers."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    return {name: _form(inner) for name, inner in value.items()} if isinstance(value, dict) else copy.copy(value)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Images,
    normalization: Normalization,
    geometry: Geometry | None = None,
    numerics: Numerics | None = None,
) -> tuple[float, float]:
    """Mean NLL in nats, and class-balanced accuracy: the mean over classes of the share that is right (0 to 1).

    A class without images is left out of the mean. ``model`` and ``images`` are on the same device; the model is left
    in evaluation mode. ``geometry`` says what of the images is looked at (all where None), ``numerics`` how the network
    is computed (in float32 where None).
    """
    model.eval()
    numerics, device = numerics or Numerics(), images.labels.device
    nll = torch.zeros((), dtype=torch.float64, device=device)
    right = torch.zeros(images.num_classes, dtype=torch.float64, device=device)
    for start in range(0, len(images), EVALUATION_BATCH):
        labels = images.labels[start : start + EVALUATION_BATCH]
        pixels = images.pixels[start : start + EVALUATION_BATCH]
        x = numerics.laid_out(normalization(pixels if geometry is None else geometry.evaluation(pixels)))
        with numerics.autocast(device):
            logits = model(x).float()
        nll += F.cross_entropy(logits, labels, reduction="sum").double()
        right.index_add_(0, labels, (logits.argmax(1) == labels).double())
    count = torch.bincount(images.labels, minlength=images.num_classes)
    balanced = (right / count)[count > 0].mean()
    return float(nll) / len(images), float(balanced)
