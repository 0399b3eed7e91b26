"""Tests of SWAG against numpy, and of BatchNorm's statistics at its mean."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deelbo import LowRank
from deelbo.pretrained.swag import SWAG, recompute_batchnorm


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


def test_the_prior_from_swag() -> None:
    """LowRank made from SWAG is the Gaussian of the dense 1/2 diag(s) + eps I + Q Q^T / (2K - 2)."""
    swag, seen = walk(8, rank=5)
    prior = LowRank(swag.mean, swag.variance, swag.factor)
    deviations = np.stack([seen[t] - seen[: t + 1].mean(0) for t in range(3, 8)], axis=1)
    dense = np.diag(seen.var(0)) / 2 + 0.1 * np.eye(10) + deviations @ deviations.T / 8
    vector = np.arange(10.0) - 4
    np.testing.assert_allclose(
        prior.precision_times(torch.from_numpy(vector)), np.linalg.solve(dense, vector), rtol=1e-8
    )
    assert prior.log_det == pytest.approx(np.linalg.slogdet(dense)[1], rel=1e-9)
    assert prior.trace_precision == pytest.approx(np.trace(np.linalg.inv(dense)), rel=1e-9)


def test_too_few_iterates_are_refused() -> None:
    """SWAG's factor is refused with fewer iterates than its rank, with both numbers."""
    with pytest.raises(ValueError, match="rank 5 needs as many iterates, 4 were collected"):
        _ = walk(4, rank=5)[0].factor


def test_a_rank_below_two_is_refused() -> None:
    """SWAG of rank 1 is refused: its covariance would divide by zero."""
    with pytest.raises(ValueError, match="rank must be at least 2, got 1"):
        walk(0, rank=1)


def test_load_mean() -> None:
    """After load_mean the weights are SWAG's mean in their shapes."""
    swag, seen = walk(5, rank=3)
    swag.load_mean()
    assert [tuple(w.shape) for w in swag.weights] == [(2, 3), (4,)]
    found = np.concatenate([w.detach().numpy().ravel() for w in swag.weights])
    np.testing.assert_allclose(found, seen.mean(0), rtol=1e-10)


def test_batchnorm_is_the_plain_average_over_batches() -> None:
    """Running statistics become the mean over batches of each batch's own; momentum stays."""
    norm = nn.BatchNorm1d(3, momentum=0.3)
    with torch.no_grad():
        norm.running_mean.fill_(9)
        norm.num_batches_tracked.fill_(5)
    batches = [torch.randn(n, 3) * n + n for n in (4, 6, 5)]
    recompute_batchnorm(nn.Sequential(norm), batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(0) for x in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var(0) for x in batches]).mean(0))
    assert norm.momentum == 0.3


def test_without_batchnorm_no_batch_is_read() -> None:
    """A network without BatchNorm costs no pass over the images."""

    def batches() -> Iterator[Tensor]:
        raise AssertionError("a batch was asked for")
        yield torch.zeros(1)

    recompute_batchnorm(nn.Linear(2, 2), batches())
