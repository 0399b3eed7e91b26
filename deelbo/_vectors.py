"""A group of parameters seen as one vector, which is how the formulas are written.

Reading and writing many tensors at once is left to torch's foreach kernels: one launch, not one a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = [
    "add",
    "add_to_gradients_",
    "dot",
    "flatten",
    "flatten_gradients",
    "set_gradients",
    "squared_norms",
    "views",
    "write",
]


STRETCH = 1 << 18


def flatten(tensors: Iterable[Tensor], out: Tensor | None = None) -> Tensor:
    """A vector (D,) with the elements of ``tensors`` in order, detached from autograd: ``out``, or a new one."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors], out=out)


def dot(one: Tensor, other: Tensor) -> Tensor:
    """The dot product of two vectors (D,); 0-dimensional.

    On a CPU in stretches: BLAS adds all products up in a few running sums, which costs float32 four of its seven digits
    at D = 10^8.
    """
    if one.device.type != "cpu" or one.numel() <= STRETCH:
        return torch.dot(one, other)
    parts = zip(one.split(STRETCH), other.split(STRETCH), strict=True)
    return torch.stack([torch.dot(a, b) for a, b in parts]).sum()


def squared_norms(vectors: Sequence[Tensor]) -> Tensor:
    """||x||^2 of each of G vectors, as one vector (G,)."""
    if vectors[0].device.type == "cpu":
        return torch.stack([dot(vector, vector) for vector in vectors])
    return torch.stack(torch._foreach_norm(list(vectors))).square()


def views(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """``vector`` (D,) cut into views shaped like each of ``like``, in order."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


@torch.no_grad()
def write(parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
    """Copies ``vector`` (D,) into the parameters, in place."""
    torch._foreach_copy_(list(parameters), views(vector, parameters))


@torch.no_grad()
def add(parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
    """Adds ``vector`` (D,) to the parameters, in place."""
    torch._foreach_add_(list(parameters), views(vector, parameters))


def flatten_gradients(parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """The gradients as a new vector (D,), zeros where a parameter has none; None where no parameter has one."""
    if all(p.grad is None for p in parameters):
        return None
    return flatten(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)


def set_gradients(parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
    """Makes ``vector`` (D,) the parameters' gradients. They share its memory: it must not be used for anything else."""
    for parameter, piece in zip(parameters, views(vector, parameters), strict=True):
        if parameter.is_contiguous():
            parameter.grad = piece
        else:  # an optimizer takes weight and gradient in one memory layout faster
            parameter.grad = torch.empty_like(parameter).copy_(piece)


@torch.no_grad()
def add_to_gradients_(parameters: Sequence[nn.Parameter], vector: Tensor, factor: float = 1.0) -> None:
    """Adds ``factor`` times ``vector`` (D,) to the parameters' gradients, in place."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    torch._foreach_add_([p.grad for p in parameters], views(vector, parameters), alpha=factor)  # type: ignore[misc]
