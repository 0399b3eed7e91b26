"""Ridge regression: a problem whose posterior, evidence and leave-one-out error have closed forms.

    y = X w + noise,    noise ~ N(0, noise^2 I),    prior w ~ N(0, s I)

with N rows and D columns. The loss is the mean Gaussian NLL without constants, so that a strength alpha means the same
as in every objective of the library:

    L(w) = ||y - X w||^2 / (2 N noise^2) + (alpha/2) ||w||^2,    alpha = 1 / (N s)

Everything is exact and in float64 (MacKay 1992, "Bayesian Interpolation"; PRESS: Allen 1974, "The Relationship between
Variable Selection and Data Augmentation and a Method for Prediction").
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[np.float64]
RANGE = (1e-8, 1e2)


@dataclass(frozen=True)
class Ridge:
    """A ridge regression.

    Attributes:
        X: inputs, (N, D).
        y: outputs, (N,).
        noise: standard deviation of the outputs' noise, which is known.
        fresh_x, fresh_y: further rows for validation or testing.
    """

    X: Array
    y: Array
    noise: float
    fresh_x: Array
    fresh_y: Array

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.y)

    @property
    def dim(self) -> int:
        """D."""
        return self.X.shape[1]

    def nll(self, w: Array) -> float:
        """Return the mean Gaussian NLL in nats, without constants, of weights (D,) on the training rows."""
        return float(np.mean((self.y - self.X @ w) ** 2) / (2 * self.noise**2))

    def fresh_nll(self, w: Array) -> float:
        """Return `nll` on the fresh rows."""
        return float(np.mean((self.fresh_y - self.fresh_x @ w) ** 2) / (2 * self.noise**2))

    def hessian(self) -> Array:
        """Return the Hessian X^T X / (N noise^2) of the mean NLL, (D, D)."""
        return self.X.T @ self.X / (self.num_examples * self.noise**2)

    def solution(self, alpha: float) -> Array:
        """Return the weights (D,) that minimize L."""
        right = self.X.T @ self.y / (self.num_examples * self.noise**2)
        return np.linalg.solve(self.hessian() + alpha * np.eye(self.dim), right)

    def evidence(self, alpha: float) -> float:
        """Return log p(y | X, alpha) / N in nats, with y ~ N(0, noise^2 I + X X^T / (N alpha))."""
        scale = 1 / (self.num_examples * alpha)
        covariance = self.noise**2 * np.eye(self.num_examples) + scale * self.X @ self.X.T
        _, log_det = np.linalg.slogdet(covariance)
        quadratic = self.y @ np.linalg.solve(covariance, self.y)
        n = self.num_examples
        return float(-0.5 * (quadratic + log_det + n * np.log(2 * np.pi)) / n)

    def loo(self, alpha: float) -> float:
        """Return the leave-one-out NLL (PRESS): each row's NLL under the other rows' weights, at the same N alpha."""
        inverse = np.linalg.inv(self.hessian() + alpha * np.eye(self.dim)) / (self.num_examples * self.noise**2)
        leverage = np.einsum("nd,de,ne->n", self.X, inverse, self.X)
        residual = (self.y - self.X @ self.solution(alpha)) / (1 - leverage)
        return float(np.mean(residual**2) / (2 * self.noise**2))

    def best_alpha_evidence(self) -> float:
        """Return the alpha of maximum evidence."""
        return _least(lambda alpha: -self.evidence(alpha))

    def best_alpha_loo(self) -> float:
        """Return the alpha of minimum leave-one-out NLL."""
        return _least(self.loo)

    def best_alpha_fresh(self) -> float:
        """Return the alpha whose solution has the minimum NLL on the fresh rows."""
        return _least(lambda alpha: self.fresh_nll(self.solution(alpha)))


def ridge(
    num_examples: int = 60,
    dim: int = 30,
    scale: float = 0.25,
    noise: float = 1.0,
    decay: float = 0.0,
    fresh: int = 4000,
    seed: int = 0,
) -> Ridge:
    """Return a problem whose true weights are drawn from N(0, scale I), so that the true alpha is 1 / (N scale).

    Column i of X has the standard deviation (i + 1)^-decay, and ``fresh`` further rows are drawn.
    """
    random = np.random.default_rng(seed)
    spread = (1.0 + np.arange(dim)) ** -decay
    truth = random.normal(size=dim) * np.sqrt(scale)
    inputs = [random.normal(size=(count, dim)) * spread for count in (num_examples, fresh)]
    outputs = [rows @ truth + noise * random.normal(size=len(rows)) for rows in inputs]
    return Ridge(inputs[0], outputs[0], noise, inputs[1], outputs[1])


def _least(of: Callable[[float], float]) -> float:
    """Return the minimizing alpha in `RANGE`: the best of a grid, refined between its neighbors."""
    grid = np.linspace(np.log(RANGE[0]), np.log(RANGE[1]), 93)
    place = int(np.argmin([of(float(np.exp(x))) for x in grid]))
    bounds = (grid[max(place - 1, 0)], grid[min(place + 1, len(grid) - 1)])
    found = minimize_scalar(lambda x: of(float(np.exp(x))), bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
