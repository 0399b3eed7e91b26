"""Base."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deelbo._vectors import flatten
from deelbo.groups import Group

__all__ = ["Objective", "TrainingContext"]


class TrainingContext(Protocol):
    """The attributes of a training run that an objective's `adapt`, `warm_up` and `final` read.

    Attributes:
        model: the network, in training mode between steps.
        split: training and validation images, their geometry and normalization (`deelbo.data.Split`).
        numerics: precision and memory layout (`deelbo.training.numerics.Numerics`).
        device: where the weights are.
        batch: images of a step.
        total: steps of the whole run.
    """

    model: nn.Module
    split: Any
    numerics: Any
    device: torch.device
    batch: int
    total: int

    @property
    def objective(self) -> Objective:
        """The objective that the run minimizes."""
        ...


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
        """What the optimizer must learn beside the module's own weights."""
        return []

    @property
    def is_bayesian(self) -> bool:
        """Whether a draw from a posterior is what `step` trains."""
        return False

    def due(self, steps_done: int) -> bool:
        """Whether `adapt` should follow the ``steps_done``-th optimizer step. Asked after every one: it must not wait
        for the device."""
        return False

    def adapt(self, run: TrainingContext) -> None:  # noqa: B027 - most objectives have nothing to do
        """Learns strengths beside the steps, where `due`; booked under the clock's "adapt".

        It leaves the weights, their buffers and the network's mode as they were.
        """

    def warm_up(self, run: TrainingContext) -> None:  # noqa: B027 - most objectives have nothing to do
        """Pays for the first calls of `adapt`, in the run's warm-up, after which `learned_state` is put back."""

    def final(self, run: TrainingContext) -> dict[str, float]:
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
    def regularizer(self) -> Tensor:
        """What the objective adds to the mean NLL, now; 0-dimensional."""

    @abstractmethod
    def weight_decay(self) -> dict[str, float]:
        """The strength alpha_g of each group's weight decay, the gradient being alpha_g Sigma_g^-1 d_g."""

    def describe(self) -> dict[str, float]:
        """What a record keeps of the objective's state. Synchronizes with the device: not for every step."""
        with torch.no_grad():
            state = {"regularizer": float(self.regularizer())}
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
