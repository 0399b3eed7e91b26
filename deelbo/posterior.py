"""The isotropic Gaussian posterior q(theta) = N(theta_bar, sigma^2 I) over the weights of any module.

The module's own parameters are theta_bar. `IsotropicPosterior.sample` shifts them in place to theta_bar + sigma eps, so
that code which calls the module inside the block uses a draw from q, and restores them exactly afterwards. With the
gradient g = dL/dtheta at the draw, the reparameterization trick (Kingma and Welling 2014, "Auto-Encoding Variational
Bayes", section 2.4) gives

    dL/dtheta_bar = g,    dL/drho = (g . eps) dsigma/drho,    sigma = softplus(rho),    dsigma/drho = sigmoid(rho).
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deelbo._vectors import add, dot, flatten, flatten_gradients, write
from deelbo.limits import MIN_SIGMA


@dataclass
class Draw:
    """One draw from q. The vectors (D,) are valid until the next draw.

    After the block, ``gradient`` is a copy of dL/dtheta_bar, which an objective may complete in place and make the
    weights' gradients; None if ``backward`` did not run.
    """

    mean: Tensor  # theta_bar
    shift: Tensor  # sigma eps
    gradient: Tensor | None = None


class IsotropicPosterior:
    """q(theta) = N(theta_bar, sigma^2 I) with one learned sigma for all weights.

    Args:
        parameters: the weights theta, in the order of the vector theta_bar. Frozen weights are left out, tied ones
            counted once.
        sigma: initial sigma, at least 1e-12.
        generator: source of eps; None: torch's global generator.

    Raises:
        ValueError: no trained weight, weights of several types or devices, or weights in half precision, where a shift
            of 1e-4 would be lost to rounding.
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
        first = self.weights[0]
        if first.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"weights must be float32 or float64, got {first.dtype}: keep them so and use autocast")
        self.generator = generator
        rho = math.log(math.expm1(sigma)) if sigma < 30 else sigma  # from 30 on softplus is the identity, exactly
        self.rho = nn.Parameter(torch.tensor(rho, dtype=first.dtype, device=first.device))
        self._is_sampling = False
        self._buffers: tuple[Tensor, Tensor] | None = None  # reused, as new memory in every step is slow on a CPU

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
        """A block in which the weights are one draw from q; ``forward`` and ``backward`` both belong inside.

        Gradients of the weights and of rho are cleared on entry. On exit the weights are theta_bar again, their
        gradients are dL/dtheta_bar and ``rho.grad`` is dL/drho; there are none if ``backward`` did not run or the block
        raised.

        Raises:
            RuntimeError: the block is entered inside itself.
        """
        if self._is_sampling:
            raise RuntimeError("sample() was entered inside sample(): leave the first block before drawing again")
        self._clear_gradients()
        self._buffers = self._buffers or self._allocate()
        mean, shift = flatten(self.weights, out=self._buffers[0]), self._buffers[1]
        sigma = self.sigma
        torch.randn(shift.shape, generator=self.generator, out=shift).mul_(sigma)
        draw = Draw(mean, shift)
        self._is_sampling = True
        try:
            add(self.weights, shift)
            torch.clear_autocast_cache()  # it does not notice a change in place
            yield draw
        except BaseException:
            self._clear_gradients()
            raise
        finally:
            self._is_sampling = False
            write(self.weights, mean)
            torch.clear_autocast_cache()
        draw.gradient = flatten_gradients(self.weights)
        if draw.gradient is not None:
            self.rho.grad = dot(draw.gradient, shift) / sigma * self.sigma_slope

    def _allocate(self) -> tuple[Tensor, Tensor]:
        like: dict[str, Any] = {"dtype": self.rho.dtype, "device": self.rho.device}
        if self.rho.is_cuda:  # the second row of one matrix need not be aligned to 16 bytes, as foreach kernels want it
            return torch.empty(self.dim, **like), torch.empty(self.dim, **like)
        first, second = torch.empty(2, self.dim, **like)  # another alignment changes the last digits of BLAS's sums
        return first, second

    def _clear_gradients(self) -> None:
        for parameter in [self.rho, *self.weights]:
            parameter.grad = None
