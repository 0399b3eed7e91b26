"""Tests of parameters as one vector: order and shared memory for any memory layout."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo import ELBO, MAP, DataEmphasizedELBO, make_groups
from deelbo._vectors import (
    add_to_gradients_,
    copy_,
    dense_gradients,
    dot,
    dot_with,
    flatten,
    overlapping,
    views,
)
from deelbo.objectives.base import Objective

LAST = torch.channels_last


def mixed() -> list[nn.Parameter]:
    """A convolution's weights with channels last, a bias, a transposed matrix, a number: 54 + 3 + 20 + 1 elements."""
    shapes = [
        torch.randn(3, 2, 3, 3).contiguous(memory_format=LAST),
        torch.randn(3),
        torch.randn(5, 4).T,
        torch.randn(()),
    ]
    parameters = [nn.Parameter(tensor) for tensor in shapes]
    assert [p.is_contiguous() for p in parameters] == [False, True, False, True]
    return parameters


def in_order(tensors: list[Tensor]) -> list[float]:
    """Return every element in index order, last index fastest, tensor after tensor."""
    found: list[float] = []
    for tensor in tensors:
        for index in (
            torch.cartesian_prod(*map(torch.arange, tensor.shape)) if tensor.ndim > 1 else range(tensor.numel())
        ):
            at = tuple(index.tolist()) if isinstance(index, Tensor) else (index,) * tensor.ndim
            found.append(float(tensor.detach()[at]))
    return found


def test_flatten_is_in_index_order() -> None:
    """The vector has the elements in index order for any memory layout, and is a detached copy."""
    parameters = mixed()
    vector = flatten(parameters)
    assert vector.tolist() == in_order(parameters)
    assert not vector.requires_grad
    vector.zero_()
    assert any(float(p.detach().abs().sum()) > 0 for p in parameters)


def test_copy_is_the_inverse_of_flatten() -> None:
    """Copying a vector's pieces and flattening gives the same bits; parameters keep their memory and layout."""
    parameters = mixed()
    where = [(p.data_ptr(), p.stride()) for p in parameters]
    vector = torch.randn(78)
    copy_(parameters, views(vector, parameters))
    assert torch.equal(flatten(parameters), vector)
    assert in_order(parameters) == vector.tolist()
    assert [(p.data_ptr(), p.stride()) for p in parameters] == where


def test_views_share_memory() -> None:
    """The pieces of a vector have the parameters' shapes, and changing one changes the vector."""
    parameters, vector = mixed(), torch.arange(78.0)
    pieces = views(vector, parameters)
    assert [piece.shape for piece in pieces] == [p.shape for p in parameters]
    assert in_order(pieces) == vector.tolist()
    pieces[1].zero_()
    assert vector[54:57].tolist() == [0, 0, 0]


@pytest.mark.parametrize("missing", [[], [0], [1, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("factor", [1.0, -0.5, torch.tensor(0.25)])
def test_add_to_gradients(missing: list[int], factor: float | Tensor) -> None:
    """``factor`` times the vector is added to the gradients by index, in place; a missing gradient counts as zeros."""
    parameters, vector = mixed(), torch.randn(78)
    for i, p in enumerate(parameters):
        p.grad = None if i in missing else torch.randn_like(p)
    there = [p.grad for p in parameters]
    before = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])
    add_to_gradients_(parameters, vector, factor)
    after = flatten(dense_gradients(parameters))
    torch.testing.assert_close(after, before + factor * vector)
    assert all(p.grad is old for p, old in zip(parameters, there, strict=True) if old is not None)


def test_dense_gradients() -> None:
    """Missing gradients become zeros and sparse ones dense, in the parameters too; if all are missing, none is made."""
    parameters = mixed()
    assert dense_gradients(parameters) == []
    assert all(p.grad is None for p in parameters)
    parameters[1].grad = torch.tensor([1.0, 0.0, 3.0]).to_sparse()
    gradients = dense_gradients(parameters)
    assert all(p.grad is gradient for p, gradient in zip(parameters, gradients, strict=True))
    assert flatten(gradients).nonzero().flatten().tolist() == [54, 56]
    assert not any(gradient.is_sparse for gradient in gradients)


@pytest.mark.parametrize("scale", [1, 10_000])
def test_dot_with(scale: int) -> None:
    """The product of tensors of any layout with a vector is that of their elements in order, for few and many."""
    tensors = [p.detach().double().repeat(scale, *[1] * (p.ndim - 1)) if p.ndim else p.double() for p in mixed()]
    vector = torch.randn(77 * scale + 1, dtype=torch.float64)
    torch.testing.assert_close(dot_with(tensors, vector), torch.dot(flatten(tensors), vector))


def test_overlapping() -> None:
    """Tensors that share elements are found, whatever their order and layout; parts of one buffer do not overlap."""
    buffer = torch.zeros(24)
    parts = list(buffer.split([6, 10, 8]))
    assert overlapping(parts) is None
    assert overlapping([*mixed(), *parts, torch.empty(0)]) is None
    for shared in (buffer[5:7], buffer[20:], buffer.view(4, 6).T[0]):
        assert overlapping([*mixed(), shared, *parts]) is not None


def conv_net() -> nn.Module:
    """A float64 network with the head ``4`` and convolutions of several pixels, for which the layouts differ."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten()),
        nn.Linear(8, 3),
    ).double()


def both() -> tuple[nn.Module, nn.Module]:
    """Return one network twice: with contiguous weights and with channels last."""
    plain = conv_net()
    last = copy.deepcopy(plain).to(memory_format=LAST)  # type: ignore[call-overload]
    assert not last[0].weight.is_contiguous()
    assert torch.equal(flatten(plain.parameters()), flatten(last.parameters()))
    return plain, last


def a_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 3, 6, 6, dtype=torch.float64), torch.randint(0, 3, (5,))


def map_of(model: nn.Module) -> Objective:
    return MAP(make_groups(model, "4", "l2-sp"), 5, {"backbone": 0.3, "head": 0.2})


def elbo_of(model: nn.Module) -> Objective:
    return ELBO(make_groups(model, "4", "l2-sp"), 5, sigma=0.1, generator=torch.Generator().manual_seed(3))


def de_elbo_of(model: nn.Module) -> Objective:
    groups = make_groups(model, "4", "l2-zero")
    return DataEmphasizedELBO(groups, 5, sigma=0.1, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("make", [map_of, elbo_of, de_elbo_of])
def test_the_objectives_of_a_channels_last_network(make: Callable[[nn.Module], Objective]) -> None:
    """Gradients and steps of SGD are the same for weights with channels last; gradients have their layout."""
    (x, y), found = a_batch(), []
    for model in both():
        objective = make(model)
        with torch.no_grad():  # off the prior's mean
            for p in model.parameters():
                p.mul_(1.1)
        optimizer = torch.optim.SGD([*objective.weights, *objective.parameters()], 0.1, momentum=0.9, nesterov=True)
        gradients = []
        for _ in range(2):
            with objective.step():
                F.cross_entropy(model(x), y).backward()
            assert [p.grad.stride() for p in objective.weights if p.grad is not None] == [
                p.stride() for p in objective.weights
            ]
            gradients.append(flatten(dense_gradients([*objective.weights, *objective.parameters()])))
            optimizer.step()
        found.append((*gradients, flatten(model.parameters()), objective.regularizer()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


def test_a_long_dot_product() -> None:
    """The sum of twenty million float32 products is accurate to six digits."""
    long = torch.rand(20_000_000, generator=torch.Generator().manual_seed(0))
    assert float(dot(long, long)) == pytest.approx(float(torch.dot(long.double(), long.double())), rel=1e-6)
    assert torch.equal(dot(long[:10], long[:10]), torch.dot(long[:10], long[:10]))
