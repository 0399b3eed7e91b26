"""Conversion between a list of parameters and the one vector (D,) in which the formulas are written.

Many tensors are read and written at once by torch's foreach kernels: one launch for all instead of one for each.
Weights in another layout than contiguous, such as channels_last, take a slower path on a GPU.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

CHUNK = 1 << 18  # elements


def flatten(tensors: Iterable[Tensor], out: Tensor | None = None) -> Tensor:
    """Return the elements of ``tensors`` in order, detached, as a vector (D,): in ``out``, or in new memory."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors], out=out)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Return the dot product of two vectors (D,); 0-dimensional.

    On a CPU it is summed in chunks: BLAS adds all products in a few running sums, which at D = 10^8 loses four of
    float32's seven digits.
    """
    if x.device.type != "cpu" or x.numel() <= CHUNK:
        return torch.dot(x, y)
    parts = zip(x.split(CHUNK), y.split(CHUNK), strict=True)
    return torch.stack([torch.dot(a, b) for a, b in parts]).sum()


def squared_norms(vectors: Sequence[Tensor]) -> Tensor:
    """Return ||x||^2 of each of G vectors, as one vector (G,)."""
    if vectors[0].device.type == "cpu":
        return torch.stack([dot(vector, vector) for vector in vectors])
    return torch.stack(torch._foreach_norm(list(vectors))).square()


def views(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Split ``vector`` (D,) into views with the shapes of ``like``, in order."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


@torch.no_grad()
def write(parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
    """Copy ``vector`` (D,) into the parameters, in place."""
    torch._foreach_copy_(list(parameters), views(vector, parameters))


@torch.no_grad()
def add(parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
    """Add ``vector`` (D,) to the parameters, in place."""
    torch._foreach_add_(list(parameters), views(vector, parameters))


def flatten_gradients(parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """Return the gradients as a new vector (D,), zeros for a parameter without one; None if no parameter has one."""
    if all(p.grad is None for p in parameters):
        return None
    return flatten(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)


def set_gradients(parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
    """Make ``vector`` (D,) the parameters' gradients, which share its memory: the caller must not use it again."""
    for parameter, piece in zip(parameters, views(vector, parameters), strict=True):
        if parameter.is_contiguous():
            parameter.grad = piece
        else:  # an optimizer is faster where weight and gradient have one memory layout
            parameter.grad = torch.empty_like(parameter).copy_(piece)


@torch.no_grad()
def add_to_gradients_(parameters: Sequence[nn.Parameter], vector: Tensor, factor: float = 1.0) -> None:
    """Add ``factor`` times ``vector`` (D,) to the parameters' gradients, in place."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    torch._foreach_add_([p.grad for p in parameters], views(vector, parameters), alpha=factor)  # type: ignore[misc]
