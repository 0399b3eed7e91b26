"""What a training run minimizes: MAP, the ELBo, or the data-emphasized ELBo. One interface, one training loop.

    MAP       mean NLL + sum_g (alpha_g / 2) d_g^T Sigma_g^-1 d_g,     alpha_g = 1 / (N s_g)
    ELBo      mean NLL under q + KL(q || p) / N
    DE ELBo   mean NLL under q + KL(q || p) / (kappa N),               kappa = D / N unless set

Both bounds are divided by kappa N, which moves no optimum and gives every objective a first term of the same size, so
that one learning rate and one gradient clipping mean the same to all. The groups g are the backbone, whose scale is
lambda, and the head, whose scale is tau; both are at their closed form at every step (see `deelbo.priors`).

Source: Harvey, Petrov, Hughes 2024, "Learning the Regularization Strength for Deep Fine-Tuning via a Data-Emphasized
Variational Objective".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deelbo._vectors import add_to_gradients_, flatten, set_gradients, squared_norms
from deelbo.groups import Group
from deelbo.objectives.base import Objective
from deelbo.posterior import Draw, IsotropicPosterior
from deelbo.priors import Isotropic, KLTerm

__all__ = ["ELBO", "DataEmphasizedELBO"]


FEW = 3  # groups up to which each has its own launches


class ELBO(Objective):
    """The evidence lower bound, divided by -kappa N: mean NLL under q + KL(q || p) / (kappa N), here with kappa = 1.

    One Monte-Carlo draw of the weights a step; lambda* and tau* in closed form at every step.

    Args:
        groups, num_examples: as in `Objective`.
        kappa: how often the likelihood counts, > 0.
        sigma: where the posterior's sigma starts.
        generator: random numbers for the draws.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        num_examples: int,
        kappa: float = 1.0,
        sigma: float = 1e-4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(groups, num_examples)
        if not 0 < kappa < math.inf:
            raise ValueError(f"kappa must be a positive number, got {kappa}")
        self.kappa, self.generator = float(kappa), generator
        self.posterior = IsotropicPosterior(self.weights, sigma, generator)
        if self.posterior.dim != self.dim:
            raise ValueError(
                f"the groups hold {self.dim} weights of which {self.posterior.dim} are distinct and not frozen: "
                "every weight must be trained and in exactly one group"
            )
        like = self.weights[0]
        self._dims: Tensor | None = None
        if len(groups) > FEW and all(isinstance(group.prior, Isotropic) for group in groups):
            dims = [float(group.prior.dim) for group in groups]
            self._dims = torch.tensor(dims, dtype=like.dtype, device=like.device)

    def parameters(self) -> list[nn.Parameter]:
        return [self.posterior.rho]

    @property
    def is_bayesian(self) -> bool:
        return True

    @contextmanager
    def step(self) -> Iterator[None]:
        with self.posterior.sample() as draw:
            yield
        if draw.gradient is not None:
            self._add_kl_gradient(draw, draw.gradient)

    @torch.no_grad()
    def _add_kl_gradient(self, draw: Draw, gradient: Tensor) -> None:
        """Completes ``gradient``, the NLL's (D,), in place, and hands it to the weights; rho's likewise."""
        sigma, share = self.posterior.sigma, 1 / (self.kappa * self.num_examples)
        if self._dims is None:
            terms = self._kl_terms(draw.mean, sigma, draw.shift)  # which has done its work
            for piece, term in zip(self._pieces(gradient), terms, strict=True):
                piece.addcmul_(term.precision_d, share / term.scale)
            slope = torch.stack([term.gradient_sigma for term in terms]).sum()
        else:
            slope = self._add_layers(draw, gradient, self._dims, sigma, share)
        set_gradients(self.weights, gradient)
        add_to_gradients_([self.posterior.rho], (slope * self.posterior.sigma_slope * share).reshape(1))

    def _add_layers(self, draw: Draw, gradient: Tensor, dims: Tensor, sigma: Tensor, share: float) -> Tensor:
        """Adds ``share`` times dKL/dtheta_bar to the gradient, as `_add_kl_gradient` does; returns dKL/dsigma.

        For many isotropic groups: what is a number of each group is one vector (G,) here, as a hundred layers would
        otherwise cost a thousand launches a step. ``dims``: the D_g.
        """
        deviations = self._pieces(draw.shift.copy_(draw.mean))
        torch._foreach_sub_(deviations, [group.prior.mean for group in self.groups])
        scales = sigma**2 + squared_norms(deviations) / dims
        for piece, deviation, factor in zip(self._pieces(gradient), deviations, (share / scales).unbind(), strict=True):
            piece.addcmul_(deviation, factor)
        return (sigma * dims / scales - dims / sigma).sum()

    def _kl_terms(self, mean: Tensor, sigma: Tensor, room: Tensor | None = None) -> list[KLTerm]:
        rooms = self._pieces(torch.empty_like(mean) if room is None else room)
        pieces = zip(self.groups, self._pieces(mean), rooms, strict=True)
        return [group.prior.kl_term(piece, sigma, own) for group, piece, own in pieces]

    @torch.no_grad()
    def _terms_now(self) -> list[KLTerm]:
        return self._kl_terms(flatten(self.weights), self.posterior.sigma)

    def regularizer(self) -> Tensor:
        return self._regularizer(self._terms_now())

    def _regularizer(self, terms: list[KLTerm]) -> Tensor:
        return torch.stack([term.value for term in terms]).sum() / (self.kappa * self.num_examples)

    def scales(self) -> dict[str, float]:
        """The learned closed-form scale of each group's prior: lambda* of the backbone, tau* of the head."""
        return {group.name: float(term.scale) for group, term in zip(self.groups, self._terms_now(), strict=True)}

    def weight_decay(self) -> dict[str, float]:
        """1 / (kappa N s*) for each group; with kappa = D/N that is 1 / (D s*)."""
        return {name: self._strength(scale) for name, scale in self.scales().items()}

    def _strength(self, scale: float) -> float:
        return 1 / (self.kappa * self.num_examples * scale) if scale else math.inf

    def describe(self) -> dict[str, float]:
        terms = self._terms_now()  # once, as with millions of weights it takes time
        state = {"regularizer": float(self._regularizer(terms)), "sigma": float(self.posterior.sigma)}
        for group, term in zip(self.groups, terms, strict=True):
            scale = float(term.scale)
            of_group = {"scale": scale, "weight_decay": self._strength(scale), "dim": group.prior.dim}
            of_group["squared_distance"] = float(term.squared_distance)
            of_group |= {"trace_precision": group.prior.trace_precision, "log_det": group.prior.log_det}
            state |= {f"{what}_{group.name}": value for what, value in of_group.items()}
        return state | self._of_parts(state) | {"kappa": self.kappa}


class DataEmphasizedELBO(ELBO):
    """The DE ELBo: the ELBo whose likelihood counts kappa = D/N times, D the weights and N the training examples.

    Args:
        kappa: D/N where None. Any other value is a setting of its own: for some data a smaller one tests better.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        num_examples: int,
        kappa: float | None = None,
        sigma: float = 1e-4,
        generator: torch.Generator | None = None,
    ) -> None:
        dim = sum(group.prior.dim for group in groups)
        kappa = dim / (num_examples or 1) if kappa is None else kappa  # N = 0 is refused by `Objective`
        super().__init__(groups, num_examples, kappa, sigma, generator)
