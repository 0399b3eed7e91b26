"""A group of parameters seen as one vector, which is how the formulas are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["add_to_gradients_", "flatten", "flatten_gradients", "views"]


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """A new vector with the elements of ``tensors`` in order, detached from autograd. Shape (D,)."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def views(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """``vector`` (D,) cut into views shaped like each of ``like``, in order."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def flatten_gradients(parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """The gradients as one vector (D,), zeros where a parameter has none; None where no parameter has one."""
    if all(p.grad is None for p in parameters):
        return None
    return flatten(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)


@torch.no_grad()
def add_to_gradients_(parameters: Sequence[nn.Parameter], vector: Tensor, factor: float = 1.0) -> None:
    """Adds ``factor`` times ``vector`` (D,) to the parameters' gradients, in place."""
    for parameter, piece in zip(parameters, views(vector, parameters), strict=True):
        if parameter.grad is None:
            parameter.grad = piece * factor
        else:
            parameter.grad.add_(piece, alpha=factor)
