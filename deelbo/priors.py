"""Gaussian priors over one group of weights, with a scale that has a closed form.

A prior is w ~ N(mu, s Sigma) with w in R^D, a fixed mean mu, a fixed covariance Sigma and one scale s > 0. The
posterior is q(w) = N(w_bar, sigma^2 I). With d = w_bar - mu (Harvey, Petrov, Hughes 2024, "Learning the Regularization
Strength for Deep Fine-Tuning via a Data-Emphasized Variational Objective"):

    s*            = [sigma^2 tr(Sigma^-1) + d^T Sigma^-1 d] / D
    KL(q || p)    = 1/2 [D s*/s - D + D log s + log|Sigma| - D log sigma^2]
    KL at s = s*  = 1/2 [D log s* + log|Sigma| - D log sigma^2]

Everything costs O(D) for an isotropic Sigma and O(D K) for one with a factor of rank K.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deelbo._vectors import dot

CHUNK = 1 << 20  # weights


@dataclass(frozen=True)
class KLTerm:
    """KL(q || p) of one group at s = s*, with the gradient that an optimizer step needs. Scalars are 0-dimensional."""

    prior: GaussianPrior  # p
    sigma: Tensor  # standard deviation of q
    scale: Tensor  # s*
    precision_d: Tensor  # Sigma^-1 d = s* dKL/dw_bar; (D,)
    squared_distance: Tensor  # d^T Sigma^-1 d

    @property
    def value(self) -> Tensor:
        """KL in nats."""
        return self.prior._kl(self.scale, self.sigma)

    def value_at(self, scale: Tensor | float) -> Tensor:
        """Return KL at another scale s in nats."""
        s = torch.as_tensor(scale, dtype=self.scale.dtype, device=self.scale.device)
        return self.prior._kl(s, self.sigma) + 0.5 * self.prior.dim * (self.scale / s - 1)

    @property
    def gradient_sigma(self) -> Tensor:
        """dKL/dsigma = sigma tr(Sigma^-1) / s* - D / sigma."""
        return self.sigma * self.prior.trace_precision / self.scale - self.prior.dim / self.sigma


class GaussianPrior(ABC):
    """N(mu, s Sigma) over a vector of D weights. A subclass defines Sigma."""

    mean: Tensor  # mu; (D,)
    trace_precision: float  # tr(Sigma^-1)
    log_det: float  # log|Sigma|

    @property
    def dim(self) -> int:
        """D, the number of weights."""
        return self.mean.numel()

    @abstractmethod
    def precision_times(self, vector: Tensor) -> Tensor:
        """Return Sigma^-1 x for x of shape (D,)."""

    def squared_distance(self, weights: Tensor) -> Tensor:
        """Return d^T Sigma^-1 d for weights of shape (D,); 0-dimensional."""
        d = weights - self.mean
        return dot(d, self.precision_times(d))

    def scale(self, weights: Tensor, sigma: Tensor) -> Tensor:
        """Return s* = [sigma^2 tr(Sigma^-1) + d^T Sigma^-1 d] / D, which minimizes KL(q || p); 0-dimensional."""
        return (sigma**2 * self.trace_precision + self.squared_distance(weights)) / self.dim

    def kl(self, weights: Tensor, sigma: Tensor, scale: Tensor | float | None = None) -> Tensor:
        """Return KL(N(weights, sigma^2 I) || N(mu, scale Sigma)) in nats; ``scale`` None: s*. 0-dimensional."""
        term = self.kl_term(weights, sigma)
        return term.value if scale is None else term.value_at(scale)

    def kl_term(self, weights: Tensor, sigma: Tensor, out: Tensor | None = None) -> KLTerm:
        """Return KL at s* and its gradient, from one product with Sigma^-1; ``out`` is memory (D,) it may share."""
        d = torch.sub(weights, self.mean, out=out)
        precision_d = self.precision_times(d)
        squared_distance = dot(d, precision_d)
        scale = (sigma**2 * self.trace_precision + squared_distance) / self.dim
        return KLTerm(self, sigma, scale, precision_d, squared_distance)

    def _kl(self, scale: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 * (self.dim * (torch.log(scale) - 2 * torch.log(sigma)) + self.log_det)


class Isotropic(GaussianPrior):
    """N(mu, s I): L2-zero with mu = 0, L2-SP with mu = the pretrained weights.

    Args:
        mean: mu, shape (D,).
    """

    def __init__(self, mean: Tensor) -> None:
        if mean.ndim != 1 or mean.numel() == 0:
            raise ValueError(f"the prior's mean must be a vector of at least one weight, got shape {tuple(mean.shape)}")
        self.mean = mean.detach().clone()
        self.trace_precision = float(self.dim)
        self.log_det = 0.0

    def precision_times(self, vector: Tensor) -> Tensor:
        return vector


class LowRank(GaussianPrior):
    """N(mu, s Sigma) with Sigma = 1/2 diag(variance) + epsilon I + Q Q^T / (2K - 2): PTYL's prior, from SWAG.

    Shwartz-Ziv et al. 2022, "Pre-Train Your Loss"; SWAG: Maddox et al. 2019, "A Simple Baseline for Bayesian
    Uncertainty in Deep Learning". With A the diagonal part, F = Q / sqrt(2K - 2) and M = I_K + F^T A^-1 F = L L^T, the
    Woodbury identity and the matrix determinant lemma give, for B = A^-1 F L^-T of shape (D, K),

        Sigma^-1 = A^-1 - B B^T,    log|Sigma| = sum log A + 2 sum log diag L,    tr(Sigma^-1) = sum 1/A - ||B||_F^2.

    Args:
        mean: mu, shape (D,).
        variance: SWAG's diagonal variance s, shape (D,), not negative.
        factor: Q, shape (D, columns): deviations of SGD iterates from their mean, newest last.
        rank: K >= 2, number of the newest columns to use; None: all.
        epsilon: added to the diagonal.
    """

    def __init__(
        self, mean: Tensor, variance: Tensor, factor: Tensor, rank: int | None = None, epsilon: float = 0.1
    ) -> None:
        if mean.ndim != 1 or mean.numel() == 0:
            raise ValueError(f"the prior's mean must be a vector of at least one weight, got shape {tuple(mean.shape)}")
        if variance.shape != mean.shape:
            raise ValueError(f"variance must have the mean's shape {tuple(mean.shape)}, got {tuple(variance.shape)}")
        if factor.ndim != 2 or factor.shape[0] != mean.numel():
            raise ValueError(f"factor must have shape ({mean.numel()}, K), got {tuple(factor.shape)}")
        rank = factor.shape[1] if rank is None else rank
        if not 2 <= rank <= factor.shape[1]:
            raise ValueError(f"rank must lie between 2 and the factor's {factor.shape[1]} columns, got {rank}")
        if not bool(factor.isfinite().all()):
            raise ValueError("factor must be finite in every element, got NaN or infinity: fit SWAG again")
        if not bool((0.5 * variance.detach() + epsilon > 0).all()):
            raise ValueError("1/2 variance + epsilon must be positive for every weight: raise epsilon or fix variance")
        self.mean = mean.detach().clone()
        self._decompose(variance.detach(), factor.detach()[:, -rank:], epsilon)

    def _decompose(self, variance: Tensor, factor: Tensor, epsilon: float) -> None:
        """Compute A^-1, B and the two constants in float64, one chunk of weights at a time to bound the memory."""
        like, rank = self.mean, factor.shape[1]

        def chunks() -> Iterator[tuple[slice, Tensor, Tensor]]:
            """Yield each chunk's slice of the weights, diagonal of A, and rows of F."""
            for start in range(0, self.dim, CHUNK):
                rows = slice(start, start + CHUNK)
                diagonal = 0.5 * variance[rows].double() + epsilon
                yield rows, diagonal, factor[rows].double() * (1 / math.sqrt(2 * rank - 2))

        identity = torch.eye(rank, dtype=torch.float64, device=like.device)
        capacitance, log_det, trace = identity.clone(), 0.0, 0.0
        self._inverse_diagonal = torch.empty_like(like)
        for rows, diagonal, scaled in chunks():
            capacitance += scaled.T @ (scaled / diagonal[:, None])
            log_det += float(diagonal.log().sum())
            trace += float(diagonal.reciprocal().sum())
            self._inverse_diagonal[rows] = diagonal.reciprocal()
        cholesky = torch.linalg.cholesky(capacitance)
        inverse_root = torch.linalg.solve_triangular(cholesky, identity, upper=False).T  # L^-T
        self._half = torch.empty(rank, self.dim, dtype=like.dtype, device=like.device)
        for rows, diagonal, scaled in chunks():
            half = (scaled / diagonal[:, None]) @ inverse_root
            trace -= float(half.square().sum())
            self._half[:, rows] = half.T
        self.log_det = log_det + 2 * float(cholesky.diagonal().log().sum())
        self.trace_precision = trace

    def precision_times(self, vector: Tensor) -> Tensor:
        with torch.autocast(vector.device.type, enabled=False):  # sample()'s block may be inside an autocast
            inner = torch.stack([dot(column, vector) for column in self._half])  # B^T x; a matrix product may use TF32
            return (self._inverse_diagonal * vector).addmv_(self._half.T, inner, alpha=-1)
