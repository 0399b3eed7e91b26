"""Strengths learned beside the training steps by the Laplace approximation's marginal likelihood.

With theta the weights, delta_g = N alpha_g the prior precision of group g and H >= 0 a diagonal for the Hessian of the
NLL's sum over the N training images, all at the weights as they are,

    log p(data | delta) ~ - sum_n NLL_n - 1/2 sum_g [ delta_g ||theta_g - mu_g||^2 + sum_i log(1 + H_i / delta_g) ]

and its slope in log delta_g is (gamma_g - delta_g ||theta_g - mu_g||^2) / 2, with gamma_g = sum_i H_i / (H_i + delta_g)
the group's effective number of weights. H is the diagonal of the empirical Fisher: the sum over images of the squared
gradient of the image's NLL.

Source: Immer, Bauer, Fortuin, Raetsch, Khan 2021, "Scalable Marginal Likelihood Estimation for Model Selection in Deep
Learning", Algorithm 1; effective numbers: MacKay 1992, "Bayesian Interpolation".

Of laplace-torch's backends for the empirical Fisher only `CurvlinopsEF` serves. It differentiates one image at a time
by `torch.func`, so any network in evaluation mode will do. BackPACK's hooks fail at an in-place ReLU, as ResNets have
them, and ASDL's give some convolutions of digits-resnet a quarter of their squared gradients.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deelbo._vectors import flatten
from deelbo.groups import Group
from deelbo.limits import MAX_WEIGHT_DECAY, MIN_WEIGHT_DECAY
from deelbo.objectives.base import TrainingContext
from deelbo.objectives.map import MAP
from deelbo.priors import Isotropic

__all__ = ["Curvature", "LaplaceMAP", "empirical_fisher", "log_marginal_likelihood"]


AT_ONCE = 1 << 27
"""Numbers in the gradients of the images that are differentiated at one time."""
MOST_IMAGES = 250
BETAS, TINY = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Curvature:
    """The network at its weights as they are, as the marginal likelihood sees it.

    Attributes:
        nll: summed over the training images, in nats.
        diagonal: H by group, each (D_g,).
        squared_distance: ||theta_g - mu_g||^2 by group.
    """

    nll: float
    diagonal: tuple[Tensor, ...]
    squared_distance: tuple[float, ...]


def log_marginal_likelihood(curvature: Curvature, log_precision: Tensor) -> tuple[float, Tensor]:
    """log p(data | delta) in nats and its slope in log delta, (G,).

    Args:
        curvature: at the weights as they are.
        log_precision: log delta of each group, float64 (G,), on a CPU.
    """
    rows = []
    for diagonal, precision in zip(curvature.diagonal, log_precision.exp().tolist(), strict=True):
        log_ratio = torch.log1p(diagonal / precision).sum(dtype=torch.float64)
        effective = (diagonal / (diagonal + precision)).sum(dtype=torch.float64)
        rows.append(torch.stack([log_ratio, effective]))
    log_ratios, effective = torch.stack(rows).cpu().T  # one wait for the device
    scatter = log_precision.exp() * torch.tensor(curvature.squared_distance, dtype=torch.float64)
    return -curvature.nll - 0.5 * float((scatter + log_ratios).sum()), 0.5 * (effective - scatter)


def empirical_fisher(run: TrainingContext, most: int | None = None) -> Curvature:
    """The curvature over the run's training images, not augmented, the network in evaluation mode.

    In the weights' own precision, as `torch.func` takes BatchNorm in no other. Model, gradients and random numbers are
    left as they were. ``most``: at most so many batches; all where None.

    Raises:
        ImportError: laplace-torch or curvlinops is not installed.
    """
    backend_of = _backend()
    groups, images = run.objective.groups, run.split.train
    weights = run.objective.weights
    batch = max(min(AT_ONCE // run.objective.dim, MOST_IMAGES), 1)
    with _evaluating(run.model):
        backend = backend_of(run.model, "classification")
        nll = torch.zeros((), dtype=torch.float64, device=run.device)
        total = torch.zeros(sum(p.numel() for p in backend.params), dtype=weights[0].dtype, device=run.device)
        for start in range(0, len(images), batch)[:most]:
            pixels = run.split.geometry.evaluation(images.pixels[start : start + batch])
            x = run.numerics.laid_out(run.split.normalization(pixels).to(weights[0].dtype))
            loss, diagonal = backend.diag(x, images.labels[start : start + batch], N=len(images))
            nll += loss.double()
            total += diagonal
    pieces = total.split([p.numel() for p in backend.params])
    place = {id(p): piece for p, piece in zip(backend.params, pieces, strict=True)}
    diagonals = tuple(torch.cat([place[id(p)] for p in group.weights]) for group in groups)
    distances = tuple(float(group.prior.squared_distance(flatten(group.weights))) for group in groups)
    return Curvature(float(nll), diagonals, distances)


def _backend() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the packages that it imports
            from laplace.curvature import CurvlinopsEF
    except ImportError as error:
        raise ImportError("laplace needs laplace-torch and curvlinops: pip install 'deelbo[methods]'") from error
    return CurvlinopsEF


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for the block; every module's own mode is put back after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class LaplaceMAP(MAP):
    """MAP whose strengths are learned on the way: alpha_g = delta_g / N, one precision a group.

    Every so often the curvature is taken at the weights as they are, and Adam takes a few steps on log delta up the
    marginal likelihood; between, training is MAP's, at the strengths learned last. Adam's averages go on from one time
    to the next, as in the paper.

    Args:
        groups, num_examples: as in `deelbo.objectives.map.MAP`; every prior is isotropic.
        total_steps: how many optimizer steps the whole run takes.
        every: share of the run from one time to the next, in (0, 1].
        burn_in: share of the run before the first time, in [0, 1). Where training starts at the prior's mean, most
            likely is delta = infinity until the weights have left it.
        hyper_steps: Adam's steps each time.
        hyper_rate: Adam's learning rate, on log delta: so strengths move by a factor of exp(hyper_steps * hyper_rate)
            each time at most.
        precision: where every delta starts.

    Raises:
        ValueError: a prior that is not isotropic, or a setting out of its range.
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
                raise ValueError(
                    f"laplace's Hessian is a diagonal, so priors must be isotropic, got {type(group.prior).__name__} "
                    f"for {group.name!r}: use l2-zero or l2-sp"
                )
        if not (0 < every <= 1 and 0 <= burn_in < 1):
            raise ValueError(f"every must be in (0, 1] and burn_in in [0, 1), got {every} and {burn_in}")
        if hyper_steps < 1 or total_steps < 1 or not 0 < hyper_rate < math.inf or not 0 < precision < math.inf:
            raise ValueError(
                "hyper_steps and total_steps must be at least 1, hyper_rate and precision positive numbers, "
                f"got {hyper_steps}, {total_steps}, {hyper_rate} and {precision}"
            )
        self.every, self.burn_in, self.hyper_steps, self.hyper_rate = every, burn_in, hyper_steps, hyper_rate
        self.times = _times(total_steps, every, burn_in)
        size = len(self.groups)
        self._log_precision = torch.full((size,), math.log(precision), dtype=torch.float64)
        self._first, self._second, self._count = (torch.zeros(n, dtype=torch.float64) for n in (size, size, 1))
        self._take_up()

    def due(self, steps_done: int) -> bool:
        """Whether strengths are learned after that many steps."""
        return steps_done in self.times

    def adapt(self, run: TrainingContext) -> None:
        """Takes the curvature, then Adam's steps on the precisions; training goes on with what they give."""
        self.learn(empirical_fisher(run))

    def warm_up(self, run: TrainingContext) -> None:
        """Imports laplace-torch, which takes seconds, and differentiates one batch."""
        empirical_fisher(run, most=1)

    def learn(self, curvature: Curvature) -> None:
        """Adam's steps on log delta up the marginal likelihood at that curvature."""
        for _ in range(self.hyper_steps):
            self._climb(log_marginal_likelihood(curvature, self._log_precision)[1])
        self._take_up()

    def final(self, run: TrainingContext) -> dict[str, float]:
        """What runs of several learning rates are compared by, least is best: -log p(data | delta) / N in nats."""
        value, _ = log_marginal_likelihood(empirical_fisher(run), self._log_precision)
        return {"objective": -value / self.num_examples}

    def learned_state(self) -> dict[str, Tensor]:
        """log delta and Adam's averages, float64 (G,), and its count of steps (1,)."""
        names = ("log_precision", "first", "second", "count")
        return {name: getattr(self, f"_{name}") for name in names}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a `learned_state`."""
        for name, tensor in self.learned_state().items():
            tensor.copy_(state[name])
        self._take_up()

    def _climb(self, slope: Tensor) -> None:
        """One step of Adam, on numbers kept on the CPU; alpha stays within the range of `deelbo.limits`."""
        self._count += 1
        self._first.lerp_(slope, 1 - BETAS[0])
        self._second.lerp_(slope.square(), 1 - BETAS[1])
        first, second = self._first / (1 - BETAS[0] ** self._count), self._second / (1 - BETAS[1] ** self._count)
        self._log_precision += self.hyper_rate * first / (second.sqrt() + TINY)
        low, high = (math.log(self.num_examples * alpha) for alpha in (MIN_WEIGHT_DECAY, MAX_WEIGHT_DECAY))
        self._log_precision.clamp_(low, high)

    def _take_up(self) -> None:
        precisions = self._log_precision.exp().tolist()
        self._strengths = {g.name: delta / self.num_examples for g, delta in zip(self.groups, precisions, strict=True)}


def _times(total_steps: int, every: float, burn_in: float) -> frozenset[int]:
    """After which steps strengths are learned; never after the last, as no step would follow."""
    count = math.ceil((1 - burn_in) / every - 1e-9)
    steps = {max(round((burn_in + i * every) * total_steps), 1) for i in range(count)}
    return frozenset(step for step in steps if step < total_steps)
