"""MAP with strengths that are learned between training steps, from validation images, by one-step hypergradients.

A step of plain SGD at the rate eta goes from theta to theta' = theta - eta (g + alpha_g Sigma_g^-1 d_g), where d_g is
the group's deviation from its prior's mean at theta. The hypergradient follows the dependence of theta' on alpha_g
through this one step:

    dL_val(theta') / dlog alpha_g = -eta alpha_g (Sigma_g^-1 d_g) . grad_g L_val(theta')

It is 0 where the validation gradient is orthogonal to the prior's pull Sigma_g^-1 d_g. At the end of training it is
implicit differentiation with the identity in place of the inverse Hessian (Luketina et al. 2016, "Scalable
Gradient-Based Tuning of Continuous Regularization Hyperparameters"; Lorraine et al. 2020, "Optimizing Millions of
Hyperparameters by Implicit Differentiation"). It is greedy: while a network still fits, any pull slows it down, so
strengths fall first and rise when it begins to overfit; near the end of a cosine, when steps change nothing, they may
reach an end of their range. A run therefore recommends the geometric mean of its strengths, not their last values.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deelbo._vectors import flatten
from deelbo.groups import Group
from deelbo.limits import MAX_WEIGHT_DECAY, MIN_WEIGHT_DECAY
from deelbo.objectives.base import TrainingContext
from deelbo.objectives.curvature import nll_gradient
from deelbo.objectives.map import MAP

TRAVEL = 2 * math.log(MAX_WEIGHT_DECAY / MIN_WEIGHT_DECAY)  # nats: through the range and back
BETAS = (0.9, 0.99)


class ValidatedMAP(MAP):
    """MAP whose log alpha_g are learned between two steps from validation images. A subclass defines `adapt`.

    Its state has the geometric mean of each group's strength over the calls, ``mean_weight_decay_*``, as a run
    recommends it.

    Args:
        groups, num_examples: as in `Objective`.
        weight_decay: initial strengths, by group or part as in `MAP`; clamped to the range of `deelbo.limits`.
    """

    def __init__(self, groups: Sequence[Group], num_examples: int, weight_decay: Mapping[str, float]) -> None:
        super().__init__(groups, num_examples, weight_decay)
        starts = torch.tensor([self._strengths[group.name] for group in self.groups], dtype=torch.float64)
        self._log = starts.clamp(MIN_WEIGHT_DECAY, MAX_WEIGHT_DECAY).log()  # on the host, as `step` needs floats
        self._sum, self._calls = torch.zeros_like(self._log), torch.zeros((), dtype=torch.int64)
        self._set_strengths()

    def warm_up(self, run: TrainingContext) -> None:
        self.adapt(run)

    def learned_state(self) -> dict[str, Tensor]:
        return {"log": self._log, "calls": self._calls, "sum": self._sum}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_learned_state(state)
        self._set_strengths()

    def mean_strengths(self) -> dict[str, float]:
        """Return the geometric mean of each group's strength over the calls so far, at first the initial strength."""
        means = (self._sum / self._calls if self._calls else self._log).exp().tolist()
        return {group.name: mean for group, mean in zip(self.groups, means, strict=True)}

    def describe(self) -> dict[str, float]:
        return super().describe() | {f"mean_weight_decay_{name}": mean for name, mean in self.mean_strengths().items()}

    def _end_call(self) -> None:
        """Keep log alpha in its range, add it to the mean, and set the strengths."""
        self._log.clamp_(math.log(MIN_WEIGHT_DECAY), math.log(MAX_WEIGHT_DECAY))
        self._sum += self._log
        self._calls += 1
        self._set_strengths()

    def _set_strengths(self) -> None:
        strengths = self._log.exp().tolist()
        self._strengths = {group.name: alpha for group, alpha in zip(self.groups, strengths, strict=True)}

    @staticmethod
    def _validation_examples(run: TrainingContext) -> Any:
        if run.split.validation is None:
            raise ValueError("hypergradients need validation images, got none: give the split validation images")
        return run.split.validation


class HypergradientMAP(ValidatedMAP):
    """MAP whose log alpha_g Adam moves every few steps, to lower the mean NLL of validation images.

    Adam is given the hypergradient's direction only: minus the cosine of the angle between the pull Sigma_g^-1 d_g and
    the group's validation gradient. The hypergradient itself is proportional to eta alpha_g, and both change by orders
    of magnitude in a run, which Adam's averages could not follow. While the sign stays the same, log alpha_g moves by
    ``rate`` per call. The weights' learning rate has no influence, so any optimizer may train them.

    A call uses one validation batch of the size of the training batch, in evaluation mode. The validation images are
    used in passes, each in a new order and without its last partial batch.

    Args:
        groups, num_examples, weight_decay: as in `ValidatedMAP`.
        rate: step of log alpha_g in nats; None: such that the calls of a whole run of any length can move it through
            its range and back.
        every: training steps between two calls.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        num_examples: int,
        weight_decay: Mapping[str, float],
        rate: float | None = None,
        every: int = 10,
    ) -> None:
        super().__init__(groups, num_examples, weight_decay)
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(f"rate must be a number above 0, the step of log alpha in nats, got {rate}")
        if every < 1:
            raise ValueError(f"every must be a number of training steps of at least 1, got {every}")
        self.rate, self.every = rate, every
        self._first, self._second = torch.zeros_like(self._log), torch.zeros_like(self._log)

    def should_adapt(self, steps_done: int) -> bool:
        return steps_done % self.every == 0

    def adapt(self, run: TrainingContext) -> None:
        """Move the strengths once, by the next validation batch; a run without validation images raises ValueError."""
        rate = self.rate or TRAVEL / max(run.total_steps // self.every, 1)
        examples = self._validation_examples(run)
        indices = self._next_batch(len(examples), run.batch_size).to(examples.labels.device)
        _, gradient = nll_gradient(run, examples.inputs[indices], examples.labels[indices])
        self.move(self.directions([gradient]), rate)

    @torch.no_grad()
    def move(self, directions: Tensor, rate: float) -> None:
        """Take one step of Adam on log alpha, against ``directions`` (G,)."""
        calls = int(self._calls) + 1
        self._first.lerp_(directions, 1 - BETAS[0])
        self._second.lerp_(directions**2, 1 - BETAS[1])
        first, second = self._first / (1 - BETAS[0] ** calls), self._second / (1 - BETAS[1] ** calls)
        self._log -= rate * first / (second.sqrt() + 1e-30)
        self._end_call()

    def learned_state(self) -> dict[str, Tensor]:
        return super().learned_state() | {"first": self._first, "second": self._second}

    def _pulls(self) -> list[Tensor]:
        """Return Sigma_g^-1 d_g at the weights before the last step, which `step` has kept."""
        if self._deviation is None:
            raise RuntimeError("a hypergradient belongs to a step: run one, with backward, first")
        return [g.prior.precision_times(d) for g, d in zip(self.groups, self._pieces(self._deviation), strict=True)]

    def directions(self, validation_gradient: Sequence[Tensor]) -> Tensor:
        """Return minus the cosine between pull and validation gradient, (G,) on the host; 0 where either is 0."""
        pairs = zip(self._pulls(), self._pieces(flatten(validation_gradient)), strict=True)
        cosines = [-F.cosine_similarity(pull, slope, dim=0, eps=1e-30) for pull, slope in pairs]
        return torch.stack(cosines).double().cpu().nan_to_num()

    def _next_batch(self, count: int, size: int) -> Tensor:
        """Return the indices of the next of ``count`` validation images; each pass has an order of its own."""
        size = min(size, count)
        number, batch = divmod(int(self._calls), count // size)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(number))
        return order[batch * size : (batch + 1) * size]
