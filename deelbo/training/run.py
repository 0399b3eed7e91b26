"""The moving parts of a training run: its schedule, its batches, one step, and how a network is measured."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo._vectors import flatten, write
from deelbo.data import Split
from deelbo.data.images import Images
from deelbo.objectives.base import Objective
from deelbo.training.evaluation import _form, evaluate
from deelbo.training.numerics import Numerics
from deelbo.training.schedule import Schedule

__all__ = ["MakeOptimizer", "TrainingRun"]


MakeOptimizer = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
"""Makes an optimizer of what is trained and the learning rate that the cosine starts from."""
WARMUP_STEPS = 2


class TrainingRun:
    """The moving parts of one training run.

    Attributes:
        steps_done: optimizer steps that were run.
        series: a row for each look so far, see `deelbo.FitResult`.
        nll, since: the sum of the batches' mean NLL since the last look, left on the device, and how many they were.
        last_rate, last_norm: the learning rate of the last step, and its gradient's norm before clipping, left on the
            device (None before the first step).
        stop: the epoch after which training ends; before the last one in a run that is handed over.
        earlier_seconds: of training, in the stretches of this run that were handed over to here.
        optimizer_form: the optimizer's state after a step, its tensors without numbers: what one that is kept looks
            like. Known from `warm_up` on.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        objective: Objective,
        schedule: Schedule,
        seed: int,
        numerics: Numerics | None = None,
        optimizer: MakeOptimizer | None = None,
        until: float = 1.0,
    ) -> None:
        self.model, self.split, self.objective, self.schedule = model, split, objective, schedule
        self.numerics = numerics or Numerics()
        self.forward = self.numerics.trained_through(model)
        self.device = objective.weights[0].device
        self.trained = [*objective.weights, *objective.parameters()]
        self.total = schedule.total_steps(len(split.train))
        self.batch = schedule.batch(len(split.train))
        self.steps_an_epoch = schedule.steps_an_epoch(len(split.train))
        self.epochs = schedule.epochs(len(split.train))
        self.stop = schedule.stop_epoch(until, len(split.train))
        self.random = torch.Generator().manual_seed(seed)
        self.earlier_seconds = 0.0
        self.optimizer_form: dict[str, Any] = {"state": {}, "param_groups": []}
        self._make = optimizer or self._nesterov
        self._start()

    def _nesterov(self, trained: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        momentum = self.schedule.momentum
        fused = True if self.device.type == "cuda" else None
        return torch.optim.SGD(trained, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, fused=fused)

    def _start(self) -> None:
        schedule = self.schedule
        self.optimizer = self._make(self.trained, schedule.learning_rate)
        self._mode("train")
        self.cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=self.total)
        self.steps_done = 0
        self.last_rate = schedule.learning_rate
        self.last_norm: Tensor | None = None
        self.series: list[dict[str, float]] = []
        self.nll, self.since = torch.zeros((), device=self.device), 0

    def _mode(self, name: str) -> None:
        """Some optimizers average weights: they train some and evaluate others, and must be told (schedule-free)."""
        if (switch := getattr(self.optimizer, name, None)) is not None:
            switch()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """A block in which the weights are those that the optimizer would have evaluated; put back to the bit."""
        if not hasattr(self.optimizer, "eval"):
            yield
            return
        before = [flatten(self.objective.weights), *(p.detach().clone() for p in self.objective.parameters())]
        self._mode("eval")
        try:
            yield
        finally:
            self._mode("train")  # which gives the weights that were trained but for rounding
            write(self.objective.weights, before[0])
            with torch.no_grad():
                for parameter, value in zip(self.objective.parameters(), before[1:], strict=True):
                    parameter.copy_(value)

    def end(self) -> None:
        """Leaves the weights as those that the optimizer would have evaluated: no step may follow."""
        self._mode("eval")

    def looks(self) -> set[int]:
        """The epochs after which the whole run is looked at, spread evenly, the last one included."""
        points = min(self.schedule.series_points, self.epochs)
        return {math.ceil(self.epochs * (i + 1) / points) for i in range(points)}

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """One epoch's batches in random order, sent to the device in one go: indices (B,), and places to crop.

        The last partial batch is dropped.
        """
        order = torch.randperm(len(self.split.train), generator=self.random)
        drawn = self.split.geometry.draw(len(order), self.random)
        plan = torch.cat([order[None], drawn])
        if self.device.type == "cuda":  # from pinned memory, or the copy would wait for the steps before it
            plan = plan.pin_memory().to(self.device, non_blocking=True)
        return [(piece[0], piece[1:]) for piece in plan.split(self.batch, dim=1)[: self.steps_an_epoch]]

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """One optimizer step; the batch's mean NLL, left on the device."""
        indices, drawn = batch
        images, geometry = self.split.train, self.split.geometry
        x = self.split.normalization(geometry.training(images.pixels[indices], drawn))
        x, labels = self.numerics.laid_out(x), images.labels[indices]
        with self.objective.step():
            with self.numerics.autocast(self.device):
                loss = F.cross_entropy(self.forward(x).float(), labels)
            loss.backward()
        self.last_norm = nn.utils.clip_grad_norm_(self.trained, self.schedule.clip_norm)
        self.last_rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.cosine.step()
        self.steps_done += 1
        return loss.detach()

    def warm_up(self) -> None:
        """Pays for first calls (libraries, kernels, memory): real steps, after which all is put back to the bit."""
        weights = copy.deepcopy(self.model.state_dict())
        learned = [parameter.detach().clone() for parameter in self.objective.parameters()]
        adapted = {name: tensor.clone() for name, tensor in self.objective.learned_state().items()}
        states = [generator.get_state() for generator in self._generators()]
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            self.model.train()
            for _ in range(WARMUP_STEPS):
                self.step(self.batches()[0])
            self.objective.warm_up(self)
        self.optimizer_form = _form(self.optimizer.state_dict())
        self.model.load_state_dict(weights)
        self.objective.load_learned_state(adapted)
        with torch.no_grad():
            for parameter, value in zip(self.objective.parameters(), learned, strict=True):
                parameter.copy_(value)
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state)
        for parameter in self.trained:
            parameter.grad = None
        self._start()

    def _generators(self) -> list[torch.Generator]:
        """Whose random numbers this run draws beside torch's global ones."""
        return [generator for generator in (self.random, self.objective.generator) if generator is not None]

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on between two epochs: plain values, and the run's own tensors, which
        change as it goes on. Buffers that the model itself keeps out of its ``state_dict`` are not in it."""
        random = [torch.get_rng_state(), *(generator.get_state() for generator in self._generators())]
        if self.device.type == "cuda":
            random.append(torch.cuda.get_rng_state(self.device))
        return {
            "model": self.model.state_dict(),
            "learned": [parameter.detach() for parameter in self.objective.parameters()],
            "adapted": self.objective.learned_state(),
            "optimizer": self.optimizer.state_dict(),
            "cosine": self.cosine.state_dict(),
            "random": random,
            **{name: getattr(self, name) for name in ("steps_done", "last_rate", "series", "nll", "since")},
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a `state` of this very run, whose tensors may lie on any device."""
        self.model.load_state_dict(state["model"])
        for parameter, value in zip(self.objective.parameters(), state["learned"], strict=True):
            parameter.copy_(value)
        self.objective.load_learned_state(state["adapted"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.cosine.load_state_dict(state["cosine"])
        shared, *random = state["random"]
        torch.set_rng_state(shared)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(random.pop(), self.device)
        for generator, numbers in zip(self._generators(), random, strict=True):
            generator.set_state(numbers)
        self.steps_done, self.last_rate, self.since = state["steps_done"], state["last_rate"], state["since"]
        self.series, self.nll = state["series"], state["nll"].to(self.device)

    def evaluate(self, images: Images) -> tuple[float, float]:
        """Mean NLL and class-balanced accuracy with the weights as they are."""
        return evaluate(self.model, images, self.split.normalization, self.split.geometry, self.numerics)

    def nll_under_posterior(self) -> float:
        """E_q of the mean NLL over the training images, not augmented, one draw a pass."""
        passes = self.schedule.posterior_passes
        total = 0.0
        for _ in range(passes):
            with self.objective.step():
                total += self.evaluate(self.split.train)[0]
        return total / passes
