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

from deelbo._random import fill_normal_
from deelbo._vectors import add_, copy_, dense_gradients, dot_with, overlapping, views
from deelbo.limits import MIN_SIGMA


@dataclass
class Draw:
    """One draw from q. The vectors (D,) are valid until the next draw."""

    mean: Tensor  # theta_bar; free to be overwritten after the block
    shift: Tensor  # sigma eps
    has_gradient: bool = False  # after the block: whether ``backward`` ran in it


@dataclass
class _Buffers:
    """Memory of a draw, reused in every step, as new memory is slow on a CPU; with views of the weights' shapes."""

    mean: Tensor
    shift: Tensor
    mean_pieces: list[Tensor]
    shift_pieces: list[Tensor]


class IsotropicPosterior:
    """q(theta) = N(theta_bar, sigma^2 I) with one learned sigma for all weights.

    Args:
        parameters: the weights theta, in the order of the vector theta_bar. Frozen weights are left out, tied ones
            counted once.
        sigma: initial sigma, at least 1e-12.
        generator: source of eps; None: torch's global generator.

    Raises:
        ValueError: no trained weight, weights of several types or devices, on the meta device or in the same memory,
            or weights in half precision, where a shift of 1e-4 would be lost to rounding.
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
        if first.is_meta:
            raise ValueError("the weights are on the meta device, so they have no values yet: load the model first")
        if (pair := overlapping(self.weights)) is not None:
            if pair[0] is pair[1]:
                raise ValueError(f"elements of a weight of shape {tuple(pair[0].shape)} share memory: clone it first")
            raise ValueError(
                f"two weights of shapes {tuple(pair[0].shape)} and {tuple(pair[1].shape)} share memory, so both would "
                "be shifted: tie them as one nn.Parameter (module_b.weight = module_a.weight)"
            )
        self.generator = generator
        self._evaluation_generator = generator  # of draws for which no gradients are recorded
        rho = math.log(math.expm1(sigma)) if sigma < 30 else sigma  # from 30 on softplus is the identity, exactly
        self.rho = nn.Parameter(torch.tensor(rho, dtype=first.dtype, device=first.device))
        self._frozen_rho: Tensor | None = None
        self._is_sampling = False
        self._buffers: _Buffers | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the buffers out, as a pickle would keep the views of them as tensors of their own."""
        return self.__dict__ | {"_buffers": None}

    @property
    def dim(self) -> int:
        """D, the number of weights."""
        return sum(p.numel() for p in self.weights)

    @property
    def sigma(self) -> Tensor:
        """softplus(rho), detached; 0-dimensional."""
        return nn.functional.softplus(self.current_rho)

    @property
    def current_rho(self) -> Tensor:
        """rho, detached, or its value at `freeze`; 0-dimensional."""
        return self.rho.detach() if self._frozen_rho is None else self._frozen_rho

    def freeze(self, is_frozen: bool = True) -> None:
        """Fix sigma as it is now, whatever an optimizer's momentum does to rho afterwards; or let it follow rho."""
        self._frozen_rho = self.rho.detach().clone() if is_frozen else None

    @property
    def sigma_slope(self) -> Tensor:
        """dsigma/drho = sigmoid(rho), detached; 0-dimensional."""
        return torch.sigmoid(self.rho.detach())

    @contextmanager
    def sample(self, redraw: bool = True, is_quiet: bool = False) -> Iterator[Draw]:
        """A block in which the weights are one draw from q; ``forward`` and ``backward`` both belong inside.

        Gradients of the weights and of rho are cleared on entry. On exit the weights are theta_bar again, their
        gradients are dL/dtheta_bar and ``rho.grad`` is dL/drho; there are none if ``backward`` did not run or the block
        raised. Where gradients are not recorded (`torch.no_grad`), no gradient is cleared or changed.

        Args:
            redraw: False: use the shift of the last draw again, keep the gradients and add to them. Their own product
                with eps is subtracted, so they may have been completed by a regularizer's gradient in the meantime.
            is_quiet: take theta_bar itself, eps = 0, where gradients are recorded.

        Raises:
            RuntimeError: the block is entered inside itself.
        """
        if self._is_sampling:
            raise RuntimeError("sample() was entered inside sample(): leave the first block before drawing again")
        if not torch.is_grad_enabled():
            buffers = self._allocate()
            fill_normal_(buffers.shift, self.sigma, self._evaluation_generator)
            with self._shifted(buffers) as draw:
                yield draw
            return
        if self._buffers is None:
            self._buffers = self._allocate()
        buffers, earlier = self._buffers, None
        if redraw:
            self._clear_gradients()
            if is_quiet:
                buffers.shift.zero_()
            else:
                fill_normal_(buffers.shift, self.sigma, self.generator)
        else:
            earlier = dot_with(dense_gradients(self.weights), buffers.shift)
        try:
            with self._shifted(buffers) as draw:
                yield draw
        except BaseException:
            self._clear_gradients()
            raise
        if gradients := dense_gradients(self.weights):
            draw.has_gradient = True
            product = dot_with(gradients, draw.shift)
            gradient = (product if earlier is None else product - earlier) / self.sigma * self.sigma_slope
            self.rho.grad = gradient if self.rho.grad is None else self.rho.grad + gradient

    @contextmanager
    def _shifted(self, buffers: _Buffers) -> Iterator[Draw]:
        """A block in which the weights are theta_bar plus the shift."""
        copy_(buffers.mean_pieces, self.weights)
        add_(self.weights, buffers.shift_pieces)
        torch.clear_autocast_cache()  # it does not notice a change in place
        self._is_sampling = True
        try:
            yield Draw(buffers.mean, buffers.shift)
        finally:
            self._is_sampling = False
            copy_(self.weights, buffers.mean_pieces)
            torch.clear_autocast_cache()

    def _allocate(self) -> _Buffers:
        # on a CPU, alignment changes the last digits of BLAS's sums; published results were made with this one
        offset = 0 if self.rho.is_cuda else self.dim % 16
        with torch.inference_mode(False):  # tensors made inside could not be used by later training steps
            mean, shift = (self.rho.new_empty(self.dim + offset)[offset:] for _ in range(2))
            return _Buffers(mean, shift, views(mean, self.weights), views(shift, self.weights))

    def _clear_gradients(self) -> None:
        for parameter in [self.rho, *self.weights]:
            parameter.grad = None
