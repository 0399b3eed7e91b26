"""SWAG: a Gaussian from the iterates of SGD at a constant learning rate.

SWAG (Maddox et al. 2019, "A Simple Baseline for Bayesian Uncertainty in Deep Learning") fits N(mean, 1/2 diag(s) +
Q Q^T / (2K - 2)) to the iterates w_1..w_T of SGD at a constant learning rate: mean = 1/T sum w_t; s = 1/T sum w_t^2 -
mean^2; the columns of Q are w_t - (mean of the first t iterates) for the last K.

Iterates are close to each other and may be far from zero, where float32 loses s in the difference of its two terms.
Instead, Welford's recursion sums the squares of w_t - w_1, which float32 subtracts exactly.
"""

from collections import deque

import torch
from torch import Tensor, nn

from deelbo._vectors import copy_, flatten, views


class SWAG:
    """Running statistics of the ``count`` iterates so far of weights; K = ``rank`` >= 2."""

    def __init__(self, weights: list[nn.Parameter], rank: int = 5) -> None:
        if rank < 2:
            raise ValueError(f"SWAG's rank must be at least 2, got {rank}")
        self.weights, self.rank, self.count = weights, rank, 0
        self._first = flatten(weights)
        self._mean = torch.zeros_like(self._first)  # of the iterates less the first
        self._squares = torch.zeros_like(self._first)  # sum of squared deviations from the mean
        self._deviations: deque[Tensor] = deque(maxlen=rank)

    def collect(self) -> None:
        """Add the current weights as an iterate."""
        now = flatten(self.weights)
        if self.count == 0:
            self._first.copy_(now)
        self.count += 1
        now -= self._first
        before = now - self._mean
        self._mean.add_(before / self.count)
        now -= self._mean
        self._squares.addcmul_(before, now)
        self._deviations.append(now)

    @property
    def mean(self) -> Tensor:
        """Mean of the iterates; shape (D,)."""
        return self._first + self._mean

    @property
    def variance(self) -> Tensor:
        """s, not negative; shape (D,)."""
        return self._squares / max(self.count, 1)

    @property
    def factor(self) -> Tensor:
        """Q, the last K deviations, newest last; shape (D, K)."""
        if len(self._deviations) < self.rank:
            raise ValueError(f"SWAG of rank {self.rank} needs as many iterates, {len(self._deviations)} were collected")
        return torch.stack(list(self._deviations), 1)

    def load_mean(self) -> None:
        """Set the weights to the mean, after which BatchNorm's statistics need to be recomputed."""
        copy_(self.weights, views(self.mean, self.weights))
