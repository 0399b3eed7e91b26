"""The training loop of the DE ELBo written out with autograd, for the draws that another loop has made.

It uses no code of `deelbo`: theta = theta_bar + sigma eps, the mean NLL at theta, the KL with lambda* and tau* put in,
and autograd for all gradients.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Call = tuple[list[Tensor], tuple[Any, ...], dict[str, Any]]


class Recorder:
    """Records the trained weights and the arguments of each forward pass in training, in order."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.calls: list[Call] = []
        model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and torch.is_grad_enabled():
            self.calls.append(([p.detach().clone() for p in self.weights], args, kwargs))


@dataclass
class HandWritten:
    """The loop's inputs.

    ``model`` are the initial weights, which the prior "l2-sp" pulls towards; the weights of the names in ``head`` are
    pulled towards 0.
    """

    model: nn.Module
    head: str
    sigma: float
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    loss: Callable[[Any, tuple[Any, ...]], Tensor]  # output and arguments of the call -> mean NLL
    clip: float = math.inf
    clips_rho: bool = True

    def train(self, steps: Sequence[Sequence[Call]], parts: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Make one optimizer step for each group of calls, whose losses are added and divided by ``parts``.

        Returns the weights by name, and rho. ``parts`` is the group's size if it is None.
        """
        weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        rho = nn.Parameter(torch.tensor(math.log(math.expm1(self.sigma)), dtype=torch.float64))
        means = {n: torch.zeros_like(p) if self.head in n else p.detach().clone() for n, p in weights.items()}
        optimizer = self.optimizer([*weights.values(), rho])
        for calls in steps:
            optimizer.zero_grad()
            sigma = nn.functional.softplus(rho)
            draw = dict(zip(weights, calls[0][0], strict=True))
            theta = {n: p + sigma * ((draw[n] - p) / sigma).detach() for n, p in weights.items()}
            for _, args, kwargs in calls:
                output = functional_call(self.model, theta, args, kwargs)
                (self.loss(output, args) / (parts or len(calls))).backward(retain_graph=True)
            (self._kl(weights, means, sigma) / sum(p.numel() for p in weights.values())).backward()  # as kappa N = D
            nn.utils.clip_grad_norm_([*weights.values(), *([rho] if self.clips_rho else [])], self.clip)
            optimizer.step()
        return {n: p.detach() for n, p in weights.items()}, rho.detach()

    def _kl(self, weights: dict[str, nn.Parameter], means: dict[str, Tensor], sigma: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for in_head in (False, True):
            names = [name for name in weights if (self.head in name) == in_head]
            dim = sum(weights[name].numel() for name in names)
            squared = torch.stack([(weights[name] - means[name]).square().sum() for name in names]).sum()
            scale = sigma**2 + squared / dim
            total = total + dim / 2 * (scale.log() - (sigma**2).log())
        return total


def grouped(calls: Sequence[Call], sizes: Iterable[int]) -> list[list[Call]]:
    """Split the calls into groups of these sizes, which must use them up."""
    rest, groups = list(calls), []
    for size in sizes:
        groups.append(rest[:size])
        rest = rest[size:]
    assert not rest
    return groups


def check_draws(steps: Sequence[Sequence[Call]]) -> None:
    """Assert that the calls of a step share one draw, and that each step has its own."""
    for calls in steps:
        for weights, *_ in calls[1:]:
            assert all(torch.equal(a, b) for a, b in zip(weights, calls[0][0], strict=True))
    for earlier, later in pairwise(steps):
        assert not any(torch.equal(a, b) for a, b in zip(earlier[0][0], later[0][0], strict=True))
