"""Conversion between a list of parameters and the one vector (D,) in which the formulas are written.

Many tensors are read and written at once by torch's foreach kernels: one launch for all instead of one for each.
Weights in another layout than contiguous, such as channels_last, take a slower path on a GPU.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

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


def overlapping(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return two of the tensors, which are on one device, whose elements share memory; None if none do.

    Twice the same one where its own elements do, as after ``expand``.
    """
    filled = sorted((t for t in tensors if t.numel()), key=lambda tensor: tensor.data_ptr())
    for tensor in filled:
        if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            return tensor, tensor
    for first, second in pairwise(filled):
        span = 1 + sum((size - 1) * stride for size, stride in zip(first.shape, first.stride(), strict=True))
        if first.data_ptr() + span * first.element_size() > second.data_ptr():
            return first, second
    return None


@torch.no_grad()
def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into the target of the same shape, in place."""
    torch._foreach_copy_(list(targets), list(sources))


@torch.no_grad()
def add_(targets: Sequence[Tensor], addends: Sequence[Tensor], factor: float = 1.0) -> None:
    """Add ``factor`` times each addend to the target of the same shape, in place."""
    torch._foreach_add_(list(targets), list(addends), alpha=factor)


def dense_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the parameters' gradients after making sparse ones dense and missing ones zero; [] if all are missing."""
    gradients = [p.grad for p in parameters]
    if all(gradient is None for gradient in gradients):
        return []
    for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if gradient is None or gradient.layout is not torch.strided:
            parameter.grad = gradients[i] = torch.zeros_like(parameter) if gradient is None else gradient.to_dense()
    return gradients  # type: ignore[return-value]  # none is missing any more


def dot_with(tensors: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Return the dot product of the elements of ``tensors`` in order with ``vector`` (D,); 0-dimensional.

    Large tensors on a CPU are not gathered first, as new memory is slow there.
    """
    if vector.device.type != "cpu" or vector.numel() <= CHUNK:
        return dot(flatten(tensors), vector)
    pieces = vector.split([tensor.numel() for tensor in tensors])
    return torch.stack([dot(t.reshape(-1), piece) for t, piece in zip(tensors, pieces, strict=True)]).sum()


@torch.no_grad()
def add_to_gradients_(parameters: Sequence[nn.Parameter], vector: Tensor, factor: float | Tensor = 1.0) -> None:
    """Add ``factor`` times ``vector`` (D,) to the gradients, in place; missing ones are zero.

    A 0-dimensional tensor as factor does not wait for the device; ``vector`` may be overwritten then.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients, pieces = dense_gradients(parameters), views(vector, parameters)
    if not isinstance(factor, Tensor):
        add_(gradients, pieces, factor)
    elif vector.device.type == "cpu":
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.addcmul_(piece, factor)
    else:  # addcmul_ would be a launch for each weight
        vector.mul_(factor)
        add_(gradients, pieces)
