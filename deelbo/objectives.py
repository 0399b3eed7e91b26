"""What a training run minimises: MAP, the ELBo, or the data-emphasized ELBo. One interface, one training loop.

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
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deelbo.posterior import Draw, IsotropicPosterior
from deelbo.priors import GaussianPrior, Isotropic, KLTerm
from deelbo.vectors import add_to_gradients_, flatten, set_gradients, squared_norms

if TYPE_CHECKING:
    from deelbo.run import Run

__all__ = ["ELBO", "MAP", "DataEmphasizedELBO", "Group", "Objective"]

FEW = 3  # groups up to which each has its own launches


@dataclass(frozen=True)
class Group:
    """Weights that share one prior, e.g. the backbone. ``prior.dim`` is the number of their elements.

    ``part``: what they are a part of, "backbone" for one of its layers; None where they are the whole of it.
    """

    name: str
    weights: tuple[nn.Parameter, ...]
    prior: GaussianPrior
    part: str | None = None

    def __post_init__(self) -> None:
        size = sum(p.numel() for p in self.weights)
        if size != self.prior.dim:
            raise ValueError(f"group {self.name!r} has {size} weights, its prior {self.prior.dim}: they must agree")


class Objective(ABC):
    """The training loop's side of an objective: run ``forward`` and ``backward`` of the mean NLL inside `step`.

    Args:
        groups: the groups of weights, each weight in exactly one.
        num_examples: N, the number of training examples.
    """

    def __init__(self, groups: Sequence[Group], num_examples: int) -> None:
        if not groups:
            raise ValueError("an objective needs at least one group of weights, got none")
        try:
            count = 0 if isinstance(num_examples, bool) else operator.index(num_examples)
        except TypeError:
            count = 0
        if count < 1:
            raise ValueError(f"num_examples must be a whole number of at least 1, got {num_examples!r}")
        self.groups = tuple(groups)
        self.num_examples = count
        self.weights = [p for group in groups for p in group.weights]
        self.dim = sum(group.prior.dim for group in groups)

    generator: torch.Generator | None = None
    """Where the objective's own random numbers come from; torch's global generator where None."""

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser must learn beside the module's own weights."""
        return []

    @property
    def is_bayesian(self) -> bool:
        """Whether a draw from a posterior is what `step` trains."""
        return False

    def due(self, steps_done: int) -> bool:
        """Whether `adapt` should follow the ``steps_done``-th optimiser step. Asked after every one: it must not wait
        for the device."""
        return False

    def adapt(self, run: Run) -> None:  # noqa: B027 - most objectives have nothing to do
        """Learns strengths beside the steps, where `due`; booked under the clock's "adapt".

        It leaves the weights, their buffers and the network's mode as they were.
        """

    def warm_up(self, run: Run) -> None:  # noqa: B027 - most objectives have nothing to do
        """Pays for the first calls of `adapt`, in the run's warm-up, after which `learned_state` is put back."""

    def final(self, run: Run) -> dict[str, float]:
        """What a run's metrics get at its end from an objective that is not Bayesian, booked under "select"."""
        return {}

    def learned_state(self) -> dict[str, Tensor]:
        """What `adapt` has learned, and all that its next calls depend on, beside `parameters`: what a checkpoint must
        keep. Names, shapes and types are the same throughout a run; the tensors may be the objective's own."""
        return {}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - most objectives have nothing to do
        """Goes on from a `learned_state`, whose tensors may lie on any device and are copied."""

    @abstractmethod
    def step(self) -> AbstractContextManager[object]:
        """A block for one step: on leaving it after ``backward``, the gradients are those of the whole objective."""

    @abstractmethod
    def regulariser(self) -> Tensor:
        """What the objective adds to the mean NLL, now; 0-dimensional."""

    @abstractmethod
    def weight_decay(self) -> dict[str, float]:
        """The strength alpha_g of each group's weight decay, the gradient being alpha_g Sigma_g^-1 d_g."""

    def describe(self) -> dict[str, float]:
        """What a record keeps of the objective's state. Synchronises with the device: not for every step."""
        with torch.no_grad():
            state = {"regulariser": float(self.regulariser())}
        state |= {f"weight_decay_{name}": strength for name, strength in self.weight_decay().items()}
        for group in self.groups:
            state[f"dim_{group.name}"] = group.prior.dim
            state[f"squared_distance_{group.name}"] = float(group.prior.squared_distance(flatten(group.weights)))
        return state | self._of_parts(state)

    def _of_parts(self, state: Mapping[str, float]) -> dict[str, float]:
        """What a description of layers says of the part that they make up: sums of what adds up, the mean of the prior
        variances over its weights, and the strength that belongs to that."""
        found: dict[str, float] = {}
        for part in dict.fromkeys(group.part for group in self.groups if group.part):
            own = [group for group in self.groups if group.part == part]
            for what in ("dim", "squared_distance", "trace_precision", "log_det"):
                if f"{what}_{own[0].name}" in state:
                    found[f"{what}_{part}"] = sum(state[f"{what}_{group.name}"] for group in own)
            strengths = [state[f"weight_decay_{group.name}"] for group in own]
            dims = [group.prior.dim for group in own]
            variances = [
                dim / strength if strength else math.inf for dim, strength in zip(dims, strengths, strict=True)
            ]
            found[f"weight_decay_{part}"] = sum(dims) / sum(variances) if sum(variances) else math.inf
            if f"scale_{own[0].name}" in state:
                found[f"scale_{part}"] = sum(group.prior.dim * state[f"scale_{group.name}"] for group in own) / sum(
                    dims
                )
        return found

    def _pieces(self, vector: Tensor) -> list[Tensor]:
        """One slice of a (D,) vector for each group."""
        return list(vector.split([group.prior.dim for group in self.groups]))


class MAP(Objective):
    """Maximum a posteriori: weight decay towards each prior's mean.

    Args:
        groups, num_examples: as in `Objective`.
        weight_decay: alpha_g by group name, >= 0; alpha = 1 / (N s) is the prior N(mu, s Sigma). Layers may be given
            one strength by the name of what they are a part of.

    Raises:
        ValueError: a group without a strength, a strength without a group, or one that is negative or not finite.
    """

    def __init__(self, groups: Sequence[Group], num_examples: int, weight_decay: Mapping[str, float]) -> None:
        super().__init__(groups, num_examples)
        weight_decay = _spread(groups, weight_decay)
        names = [group.name for group in groups]
        if set(names) != set(weight_decay):
            raise ValueError(f"weight_decay must name the groups {names}, got {sorted(weight_decay)}")
        for name, strength in weight_decay.items():
            if not 0 <= strength < math.inf:
                raise ValueError(f"the weight decay of {name!r} must be a number >= 0, got {strength}")
        self._strengths = {name: float(weight_decay[name]) for name in names}
        self._room: Tensor | None = None  # for d: fresh memory at every step costs time on a CPU

    @contextmanager
    def step(self) -> Iterator[None]:
        for parameter in self.weights:
            parameter.grad = None
        yield
        if all(p.grad is None for p in self.weights):
            return
        if self._room is None:
            self._room = torch.empty(self.dim, dtype=self.weights[0].dtype, device=self.weights[0].device)
        for group, room in zip(self.groups, self._pieces(self._room), strict=True):
            strength = self._strengths[group.name]
            if strength:
                deviation = flatten(group.weights, out=room).sub_(group.prior.mean)
                add_to_gradients_(group.weights, group.prior.precision_times(deviation), strength)

    def regulariser(self) -> Tensor:
        terms = [
            0.5 * self._strengths[group.name] * group.prior.squared_distance(flatten(group.weights))
            for group in self.groups
        ]
        return torch.stack(terms).sum()

    def weight_decay(self) -> dict[str, float]:
        return dict(self._strengths)


def _spread(groups: Sequence[Group], strengths: Mapping[str, float]) -> dict[str, float]:
    """Strengths by group where some are given by the part that groups belong to."""
    parts = {group.part for group in groups} & set(strengths)
    given = {group.name: strengths[group.part] for group in groups if group.part in parts and group.part}
    return given | {name: strength for name, strength in strengths.items() if name not in parts}


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

    def regulariser(self) -> Tensor:
        return self._regulariser(self._terms_now())

    def _regulariser(self, terms: list[KLTerm]) -> Tensor:
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
        state = {"regulariser": float(self._regulariser(terms)), "sigma": float(self.posterior.sigma)}
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
