"""The evidence lower bound (ELBo) and the data-emphasized ELBo (DE ELBo), as losses.

    ELBo      mean NLL under q + KL(q || p) / N
    DE ELBo   mean NLL under q + KL(q || p) / (kappa N),    kappa = D / N by default

Both bounds are divided by kappa N. That moves no optimum, and the first term has the size of MAP's, so that a learning
rate and a gradient clipping mean the same for every objective. The groups g are the backbone, with scale lambda, and
the head, with scale tau; both scales take their closed form in every step (see `deelbo.priors`).

Source: Harvey, Petrov, Hughes 2024, "Learning the Regularization Strength for Deep Fine-Tuning via a Data-Emphasized
Variational Objective".
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deelbo._vectors import add_to_gradients_, flatten, squared_norms
from deelbo.groups import Group
from deelbo.objectives.base import Objective
from deelbo.objectives.map import MAP
from deelbo.posterior import Draw, IsotropicPosterior
from deelbo.priors import Isotropic, KLTerm

MAX_SEPARATE_GROUPS = 3  # up to so many groups, each is computed by launches of its own


def initial_sigma(groups: Sequence[Group], weight: float, alpha: float) -> float:
    """Return the sigma at which the backbone's learned strength is alpha, with its weights at the prior's mean.

    There s* = sigma^2 tr(Sigma^-1) / D_w and alpha = 1 / (kappa N s*), so sigma^2 = D_w / (kappa N alpha tr(Sigma^-1)),
    with tr(Sigma^-1) = D_w for the priors L2-zero and L2-SP. L2-zero's mean is not where training starts: there alpha
    is smaller at first.

    Args:
        groups: those but "head" are the backbone; all where there are no others.
        weight: kappa N.
        alpha: a positive number.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"start_alpha must be a positive number, got {alpha}")
    priors = [group.prior for group in groups if group.name != "head"] or [group.prior for group in groups]
    trace = sum(prior.trace_precision for prior in priors)
    return math.sqrt(sum(prior.dim for prior in priors) / (weight * alpha * trace))


class ELBO(Objective):
    """The evidence lower bound divided by -kappa N: mean NLL under q + KL(q || p) / (kappa N), here with kappa = 1.

    The expectation is one Monte-Carlo draw of the weights per step.

    Args:
        groups, num_examples: as in `Objective`.
        kappa: weight of the likelihood, > 0.
        sigma: initial standard deviation of the posterior.
        generator: random numbers of the draws; None: torch's global generator.
        start_alpha: the backbone's weight decay at the start, where its weights are at the prior's mean; it replaces
            ``sigma`` by `initial_sigma`. From a sigma of 1e-4 alpha falls by orders of magnitude in the first steps,
            which a short run, or one with a small learning rate, does not have. None: ``sigma`` as given.

    Raises:
        ValueError: kappa or start_alpha is not positive, a weight is frozen or in two groups, or as
            `IsotropicPosterior`.
    """

    is_bayesian = True

    def __init__(
        self,
        groups: Sequence[Group],
        num_examples: int,
        kappa: float = 1.0,
        sigma: float = 1e-4,
        generator: torch.Generator | None = None,
        start_alpha: float | None = None,
    ) -> None:
        super().__init__(groups, num_examples)
        if not 0 < kappa < math.inf:
            raise ValueError(f"kappa must be a positive number, got {kappa}")
        if start_alpha is not None:
            sigma = initial_sigma(groups, kappa * num_examples, start_alpha)
        self.kappa, self.generator = float(kappa), generator
        self.posterior = IsotropicPosterior(self.weights, sigma, generator)
        if self.posterior.dim != self.dim:
            found = f"the groups hold {self.dim} weights of which {self.posterior.dim} are distinct and not frozen"
            raise ValueError(f"{found}: every weight must be trained and in exactly one group")
        self._frozen = torch.zeros(len(groups), dtype=torch.float64)  # strengths of `freeze`; 0 before
        self._map: MAP | None = None  # after `freeze`
        self._dims: Tensor | None = None
        if len(groups) > MAX_SEPARATE_GROUPS and all(isinstance(group.prior, Isotropic) for group in groups):
            dims = [float(group.prior.dim) for group in groups]
            self._dims = torch.tensor(dims, dtype=self.weights[0].dtype, device=self.weights[0].device)

    def parameters(self) -> list[nn.Parameter]:
        return [self.posterior.rho]

    def freeze(self) -> None:
        """Fix sigma and the strengths: further steps draw nothing and are MAP's, with the strengths of this moment.

        For the last part of a run, such as 15 % of its steps, which then fits the weights that are evaluated.
        `regularizer` is then KL at the fixed scales. Under `torch.no_grad`, `step` still draws from the posterior.
        """
        if self._map is None:
            self._frozen = torch.tensor(list(self.weight_decay().values()), dtype=torch.float64)
            self._apply_frozen()

    @property
    def is_frozen(self) -> bool:
        """Whether `freeze` was called."""
        return self._map is not None

    def _apply_frozen(self) -> None:
        strengths = {group.name: alpha for group, alpha in zip(self.groups, self._frozen.tolist(), strict=True)}
        self._map = MAP(self.groups, self.num_examples, strengths) if any(strengths.values()) else None
        self.posterior.freeze(self._map is not None)
        self.posterior.rho.grad = None

    def learned_state(self) -> dict[str, Tensor]:
        return {"frozen": self._frozen}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_learned_state(state)
        self._apply_frozen()

    @contextmanager
    def step(self) -> Iterator[None]:
        if self._map is not None and torch.is_grad_enabled():
            with self._map.step():
                yield
            return
        with self.posterior.sample() as draw:
            yield
        if draw.has_gradient:
            self._add_kl_gradient(draw, 1 / (self.kappa * self.num_examples))

    @torch.no_grad()
    def _add_kl_gradient(self, draw: Draw, factor: float | Tensor) -> None:
        """Add ``factor`` times the gradient of KL to the gradients of the weights and of rho."""
        sigma = self.posterior.sigma
        if self._dims is None:
            terms = self._kl_terms(draw.mean, sigma, out=draw.mean)
            for group, term in zip(self.groups, terms, strict=True):
                add_to_gradients_(group.weights, term.precision_d, factor / term.scale)
            slope = torch.stack([term.gradient_sigma for term in terms]).sum()
        else:
            slope = self._add_layers(draw.mean, self._dims, sigma, factor)
        add_to_gradients_([self.posterior.rho], (slope * self.posterior.sigma_slope * factor).reshape(1))

    def _add_layers(self, mean: Tensor, dims: Tensor, sigma: Tensor, factor: float | Tensor) -> Tensor:
        """Add ``factor`` dKL/dtheta_bar to the gradients of many isotropic groups of sizes ``dims``; return dKL/dsigma.

        The groups' numbers are vectors (G,) here, as a hundred layers would otherwise cost a thousand launches a step.
        """
        deviations = self._pieces(mean)
        torch._foreach_sub_(deviations, [group.prior.mean for group in self.groups])
        scales = sigma**2 + squared_norms(deviations) / dims
        for group, deviation, group_factor in zip(self.groups, deviations, (factor / scales).unbind(), strict=True):
            add_to_gradients_(group.weights, deviation, group_factor)
        return (sigma * dims / scales - dims / sigma).sum()

    def _kl_terms(self, mean: Tensor, sigma: Tensor, out: Tensor) -> list[KLTerm]:
        pieces = zip(self.groups, self._pieces(mean), self._pieces(out), strict=True)
        return [group.prior.kl_term(piece, sigma, piece_out) for group, piece, piece_out in pieces]

    @torch.no_grad()
    def _current_terms(self) -> list[KLTerm]:
        mean = flatten(self.weights)
        return self._kl_terms(mean, self.posterior.sigma, out=torch.empty_like(mean))

    def regularizer(self) -> Tensor:
        return self._regularizer(self._current_terms())

    def _regularizer(self, terms: list[KLTerm]) -> Tensor:
        values = [term.value for term in terms]
        if self._map is not None:
            values = [term.value_at(self._frozen_scale(i)) for i, term in enumerate(terms)]
        return torch.stack(values).sum() / (self.kappa * self.num_examples)

    def _frozen_scale(self, group: int) -> float:
        return 1 / (self.kappa * self.num_examples * float(self._frozen[group]))

    def scales(self) -> dict[str, float]:
        """Return the scale of each group's prior, lambda* of the backbone and tau* of the head: closed form, or fixed.

        It is that of the weights and sigma as they are, or after `freeze` that of the weights and sigma at that time.
        """
        if self._map is not None:
            return {group.name: self._frozen_scale(i) for i, group in enumerate(self.groups)}
        return {group.name: float(term.scale) for group, term in zip(self.groups, self._current_terms(), strict=True)}

    def weight_decay(self) -> dict[str, float]:
        """Return 1 / (kappa N s) by group; with kappa = D/N that is 1 / (D s)."""
        return {name: self._strength(scale) for name, scale in self.scales().items()}

    def _strength(self, scale: float) -> float:
        return 1 / (self.kappa * self.num_examples * scale) if scale else math.inf

    def describe(self) -> dict[str, float]:
        terms = self._current_terms()  # once, as millions of weights take time
        state = {"regularizer": float(self._regularizer(terms)), "sigma": float(self.posterior.sigma)}
        for i, (group, term) in enumerate(zip(self.groups, terms, strict=True)):
            scale = float(term.scale) if self._map is None else self._frozen_scale(i)
            numbers = {"scale": scale, "weight_decay": self._strength(scale), "dim": group.prior.dim}
            numbers["squared_distance"] = float(term.squared_distance)
            numbers |= {"trace_precision": group.prior.trace_precision, "log_det": group.prior.log_det}
            state |= {f"{quantity}_{group.name}": value for quantity, value in numbers.items()}
        return state | self._describe_parts(state) | {"kappa": self.kappa}


class DataEmphasizedELBO(ELBO):
    """The DE ELBo: the ELBo with its likelihood weighted by kappa = D/N, D the weights and N the training examples.

    Args:
        groups, num_examples, sigma, generator, start_alpha: as in `ELBO`.
        kappa: None: D/N. On some data a smaller value has a better test NLL.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        num_examples: int,
        kappa: float | None = None,
        sigma: float = 1e-4,
        generator: torch.Generator | None = None,
        start_alpha: float | None = None,
    ) -> None:
        dim = sum(group.prior.dim for group in groups)
        kappa = dim / (num_examples or 1) if kappa is None else kappa  # N = 0 is refused by `Objective`
        super().__init__(groups, num_examples, kappa, sigma, generator, start_alpha)
