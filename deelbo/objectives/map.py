"""Map."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from deelbo._vectors import add_to_gradients_, flatten
from deelbo.groups import Group
from deelbo.objectives.base import Objective

__all__ = ["MAP"]


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

    def regularizer(self) -> Tensor:
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
