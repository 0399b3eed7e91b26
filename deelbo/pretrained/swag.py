"""SWAG: a Gaussian from the iterates of SGD at a constant learning rate.

SWAG (Maddox et al. 2019, "A Simple Baseline for Bayesian Uncertainty in Deep Learning") fits N(mean, 1/2 diag(s) +
Q Q^T / (2K - 2)) to the iterates w_1..w_T of SGD at a constant learning rate: mean = 1/T sum w_t; s = 1/T sum w_t^2 -
mean^2; the columns of Q are w_t - (mean of the first t iterates) for the last K.
"""

from collections import deque

import torch
from torch import Tensor, nn

from deelbo._vectors import copy_, flatten, views


class SWAG:
    """Running statistics, such as the ``mean`` (D,), of the ``count`` iterates so far of weights; K = ``rank`` >= 2."""

    def __init__(self, weights: list[nn.Parameter], rank: int = 5) -> None:
        if rank < 2:
            raise ValueError(f"SWAG's rank must be at least 2, got {rank}")
        self.weights, self.rank, self.count = weights, rank, 0
        self.mean = torch.zeros_like(flatten(weights))
        self._square = torch.zeros_like(self.mean)
        self._deviations: deque[Tensor] = deque(maxlen=rank)

    def collect(self) -> None:
        """Add the current weights as an iterate."""
        now = flatten(self.weights)
        self.count += 1
        self.mean.add_((now - self.mean) / self.count)
        self._square.add_((now.square() - self._square) / self.count)
        self._deviations.append(now - self.mean)

    @property
    def variance(self) -> Tensor:
        """s, not negative; shape (D,)."""
        return (self._square - self.mean.square()).clamp_min(0)

    @property
    def factor(self) -> Tensor:
        """Q, the last K deviations, newest last; shape (D, K)."""
        if len(self._deviations) < self.rank:
            raise ValueError(f"SWAG of rank {self.rank} needs as many iterates, {len(self._deviations)} were collected")
        return torch.stack(list(self._deviations), 1)

    def load_mean(self) -> None:
        """Set the weights to the mean, after which BatchNorm's statistics need to be recomputed."""
        copy_(self.weights, views(self.mean, self.weights))
