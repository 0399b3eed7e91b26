"""Optimizers beside SGD, by name: those that are to train in one run, with no learning rate chosen.

    prodigy         Adam's directions; its step size is its own estimate of how far the weights have to go
    schedule-free   SGD at a learning rate of 1, its steps averaged; gradients are clipped at norm 1 as for all

The trainer's cosine goes on top of both, and what it starts from, 1 for either, multiplies.

rho, from which sigma = softplus(rho) comes, is no weight: it is close to log sigma, and goes up by 6 or so from
log 1e-4 in a run, whatever the weights do. A step made for weights hardly moves it, so Adam trains it in both.

Source: Mishchenko and Defazio 2023, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner"; Defazio et al. 2024,
"The Road Less Scheduled".
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from deelbo.training.run import MakeOptimizer

__all__ = ["OPTIMIZERS", "make_optimizer"]


OPTIMIZERS = ("sgd", "prodigy", "schedule-free")
RHO_RATE = 0.1
"""Adam's learning rate for rho."""
FIRST_STEP = 1e-3
"""Where Prodigy's estimate starts. It only grows; from its own 1e-6 it overshoots in a run of 200 steps."""
Optimizer = torch.optim.Optimizer


def make_optimizer(name: str) -> MakeOptimizer | None:
    """What makes the optimizer of that name for `deelbo.fit`; None for "sgd", which is the trainer's own.

    Raises:
        ValueError: another name.
        ImportError: the package that it comes from is not installed.
    """
    if name == "sgd":
        return None
    if name == "prodigy":
        prodigy = _class("prodigyopt", "Prodigy", name)
        return lambda trained, rate: Apart(trained, rate, lambda weights: prodigy(weights, lr=rate, d0=FIRST_STEP))
    if name == "schedule-free":
        averaged = _class("schedulefree", "SGDScheduleFree", name)
        return lambda trained, rate: Averaging(trained, rate, lambda weights: averaged(weights, lr=rate))
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")


def _class(package: str, name: str, optimizer: str) -> Any:
    try:
        return getattr(import_module(package), name)
    except ImportError as error:
        raise ImportError(f"{optimizer} needs the package {package}: pip install 'deelbo[methods]'") from error


class Apart(Optimizer):
    """One optimizer for weights, and Adam for parameters of a single number, as rho is. Groups and state are shared.

    Args:
        trained: all that is trained.
        rate: multiplies `RHO_RATE`.
        of_weights: makes the optimizer of the weights.
    """

    def __init__(
        self, trained: list[nn.Parameter], rate: float, of_weights: Callable[[list[nn.Parameter]], Optimizer]
    ) -> None:
        weights = [p for p in trained if p.numel() > 1]
        single = [p for p in trained if p.numel() == 1]
        self.weights = of_weights(weights)
        self.single = torch.optim.Adam(single, lr=RHO_RATE * rate) if single else None
        self._of_weights = len(self.weights.param_groups)
        groups = [*self.weights.param_groups, *(self.single.param_groups if self.single else [])]
        super().__init__(groups, {})
        self._share()

    def _share(self) -> None:
        """A scheduler's learning rates, and a state that was loaded, are those of the two."""
        self.weights.param_groups, self.weights.state = self.param_groups[: self._of_weights], self.state
        if self.single is not None:
            self.single.param_groups, self.single.state = self.param_groups[self._of_weights :], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both."""
        self.weights.step()
        if self.single is not None:
            self.single.step()


class Averaging(Apart):
    """As `Apart`; the weights that are evaluated are not those whose gradient is taken, and it must be told which."""

    weights: Any

    def train(self) -> None:
        """Puts the weights where the next gradient is taken."""
        self.weights.train()

    def eval(self) -> None:
        """Puts the weights at their average."""
        self.weights.eval()
