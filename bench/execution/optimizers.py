"""Optimizers that need no learning rate, by name.

    prodigy         Mishchenko and Defazio 2023: Adam's directions; the step size is the estimated way to the solution
    schedule-free   Defazio et al. 2024, "The Road Less Scheduled": SGD with averaged iterates

The cosine schedule, which starts at 1 for both, multiplies their step sizes. rho, the parameter of sigma =
softplus(rho), rises by about 6 in a run, whatever the weights do. Steps that fit weights hardly move it, so Adam trains
it beside both.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from deelbo.training.run import OptimizerFactory

OPTIMIZERS = ("sgd", "prodigy", "schedule-free")
RHO_RATE = 0.1  # Adam's learning rate for rho
PRODIGY_D0 = 1e-3  # of Prodigy's estimate, which only grows; from its default, 1e-6, it overshoots in 200 steps


def make_optimizer(name: str) -> OptimizerFactory | None:
    """Return a factory of the optimizer for `deelbo.fit`; None for "sgd", which is the trainer's own."""
    if name == "sgd":
        return None
    if name == "prodigy":
        prodigy = _import_class("prodigyopt", "Prodigy", name)
        return lambda parameters, rate: WeightsAndScalars(parameters, rate, partial(prodigy, lr=rate, d0=PRODIGY_D0))
    if name == "schedule-free":
        schedule_free = _import_class("schedulefree", "SGDScheduleFree", name)
        return lambda parameters, rate: AveragedWeights(parameters, rate, partial(schedule_free, lr=rate))
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")


def _import_class(package: str, name: str, optimizer: str) -> Any:
    try:
        return getattr(import_module(package), name)
    except ImportError as error:
        raise ImportError(f"{optimizer} needs the package {package}: pip install 'deelbo[methods]'") from error


class WeightsAndScalars(torch.optim.Optimizer):
    """One optimizer for weights, and Adam at ``rate`` times `RHO_RATE` for scalars such as rho; state is shared."""

    def __init__(self, parameters: list[nn.Parameter], rate: float, make: Callable[..., torch.optim.Optimizer]) -> None:
        scalars = [p for p in parameters if p.numel() == 1]
        self.weights = make([p for p in parameters if p.numel() > 1])
        self.scalars = torch.optim.Adam(scalars, lr=RHO_RATE * rate) if scalars else None
        self._num_weight_groups = len(self.weights.param_groups)
        groups = [*self.weights.param_groups, *(self.scalars.param_groups if self.scalars else [])]
        super().__init__(groups, {})
        self._share()

    def _share(self) -> None:
        """Make the groups and the state of the two those of this optimizer, which schedulers and loading change."""
        self.weights.param_groups, self.weights.state = self.param_groups[: self._num_weight_groups], self.state
        if self.scalars is not None:
            self.scalars.param_groups, self.scalars.state = self.param_groups[self._num_weight_groups :], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.weights.step()
        if self.scalars is not None:
            self.scalars.step()


class AveragedWeights(WeightsAndScalars):
    """As `WeightsAndScalars`, for an optimizer that evaluates other weights than those whose gradient it takes."""

    weights: Any

    def train(self) -> None:
        self.weights.train()

    def eval(self) -> None:
        self.weights.eval()
