"""Interface between an objective and the training loop."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deelbo._vectors import flatten
from deelbo.groups import Group

FORWARD, PRODUCT = 1 / 3, 2.0
"""Work of a forward pass, and of a product of a vector with a curvature matrix, in gradients of the same images."""


class TrainingContext(Protocol):
    """The attributes of a training run that an objective's `adapt`, `warm_up` and `selection_metrics` read."""

    model: nn.Module  # in training mode between steps, BatchNorm perhaps in evaluation mode
    split: Any  # a `deelbo.data.Split`
    numerics: Any  # a `deelbo.training.numerics.Numerics`
    device: torch.device  # of the weights
    batch_size: int  # images per step
    total_steps: int  # of the whole run

    @property
    def objective(self) -> Objective: ...

    def count_work(self, images: int, gradients: float = 1.0) -> None:
        """Add the work of so many gradients of ``images`` images to ``gradient_equivalents`` of the run's state."""


class Objective(ABC):
    """The quantity that a training run minimizes. Forward and backward passes of the mean NLL run inside `step`.

    Args:
        groups: the groups of weights, each weight in exactly one.
        num_examples: N, the number of training examples.

    Attributes:
        generator: source of the objective's random numbers; None: torch's global generator.
        weights: the weights of all groups, in order.
        dim: D, the number of their elements.

    Raises:
        ValueError: no group, or N is not a whole number of at least 1.
    """

    generator: torch.Generator | None = None
    is_bayesian = False  # whether `step` trains draws from a posterior

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

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer must train in addition to the module's own weights."""
        return []

    def should_adapt(self, steps_done: int) -> bool:
        """Return whether to call `adapt` after optimizer step ``steps_done``, without waiting for the device."""
        return False

    def adapt(self, run: TrainingContext) -> None:  # noqa: B027 - most objectives have nothing to do
        """Learn strengths between two steps; booked under the clock's "adapt".

        Buffers and the network's mode stay unchanged. So do the weights, unless the objective moves them with the
        strengths, as `deelbo.objectives.stn.ResponseMAP` does. ``run.count_work`` is called with the work, from which
        the run's ``gradient_equivalents`` are summed: gradients of one training batch, 1 for each step.
        `selection_metrics` does the same.
        """

    def warm_up(self, run: TrainingContext) -> None:  # noqa: B027 - most objectives have nothing to do
        """Call `adapt` once in the run's warm-up, after which `learned_state` is restored."""

    def selection_metrics(self, run: TrainingContext) -> dict[str, float]:
        """Return metrics for a whole run of an objective that is not Bayesian; booked under "select"."""
        return {}

    def freeze(self) -> None:  # noqa: B027 - most objectives learn nothing by gradients
        """Fix what is learned beside the weights: the rest of the run is MAP with the strengths of this moment."""

    def learned_state(self) -> dict[str, Tensor]:
        """Return what `adapt` has learned and what its next calls depend on, for a checkpoint; without `parameters`.

        Names, shapes and types are the same throughout a run. The tensors are the objective's own.
        """
        return {}

    def load_learned_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy a `learned_state`, whose tensors may be on any device, into the objective's own tensors."""
        for name, tensor in self.learned_state().items():
            tensor.copy_(state[name])

    @abstractmethod
    def step(self) -> AbstractContextManager[object]:
        """A block for one step: after a ``backward`` inside it, the gradients are those of the whole objective."""

    @abstractmethod
    def regularizer(self) -> Tensor:
        """Return what the objective currently adds to the mean NLL; 0-dimensional."""

    @abstractmethod
    def weight_decay(self) -> dict[str, float]:
        """Return alpha_g by group, where the regularizer's gradient is alpha_g Sigma_g^-1 d_g."""

    def describe(self) -> dict[str, float]:
        """Return the objective's state as numbers, for a record. Waits for the device, so not meant for every step."""
        with torch.no_grad():
            state = {"regularizer": float(self.regularizer())}
        state |= {f"weight_decay_{name}": strength for name, strength in self.weight_decay().items()}
        for group in self.groups:
            state[f"dim_{group.name}"] = group.prior.dim
            state[f"squared_distance_{group.name}"] = float(group.prior.squared_distance(flatten(group.weights)))
        return state | self._describe_parts(state)

    def _describe_parts(self, state: Mapping[str, float]) -> dict[str, float]:
        """Summarize the layers of a part: sums, its weights' mean prior variance, and that variance's strength."""
        summary: dict[str, float] = {}
        for part in dict.fromkeys(group.part for group in self.groups if group.part):
            layers = [group.name for group in self.groups if group.part == part]
            dims = [state[f"dim_{layer}"] for layer in layers]
            for quantity in ("dim", "squared_distance", "trace_precision", "log_det"):
                if f"{quantity}_{layers[0]}" in state:
                    summary[f"{quantity}_{part}"] = sum(state[f"{quantity}_{layer}"] for layer in layers)
            strengths = [state[f"weight_decay_{layer}"] for layer in layers]
            variance = sum(d / alpha if alpha else math.inf for d, alpha in zip(dims, strengths, strict=True))
            summary[f"weight_decay_{part}"] = sum(dims) / variance if variance else math.inf
            if f"scale_{layers[0]}" in state:
                scales = [state[f"scale_{layer}"] for layer in layers]
                summary[f"scale_{part}"] = sum(d * s for d, s in zip(dims, scales, strict=True)) / sum(dims)
        return summary

    def _pieces(self, vector: Tensor) -> list[Tensor]:
        """Split a (D,) vector into one view per group."""
        return list(vector.split([group.prior.dim for group in self.groups]))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """A block with the model in evaluation mode; each module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
