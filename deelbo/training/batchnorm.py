"""Running statistics of BatchNorm and of other layers that have them: training mode, and a new estimate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from deelbo.objectives.base import evaluation_mode


def running_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that have running statistics of their own."""
    return [module for module in model.modules() if getattr(module, "running_mean", None) is not None]


@torch.no_grad()
def update_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate running statistics again, at the weights that the model has now.

    They become the mean over ``batches`` of each batch's own statistics, as `torch.optim.swa_utils.update_bn` computes
    them for BatchNorm (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization",
    section 3.2), for every layer with running statistics and a momentum. All other layers are in evaluation mode, so
    dropout is off. Statistics that were collected under the posterior's noise do not fit its mean, which is what is
    evaluated.

    Args:
        model: any module; without running statistics nothing changes, and no batch is used.
        batches: inputs of the model, of about the same size, not augmented.
    """
    layers: list[Any] = [
        layer for layer in running_layers(model) if hasattr(layer, "momentum") and hasattr(layer, "reset_running_stats")
    ]
    if not layers:
        return
    momenta, calls = [layer.momentum for layer in layers], Counter[Any]()

    def average(layer: Any, _: Any) -> None:
        calls[layer] += 1
        layer.momentum = 1 / calls[layer]  # a mean over calls; None would be one for BatchNorm alone

    hooks = [layer.register_forward_pre_hook(average) for layer in layers]
    with evaluation_mode(model):
        for layer in layers:
            layer.reset_running_stats()
            layer.training = True
        try:
            for batch in batches:
                model(batch)
        finally:
            for layer, momentum, hook in zip(layers, momenta, hooks, strict=True):
                hook.remove()
                layer.momentum = momentum
