"""Tests of SWAG against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from deelbo.pretrained.swag import SWAG


def walk(steps: int, rank: int) -> tuple[SWAG, np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """Return SWAG over a random walk of two weight tensors, and its iterates."""
    weights = [nn.Parameter(torch.randn(2, 3).double()), nn.Parameter(torch.randn(4).double())]
    swag, seen = SWAG(weights, rank), []
    for _ in range(steps):
        with torch.no_grad():
            for weight in weights:
                weight.add_(torch.randn_like(weight))
        swag.collect()
        seen.append(np.concatenate([w.detach().numpy().ravel() for w in weights]))
    return swag, np.stack(seen)


@pytest.mark.parametrize(("steps", "rank"), [(2, 2), (5, 5), (9, 3)])
def test_swag_against_numpy(steps: int, rank: int) -> None:
    """Mean, variance and the last K deviations from the running mean are numpy's of the iterates."""
    swag, seen = walk(steps, rank)
    np.testing.assert_allclose(swag.mean, seen.mean(0), rtol=1e-10)
    np.testing.assert_allclose(swag.variance, seen.var(0), rtol=1e-8)
    deviations = [seen[t] - seen[: t + 1].mean(0) for t in range(steps)]
    np.testing.assert_allclose(swag.factor, np.stack(deviations[-rank:], axis=1), rtol=1e-8, atol=1e-12)
    assert swag.count == steps


@pytest.mark.parametrize(("size", "sd"), [(1, 1e-4), (1, 1e-3), (100, 1e-3), (0.05, 1e-3), (1e4, 1e-2), (0, 1)])
@pytest.mark.parametrize("steps", [5, 200])
def test_weights_far_from_zero(size: float, sd: float, steps: int) -> None:
    """In float32, all statistics of weights that move little about any value are float64's of the iterates."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(1000))
    swag, seen = SWAG([weight]), []
    for _ in range(steps):
        with torch.no_grad():
            weight.copy_(size + sd * torch.randn(1000))
        seen.append(weight.detach().double().numpy())
        swag.collect()
    iterates = np.stack(seen)
    np.testing.assert_allclose(swag.variance, iterates.var(0), rtol=2e-5)
    np.testing.assert_allclose(swag.mean, iterates.mean(0), rtol=2e-7, atol=5e-6 * sd)
    deviations = [iterates[t] - iterates[: t + 1].mean(0) for t in range(steps - 5, steps)]
    np.testing.assert_allclose(swag.factor, np.stack(deviations, 1), rtol=1e-4, atol=1e-5 * sd)


def test_weights_that_do_not_move() -> None:
    """Weights that stay have variance 0 and themselves as their mean; without an iterate nothing is NaN."""
    weight = nn.Parameter(1000 * torch.randn(1000))
    swag = SWAG([weight])
    assert float(swag.variance.abs().max()) == 0
    for _ in range(7):
        swag.collect()
    assert float(swag.variance.abs().max()) == 0
    assert torch.equal(swag.mean, weight.detach())


def test_impossible_ranks_are_refused() -> None:
    """SWAG's factor is refused with fewer iterates than its rank, and rank 1, which would divide by zero."""
    with pytest.raises(ValueError, match="rank 5 needs as many iterates, 4 were collected"):
        _ = walk(4, rank=5)[0].factor
    with pytest.raises(ValueError, match="rank must be at least 2, got 1"):
        walk(0, rank=1)


def test_load_mean() -> None:
    """After load_mean the weights are SWAG's mean in their shapes."""
    swag, seen = walk(5, rank=3)
    swag.load_mean()
    assert [tuple(w.shape) for w in swag.weights] == [(2, 3), (4,)]
    found = np.concatenate([w.detach().numpy().ravel() for w in swag.weights])
    np.testing.assert_allclose(found, seen.mean(0), rtol=1e-10)
