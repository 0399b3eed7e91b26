"""MAP whose strengths are learned beside the training steps, from validation images, by one-step hypergradients.

A step of plain SGD at the rate eta goes from theta to theta' = theta - eta (g + alpha_g Sigma_g^-1 d_g), d_g being the
group's deviation from its prior's mean at theta. Of all that theta' depends on, only this step's share of alpha_g is
followed:

    dL_val(theta') / dlog alpha_g = -eta alpha_g (Sigma_g^-1 d_g) . grad_g L_val(theta')

which is 0 where the validation gradient is orthogonal to the pull of the prior. At the end of training that is implicit
differentiation with the identity in place of the inverse Hessian (Luketina et al. 2016, "Scalable Gradient-Based Tuning
of Continuous Regularization Hyperparameters"; Lorraine et al. 2020, "Optimizing Millions of Hyperparameters by Implicit
Differentiation"). It is greedy: while a network still fits, any pull is in its way, so strengths fall first and rise
where it begins to overfit, and near the end of a cosine, when steps move nothing any more, they may run to an end of
their range. So what a run recommends is not where its strengths end but their geometric mean over its calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo.groups import Group
from deelbo.limits import MAX_WEIGHT_DECAY, MIN_WEIGHT_DECAY
from deelbo.objectives.base import TrainingContext
from deelbo.objectives.map import MAP

__all__ = ["HypergradientMAP"]


TRAVEL = 2 * math.log(MAX_WEIGHT_DECAY / MIN_WEIGHT_DECAY)  # nats: there and back
BETAS = (0.9, 0.99)


class HypergradientMAP(MAP):
    """MAP, its log alpha_g moved every few steps by Adam against the validation images' mean NLL.

    What Adam is given is the hypergradient's direction alone: minus the cosine between Sigma_g^-1 d_g and the group's
    validation gradient. The hypergradient itself is proportional to eta alpha_g, both of which change by orders of
    magnitude in a run, so that Adam's averages would lag behind. Where all signs agree log alpha_g moves by ``rate``.
    Neither the step's rate nor momentum nor clipping matters then, and any optimizer may train the weights.

    One validation batch of the size of training's is looked at, in evaluation mode as validation is, so a call costs
    about a training step, whatever the number of validation images; pass after pass, in new orders, each without the
    last images that do not fill a batch.

    Args:
        groups, num_examples: as in `Objective`.
        weight_decay: where the strengths start, by group or part as in `MAP`; clamped to the range of `deelbo.limits`.
        rate: step of log alpha_g, in nats; where None, such that the calls of a whole run could take it from one end
            of its range to the other and back, however long the run is.
        every: training steps between two calls.

    Raises:
        ValueError: a rate or an ``every`` that is not positive, or as `MAP` has it.
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
            raise ValueError(f"rate is a step of log alpha, a number above 0, got {rate}")
        if every < 1:
            raise ValueError(f"every is a number of training steps, at least 1, got {every}")
        self.rate, self.every = rate, every
        starts = torch.tensor([self._strengths[group.name] for group in self.groups], dtype=torch.float64)
        self._log = starts.clamp(MIN_WEIGHT_DECAY, MAX_WEIGHT_DECAY).log()  # on the host, as `step` needs numbers
        self._first, self._second = torch.zeros_like(self._log), torch.zeros_like(self._log)
        self._calls = torch.zeros((), dtype=torch.int64)
        self._sum = torch.zeros_like(self._log)
        self._use()

    def due(self, steps_done: int) -> bool:
        return steps_done % self.every == 0

    def warm_up(self, run: TrainingContext) -> None:
        self.adapt(run)

    def adapt(self, run: TrainingContext) -> None:
        """One call.

        Raises:
            ValueError: the run has no validation images.
        """
        calls = max(run.total // self.every, 1)
        self.move(self.directions(self._validation_gradient(run)), self.rate or TRAVEL / calls)

    def hypergradient(self, validation_gradient: Sequence[Tensor], eta: float) -> dict[str, float]:
        """dL_val(theta') / dlog alpha_g by group, theta' being where the weights are after a step from theta.

        Args:
            validation_gradient: grad L_val(theta'), shaped like ``weights``.
            eta: the step's rate: learning rate times clipping's factor; with Nesterov's momentum mu, times 1 + mu,
                which is what of a gradient arrives in its own step.
        """
        pulls = zip(self.groups, self._pulls(), self._pieces(_vector(validation_gradient)), strict=True)
        return {group.name: -eta * self._strengths[group.name] * _dot(pull, slope) for group, pull, slope in pulls}

    @torch.no_grad()
    def move(self, directions: Tensor, rate: float) -> None:
        """One step of Adam on log alpha: ``directions`` (G,) are followed downwards."""
        self._calls += 1
        for average, beta, value in ((self._first, BETAS[0], directions), (self._second, BETAS[1], directions**2)):
            average.lerp_(value, 1 - beta)
        first, second = (
            a / (1 - b ** int(self._calls)) for a, b in zip((self._first, self._second), BETAS, strict=True)
        )
        self._log -= rate * first / (second.sqrt() + 1e-30)
        self._log.clamp_(math.log(MIN_WEIGHT_DECAY), math.log(MAX_WEIGHT_DECAY))
        self._sum += self._log
        self._use()

    def learned_state(self) -> dict[str, Tensor]:
        averages = {"first": self._first, "second": self._second, "sum": self._sum}
        return {"log": self._log, "calls": self._calls} | averages

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        for name, own in self.learned_state().items():
            own.copy_(state[name])
        self._use()

    def mean_strengths(self) -> dict[str, float]:
        """The geometric mean of each group's strength over the calls so far; where it started, before the first."""
        means = (self._sum / self._calls if self._calls else self._log).exp().tolist()
        return {group.name: mean for group, mean in zip(self.groups, means, strict=True)}

    def describe(self) -> dict[str, float]:
        """With ``mean_weight_decay_*``, as `mean_strengths` gives."""
        return super().describe() | {f"mean_weight_decay_{name}": mean for name, mean in self.mean_strengths().items()}

    def _use(self) -> None:
        strengths = self._log.exp().tolist()
        self._strengths = {group.name: alpha for group, alpha in zip(self.groups, strengths, strict=True)}

    def _pulls(self) -> list[Tensor]:
        """Sigma_g^-1 d_g at the weights that the last step started from, which `step` leaves behind."""
        if self._room is None:
            raise RuntimeError("a hypergradient is that of a step: run one, with backward, before")
        return [g.prior.precision_times(d) for g, d in zip(self.groups, self._pieces(self._room), strict=True)]

    def directions(self, validation_gradient: Sequence[Tensor]) -> Tensor:
        """Minus the cosine of pull and validation gradient, (G,) on the host; 0 where either is 0."""
        slopes = self._pieces(_vector(validation_gradient))
        cosines = [-F.cosine_similarity(p, s, dim=0, eps=1e-30) for p, s in zip(self._pulls(), slopes, strict=True)]
        return torch.stack(cosines).double().cpu().nan_to_num()

    def _validation_gradient(self, run: TrainingContext) -> list[Tensor]:
        images = run.split.validation
        if images is None:
            raise ValueError("hypergradients need validation images, got none: give the split a validation part")
        chosen = self._next_batch(len(images), run.batch).to(images.labels.device)
        x = run.split.normalization(run.split.geometry.evaluation(images.pixels[chosen]))
        run.model.eval()
        with run.numerics.autocast(run.device):
            loss = F.cross_entropy(run.model(run.numerics.laid_out(x)).float(), images.labels[chosen])
        found = torch.autograd.grad(loss, self.weights, allow_unused=True)
        run.model.train()
        return [torch.zeros_like(w) if g is None else g for w, g in zip(self.weights, found, strict=True)]

    def _next_batch(self, count: int, size: int) -> Tensor:
        """Places of the next validation images: pass after pass, each in an order of its own."""
        size = min(size, count)
        number, place = divmod(int(self._calls), count // size)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(number))
        return order[place * size : (place + 1) * size]


def _vector(gradients: Sequence[Tensor]) -> Tensor:
    return nn.utils.parameters_to_vector([gradient.contiguous() for gradient in gradients])


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.double(), other.double()))
