"""The isotropic Gaussian posterior q(theta) = N(theta_bar, sigma^2 I) around the weights of any module.

The module's own parameters are theta_bar. `sample` shifts them in place to theta_bar + sigma eps, so that whoever calls
the module inside the block calls a draw from q, and puts them back to the bit on leaving. What ``backward`` left in the
gradients is g = dL/dtheta at the draw; by the reparameterisation trick (Kingma and Welling 2014)

    dL/dtheta_bar = g,    dL/drho = (g . eps) dsigma/drho,    sigma = softplus(rho),    dsigma/drho = sigmoid(rho).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deelbo._vectors import add, dot, flatten, flatten_gradients, write
from deelbo.limits import MIN_SIGMA

__all__ = ["Draw", "IsotropicPosterior"]


@dataclass
class Draw:
    """One draw from q: ``mean`` is theta_bar and ``shift`` is sigma eps, both (D,) and good until the next draw.

    ``gradient`` (D,) is, once the block is left, a copy of dL/dtheta_bar, or None where nothing ran ``backward``. An
    objective completes it in place and makes it the weights' gradients.
    """

    mean: Tensor
    shift: Tensor
    gradient: Tensor | None = None

    @property
    def backward_ran(self) -> bool:
        """Whether anything left a gradient behind."""
        return self.gradient is not None


class IsotropicPosterior:
    """q(theta) = N(theta_bar, sigma^2 I) with ONE learned sigma for all weights.

    Args:
        parameters: the weights theta, in the order of the vector theta_bar. Frozen ones are passed over, tied ones
            counted once.
        sigma: where sigma starts, > 0.
        generator: the random numbers eps come from; torch's global generator where None.

    Raises:
        ValueError: no weight to train, weights of several types or devices, or in half precision (where a shift of
            1e-4 is lost to rounding: keep the weights in float32 and use autocast).
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], sigma: float = 1e-4, generator: torch.Generator | None = None
    ) -> None:
        self.weights = list(dict.fromkeys(p for p in parameters if p.requires_grad))
        if not self.weights:
            raise ValueError("the posterior needs at least one weight with requires_grad=True, got none")
        kinds = {(p.dtype, p.device) for p in self.weights}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(f"all trained weights must share one type and device, got {found}: move the model first")
        if not MIN_SIGMA <= sigma < math.inf:
            raise ValueError(f"sigma must be a number of at least {MIN_SIGMA:g}, got {sigma}")
        like = self.weights[0]
        if like.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"weights must be float32 or float64, got {like.dtype}: keep them so and use autocast")
        self.generator = generator
        rho = math.log(math.expm1(sigma)) if sigma < 30 else sigma  # softplus is the identity to the bit from there
        self.rho = nn.Parameter(torch.tensor(rho, dtype=like.dtype, device=like.device))
        self._inside = False
        self._room: Tensor | None = None  # for theta_bar and sigma eps: fresh memory at every step costs time on a CPU

    @property
    def dim(self) -> int:
        """D, the number of weights."""
        return sum(p.numel() for p in self.weights)

    @property
    def sigma(self) -> Tensor:
        """softplus(rho), detached; 0-dimensional."""
        return nn.functional.softplus(self.rho.detach())

    @property
    def sigma_slope(self) -> Tensor:
        """dsigma/drho = sigmoid(rho), detached; 0-dimensional."""
        return torch.sigmoid(self.rho.detach())

    @contextmanager
    def sample(self) -> Iterator[Draw]:
        """Inside the block the weights are one draw from q; ``forward`` and ``backward`` both belong in there.

        Gradients of the weights and of rho are cleared on entering. On leaving, the weights are theta_bar again, their
        gradients dL/dtheta_bar, and ``rho.grad`` is dL/drho. Where nothing ran ``backward``, or the block raised,
        there are no new gradients.

        Raises:
            RuntimeError: entered while already inside.
        """
        if self._inside:
            raise RuntimeError("sample() was entered inside sample(): leave the first block before drawing again")
        self._clear_gradients()
        like = self.weights[0]
        if self._room is None:
            self._room = torch.empty(2, self.dim, dtype=like.dtype, device=like.device)
        mean, shift = flatten(self.weights, out=self._room[0]), self._room[1]
        sigma = self.sigma
        torch.randn(shift.shape, generator=self.generator, out=shift).mul_(sigma)
        draw = Draw(mean, shift)
        self._inside = True
        try:
            add(self.weights, shift)
            torch.clear_autocast_cache()  # which knows nothing of a change in place
            yield draw
        except BaseException:
            self._clear_gradients()
            raise
        finally:
            self._inside = False
            write(self.weights, mean)
            torch.clear_autocast_cache()
        draw.gradient = flatten_gradients(self.weights)
        if draw.gradient is not None:
            self.rho.grad = dot(draw.gradient, shift) / sigma * self.sigma_slope

    def _clear_gradients(self) -> None:
        for parameter in [self.rho, *self.weights]:
            parameter.grad = None
