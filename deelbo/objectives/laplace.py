"""MAP with strengths that are learned between training steps, by the Laplace approximation's marginal likelihood.

With theta the current weights, delta_g = N alpha_g the prior precision of group g, and H >= 0 a diagonal approximation
of the Hessian of the NLL summed over the N training images,

    log p(data | delta) ~ - sum_n NLL_n - 1/2 sum_g [ delta_g ||theta_g - mu_g||^2 + sum_i log(1 + H_i / delta_g) ]

and its slope in log delta_g is (gamma_g - delta_g ||theta_g - mu_g||^2) / 2, with gamma_g = sum_i H_i / (H_i + delta_g)
the group's effective number of weights. H is the diagonal of the empirical Fisher matrix: the sum over images of the
squared gradient of the image's NLL.

Source: Immer, Bauer, Fortuin, Raetsch, Khan 2021, "Scalable Marginal Likelihood Estimation for Model Selection in Deep
Learning", Algorithm 1; effective number of weights: MacKay 1992, "Bayesian Interpolation".

Of laplace-torch's backends for the empirical Fisher only `CurvlinopsEF` is usable: BackPACK's hooks fail at in-place
ReLUs, which ResNets have, and ASDL's return a quarter of the squared gradients of some convolutions of digits-resnet.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from deelbo._vectors import flatten
from deelbo.groups import Group
from deelbo.limits import MAX_WEIGHT_DECAY, MIN_WEIGHT_DECAY
from deelbo.objectives.base import TrainingContext, evaluation_mode
from deelbo.objectives.map import MAP
from deelbo.priors import Isotropic

MAX_GRADIENT_NUMBERS = 1 << 27
"""Bound on images times weights of the gradients that are held at one time."""
MAX_IMAGES = 250  # per batch
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's


@dataclass(frozen=True)
class Curvature:
    """The quantities of a network at its current weights that the marginal likelihood depends on."""

    nll: float  # summed over the training images, in nats
    diagonal: tuple[Tensor, ...]  # H of each group, each (D_g,)
    squared_distance: tuple[float, ...]  # ||theta_g - mu_g||^2 of each group


def log_marginal_likelihood(curvature: Curvature, log_precision: Tensor) -> tuple[float, Tensor]:
    """Return log p(data | delta) in nats and its slope in log delta, for log delta in float64 (G,) on the CPU."""
    rows = []
    for diagonal, precision in zip(curvature.diagonal, log_precision.exp().tolist(), strict=True):
        log_ratio = torch.log1p(diagonal / precision).sum(dtype=torch.float64)
        effective = (diagonal / (diagonal + precision)).sum(dtype=torch.float64)
        rows.append(torch.stack([log_ratio, effective]))
    log_ratios, effective = torch.stack(rows).cpu().T  # one wait for the device
    scatter = log_precision.exp() * torch.tensor(curvature.squared_distance, dtype=torch.float64)
    return -curvature.nll - 0.5 * float((scatter + log_ratios).sum()), 0.5 * (effective - scatter)


def empirical_fisher(run: TrainingContext, max_batches: int | None = None) -> Curvature:
    """Return the curvature over the run's training images, not augmented, with the network in evaluation mode.

    It is computed in the weights' own precision, the only one in which `torch.func` supports BatchNorm, from at most
    ``max_batches`` batches of images. Model, gradients and random numbers stay unchanged.
    """
    backend_class = _backend_class()
    groups, weights, examples = run.objective.groups, run.objective.weights, run.split.train
    batch = max(min(MAX_GRADIENT_NUMBERS // run.objective.dim, MAX_IMAGES), 1)
    with evaluation_mode(run.model):
        backend = backend_class(run.model, "classification")
        nll = torch.zeros((), dtype=torch.float64, device=run.device)
        total = torch.zeros(sum(p.numel() for p in backend.params), dtype=weights[0].dtype, device=run.device)
        batches = zip(examples.inputs.split(batch), examples.labels.split(batch), strict=True)
        for inputs, labels in islice(batches, max_batches):
            x = run.split.transform.evaluation(inputs).to(weights[0].dtype)
            loss, diagonal = backend.diag(run.numerics.to_memory_format(x), labels, N=len(examples))
            run.count_work(len(labels))
            nll += loss.double()
            total += diagonal
    pieces = total.split([p.numel() for p in backend.params])
    by_weight = {id(p): piece for p, piece in zip(backend.params, pieces, strict=True)}
    diagonals = tuple(torch.cat([by_weight[id(p)] for p in group.weights]) for group in groups)
    distances = tuple(float(group.prior.squared_distance(flatten(group.weights))) for group in groups)
    return Curvature(float(nll), diagonals, distances)


def _backend_class() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # from packages that it imports
            from laplace.curvature import CurvlinopsEF
    except ImportError as error:
        raise ImportError("laplace needs laplace-torch and curvlinops: pip install 'deelbo[methods]'") from error
    return CurvlinopsEF


class LaplaceMAP(MAP):
    """MAP whose strengths alpha_g = delta_g / N are learned during the run, one precision delta_g per group.

    At regular intervals the curvature is computed at the current weights, and Adam takes a few steps on log delta to
    raise the marginal likelihood. Adam's averages continue from one update to the next, as in the paper.

    Args:
        groups, num_examples: as in `deelbo.objectives.map.MAP`; every prior must be isotropic.
        total_steps: optimizer steps of the whole run.
        every: fraction of the run between two updates, in (0, 1].
        burn_in: fraction of the run before the first update, in [0, 1). Where training starts at the prior's mean,
            delta = infinity is the most likely until the weights have left it.
        hyper_steps: Adam's steps per update.
        hyper_rate: Adam's learning rate on log delta; a strength changes by a factor of at most
            exp(hyper_steps * hyper_rate) per update.
        precision: initial delta of every group.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        num_examples: int,
        total_steps: int,
        every: float = 0.1,
        burn_in: float = 0.5,
        hyper_steps: int = 10,
        hyper_rate: float = 0.1,
        precision: float = 1.0,
    ) -> None:
        super().__init__(groups, num_examples, {group.name: 0.0 for group in groups})
        for group in self.groups:
            if not isinstance(group.prior, Isotropic):
                found = f"{type(group.prior).__name__} for {group.name!r}"
                raise ValueError(f"with laplace priors must be isotropic, got {found}: use l2-zero or l2-sp")
        if not (0 < every <= 1 and 0 <= burn_in < 1):
            raise ValueError(f"every must be in (0, 1] and burn_in in [0, 1), got {every} and {burn_in}")
        if hyper_steps < 1 or total_steps < 1 or not 0 < hyper_rate < math.inf or not 0 < precision < math.inf:
            expected = "hyper_steps and total_steps must be at least 1, hyper_rate and precision positive numbers"
            raise ValueError(f"{expected}, got {hyper_steps}, {total_steps}, {hyper_rate} and {precision}")
        self.every, self.burn_in, self.hyper_steps, self.hyper_rate = every, burn_in, hyper_steps, hyper_rate
        self.update_steps = _update_steps(total_steps, every, burn_in)
        size = len(self.groups)
        self._log_precision = torch.full((size,), math.log(precision), dtype=torch.float64)
        self._first, self._second, self._count = (torch.zeros(n, dtype=torch.float64) for n in (size, size, 1))
        self._set_strengths()

    def should_adapt(self, steps_done: int) -> bool:
        return steps_done in self.update_steps

    def adapt(self, run: TrainingContext) -> None:
        self.learn(empirical_fisher(run))

    def warm_up(self, run: TrainingContext) -> None:
        empirical_fisher(run, max_batches=1)  # imports laplace-torch, which takes seconds

    def learn(self, curvature: Curvature) -> None:
        """Take Adam's steps on log delta that raise the marginal likelihood at that curvature."""
        for _ in range(self.hyper_steps):
            self._adam_step(log_marginal_likelihood(curvature, self._log_precision)[1])
        self._set_strengths()

    def selection_metrics(self, run: TrainingContext) -> dict[str, float]:
        """Return the objective -log p(data | delta) / N in nats, of which the least is the best learning rate's."""
        value, _ = log_marginal_likelihood(empirical_fisher(run), self._log_precision)
        return {"objective": -value / self.num_examples}

    def learned_state(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"_{name}") for name in ("log_precision", "first", "second", "count")}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_learned_state(state)
        self._set_strengths()

    def _adam_step(self, slope: Tensor) -> None:
        """Take one step along ``slope``; alpha stays within the range of `deelbo.limits`."""
        self._count += 1
        self._first.lerp_(slope, 1 - BETAS[0])
        self._second.lerp_(slope.square(), 1 - BETAS[1])
        first, second = self._first / (1 - BETAS[0] ** self._count), self._second / (1 - BETAS[1] ** self._count)
        self._log_precision += self.hyper_rate * first / (second.sqrt() + EPSILON)
        self._clamp()

    def _clamp(self) -> None:
        low, high = (math.log(self.num_examples * alpha) for alpha in (MIN_WEIGHT_DECAY, MAX_WEIGHT_DECAY))
        self._log_precision.clamp_(low, high)

    def _set_strengths(self) -> None:
        precisions = self._log_precision.exp().tolist()
        self._strengths = {g.name: delta / self.num_examples for g, delta in zip(self.groups, precisions, strict=True)}


def _update_steps(total_steps: int, every: float, burn_in: float) -> frozenset[int]:
    """Return the steps after which strengths are learned; never the last one, as no step would follow."""
    count = math.ceil((1 - burn_in) / every - 1e-9)
    steps = {max(round((burn_in + i * every) * total_steps), 1) for i in range(count)}
    return frozenset(step for step in steps if step < total_steps)
