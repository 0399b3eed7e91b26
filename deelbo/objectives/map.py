"""Maximum a posteriori: mean NLL plus weight decay towards each prior's mean."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from deelbo._vectors import add_to_gradients_, flatten
from deelbo.groups import Group
from deelbo.objectives.base import Objective


class MAP(Objective):
    """Mean NLL + sum_g (alpha_g / 2) d_g^T Sigma_g^-1 d_g, with d_g the deviation from the prior's mean.

    Args:
        groups, num_examples: as in `Objective`.
        weight_decay: alpha_g >= 0 by group name; alpha = 1 / (N s) is the prior N(mu, s Sigma). The layers of a part
            may share one strength under the part's name.

    Raises:
        ValueError: a group without a strength, a strength without a group, or a strength that is negative or not
            finite.
    """

    def __init__(self, groups: Sequence[Group], num_examples: int, weight_decay: Mapping[str, float]) -> None:
        super().__init__(groups, num_examples)
        weight_decay = _by_group(groups, weight_decay)
        names = [group.name for group in groups]
        if set(names) != set(weight_decay):
            raise ValueError(f"weight_decay must name the groups {names}, got {sorted(weight_decay)}")
        for name, strength in weight_decay.items():
            if not 0 <= strength < math.inf:
                raise ValueError(f"the weight decay of {name!r} must be a number >= 0, got {strength}")
        self._strengths = {name: float(weight_decay[name]) for name in names}
        self._deviation: Tensor | None = None  # d, reused, as new memory in every step is slow on a CPU

    @contextmanager
    def step(self) -> Iterator[None]:
        for parameter in self.weights:
            parameter.grad = None
        yield
        if any(p.grad is not None for p in self.weights):
            self.add_gradients()

    @torch.no_grad()
    def add_gradients(self, unit: float | Tensor = 1.0) -> None:
        """Add ``unit`` times the regularizer's gradient to those of the weights."""
        if self._deviation is None:
            self._deviation = torch.empty(self.dim, dtype=self.weights[0].dtype, device=self.weights[0].device)
        for group, piece in zip(self.groups, self._pieces(self._deviation), strict=True):
            if strength := self._strengths[group.name]:
                deviation = flatten(group.weights, out=piece).sub_(group.prior.mean)
                add_to_gradients_(group.weights, group.prior.precision_times(deviation), unit * strength)

    def regularizer(self) -> Tensor:
        pairs = [(self._strengths[group.name], group) for group in self.groups]
        return torch.stack([0.5 * alpha * g.prior.squared_distance(flatten(g.weights)) for alpha, g in pairs]).sum()

    def weight_decay(self) -> dict[str, float]:
        return dict(self._strengths)


def _by_group(groups: Sequence[Group], strengths: Mapping[str, float]) -> dict[str, float]:
    """Return the strengths by group, where some are given for the part that groups belong to."""
    parts = {group.part for group in groups} & set(strengths)
    spread = {group.name: strengths[group.part] for group in groups if group.part in parts and group.part}
    return spread | {name: strength for name, strength in strengths.items() if name not in parts}
