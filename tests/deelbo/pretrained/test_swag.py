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


def test_swags_variance_is_not_negative() -> None:
    """Iterates that hardly move have variance 0, not a negative rounding error."""
    weight = nn.Parameter(1000 * torch.randn(1000))
    swag = SWAG([weight])
    for _ in range(7):
        with torch.no_grad():
            weight.add_(1e-4 * torch.randn(1000))
        swag.collect()
    assert float(swag.variance.min()) == 0


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
