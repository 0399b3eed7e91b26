"""State and operations of one training run: batches, one optimizer step, warm-up, evaluation, saving and loading."""

import copy
import gc
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo.data.dataset import Split
from deelbo.data.examples import Examples
from deelbo.objectives.base import FORWARD, Objective
from deelbo.training.batchnorm import running_layers, update_batchnorm
from deelbo.training.evaluation import BATCH_SIZE as EVALUATION_BATCH
from deelbo.training.evaluation import evaluate, predict_logits
from deelbo.training.numerics import Numerics
from deelbo.training.schedule import Schedule

T = TypeVar("T")
OptimizerFactory = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
"""Makes an optimizer of the trained parameters, given the learning rate of the first step."""
WARMUP_STEPS = 2
STATISTICS_EXAMPLES = 5000
"""Largest number of training images from which running statistics are estimated again: 0.7 % of 6,000 steps of 128."""
NUMBERS = ("steps_done", "last_rate", "series", "nll_sum", "nll_steps", "earlier_seconds", "gradient_equivalents")
"""The attributes of a run that are part of its state."""


class TrainingRun:
    """One training run.

    Attributes:
        series: one row per evaluation so far, see `deelbo.FitResult`.
        nll_sum, nll_steps: sum of the batches' mean NLL since the last evaluation (on the device), and their number.
        last_epoch: the epoch after which training stops, which may be before the schedule's last one.
        is_whole: whether that is the end of the run, not that of a segment which another one continues.
        earlier_seconds: training seconds of the earlier segments of this run, where a `deelbo.Handover` continued them.
        gradient_equivalents: work of the run so far, in gradients of one training batch.
        optimizer_form: `form_of` the optimizer's state dict after a step. Set by `warm_up`.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        objective: Objective,
        schedule: Schedule,
        seed: int,
        numerics: Numerics | None = None,
        optimizer: OptimizerFactory | None = None,
        until: float = 1.0,
    ) -> None:
        self.model, self.split, self.objective, self.schedule = model, split, objective, schedule
        self.numerics = numerics or Numerics()
        self.forward = self.numerics.compile_model(model)
        self.device = objective.weights[0].device
        self.trained = [*objective.weights, *objective.parameters()]
        num_examples = len(split.train)
        self.total_steps = schedule.total_steps(num_examples)
        self.batch_size = schedule.batch(num_examples)
        self.steps_per_epoch = schedule.steps_per_epoch(num_examples)
        self.epochs = schedule.epochs(num_examples)
        self.last_epoch = schedule.stop_epoch(min(until, schedule.stop_after), num_examples)
        self.is_whole = until >= schedule.stop_after
        self.noisy_steps = schedule.noisy_steps(num_examples)
        self.generator = torch.Generator().manual_seed(seed)  # of the order of images and their augmentation
        self.earlier_seconds = 0.0
        self.optimizer_form: dict[str, Any] = {}
        self._optimizer_factory = optimizer
        self._start()

    def _start(self) -> None:
        rate, momentum = self.schedule.learning_rate, self.schedule.momentum
        if self._optimizer_factory is None:
            fused = True if self.device.type == "cuda" else None
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                self.trained, lr=rate, momentum=momentum, nesterov=momentum > 0, fused=fused
            )
        else:
            self.optimizer = self._optimizer_factory(self.trained, rate)
        self.set_optimizer_mode("train")
        schedulers = torch.optim.lr_scheduler
        if self.schedule.lr_scheduler == "cosine":
            self.scheduler: schedulers.LRScheduler = schedulers.CosineAnnealingLR(self.optimizer, self.total_steps)
        else:
            self.scheduler = schedulers.ConstantLR(self.optimizer, factor=1.0)
        self.steps_done = 0
        self.gradient_equivalents = 0.0
        self.last_rate = rate
        self.series: list[dict[str, float]] = []
        self.nll_sum, self.nll_steps = torch.zeros((), device=self.device), 0

    def set_optimizer_mode(self, name: str) -> None:
        """Call the optimizer's ``train`` or ``eval``, which those that average weights have (schedule-free)."""
        if (switch := getattr(self.optimizer, name, None)) is not None:
            switch()

    def set_training_mode(self) -> None:
        """Put the network in training mode, except layers with running statistics where these are frozen.

        It is in evaluation mode where only the head is trained.
        """
        self.model.train(self.schedule.train == "all")
        if self.schedule.batchnorm == "frozen":
            for module in running_layers(self.model):
                module.training = False  # not by `eval`, which would reach modules inside this one

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """A block in which the weights are those that the optimizer evaluates; afterwards they are restored exactly."""
        if not hasattr(self.optimizer, "eval"):
            yield
            return
        trained = [parameter.detach().clone() for parameter in self.trained]
        self.set_optimizer_mode("eval")
        try:
            yield
        finally:
            self.set_optimizer_mode("train")  # restores the trained weights up to rounding
            _copy_into(self.trained, trained)

    def evaluation_epochs(self) -> set[int]:
        """The epochs after which the whole run is evaluated: evenly spaced, the last one included."""
        points = min(self.schedule.series_points, self.epochs)
        return {math.ceil(self.epochs * (i + 1) / points) for i in range(points)}

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Draw one epoch's batches in random order: indices (B,) and `Transform.draw`'s columns (k, B), on the device.

        The last partial batch is dropped.
        """
        order = torch.randperm(len(self.split.train), generator=self.generator)
        plan = torch.cat([order[None], self.split.transform.draw(len(order), self.generator)])
        if self.device.type == "cuda":  # from pinned memory, or the copy would wait for the steps before it
            plan = plan.pin_memory().to(self.device, non_blocking=True)
        return [(piece[0], piece[1:]) for piece in plan.split(self.batch_size, dim=1)[: self.steps_per_epoch]]

    def step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Take one optimizer step and return the batch's mean NLL, which stays on the device."""
        indices, drawn = batch
        examples = self.split.train
        x = self.split.transform.training(examples.inputs[indices], drawn)
        x, labels = self.numerics.to_memory_format(x), examples.labels[indices]
        with self.objective.step():
            with self.numerics.autocast(self.device):
                loss = F.cross_entropy(self.forward(x).float(), labels)
            loss.backward()
        nn.utils.clip_grad_norm_(self.trained, self.schedule.clip_norm)
        self.last_rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.scheduler.step()
        self.steps_done += 1
        self.count_work(self.batch_size)
        return loss.detach()

    def count_work(self, images: int, gradients: float = 1.0) -> None:
        """Add the work of so many gradients of ``images`` images to `gradient_equivalents`."""
        self.gradient_equivalents += gradients * images / self.batch_size

    def warm_up(self) -> None:
        """Take a few steps, so that first-call costs (libraries, kernels, memory) are paid, then restore everything.

        Evaluation has batches of its own sizes, for which cuDNN selects its algorithms anew.
        """
        start, num_modules = copy.deepcopy(self.state()), len(sys.modules)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            self._evaluate_each_batch_size()
            self.set_training_mode()
            for _ in range(WARMUP_STEPS):
                self.step(self.batches()[0])
            self.objective.warm_up(self)
        self.optimizer_form = form_of(self.optimizer.state_dict())
        for parameter in self.trained:
            parameter.grad = None
        self._start()
        self.load(start)
        if self.numerics.compile or len(sys.modules) > num_modules:
            # torch.compile and imports leave exceptions in reference cycles, whose frames hold this run and its caller
            gc.collect()

    def _evaluate_each_batch_size(self) -> None:
        """Evaluate a batch of each size that the phases "evaluate" and "select" will have."""
        for examples in (self.split.validation, self.split.train if self.objective.is_bayesian else None):
            if examples is not None:
                for size in {min(len(examples), EVALUATION_BATCH), len(examples) % EVALUATION_BATCH} - {0}:
                    self.evaluate(examples.take(torch.arange(size, device=self.device)))

    def _generators(self) -> list[torch.Generator]:
        return [generator for generator in (self.generator, self.objective.generator) if generator is not None]

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on between two epochs, as plain values and the run's own tensors.

        Buffers that the model keeps out of its ``state_dict`` are not included.
        """
        random = [torch.get_rng_state(), *(generator.get_state() for generator in self._generators())]
        if self.device.type == "cuda":
            random.append(torch.cuda.get_rng_state(self.device))
        return {
            "model": self.model.state_dict(),
            "parameters": [parameter.detach() for parameter in self.objective.parameters()],
            "learned_state": self.objective.learned_state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": random,
            **{name: getattr(self, name) for name in NUMBERS},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a `state` of this same run, whose tensors may be on any device."""
        self.model.load_state_dict(state["model"])
        _copy_into(self.objective.parameters(), state["parameters"])
        self.objective.load_learned_state(state["learned_state"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        global_state, *random = state["random"]
        torch.set_rng_state(global_state)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(random.pop(), self.device)
        for generator, generator_state in zip(self._generators(), random, strict=True):
            generator.set_state(generator_state)
        for name in NUMBERS:
            setattr(self, name, state[name])
        self.nll_sum = self.nll_sum.to(self.device)

    def evaluate(self, examples: Examples) -> tuple[float, float]:
        """Return `deelbo.evaluate` of the current weights: mean NLL and class-balanced accuracy."""
        return evaluate(self.model, examples, self.split.transform, self.numerics)

    def predict_test_logits(self) -> Tensor:
        """Return `predict_logits` of the test examples at the current weights."""
        return predict_logits(self.model, self.split.test.inputs, self.split.transform, self.numerics)

    def nll_under_posterior(self) -> float:
        """Estimate E_q of the mean NLL of the training images, not augmented, with one draw of the weights per pass."""
        passes = self.schedule.posterior_passes
        self.count_work(len(self.split.train), FORWARD * passes)
        return sum(self._at_draws(lambda: self.evaluate(self.split.train)[0], passes)) / passes

    def posterior_predictive(self) -> Tensor:
        """Return the logarithms of the test examples' class probabilities averaged over q; float64 (n, classes).

        p(y | x) = (1/S) sum_s p(y | x, w_s), with w_s from q and S = ``schedule.predictive_draws``.
        """
        draws, work = self.schedule.predictive_draws, self.gradient_equivalents
        logs = self._at_draws(lambda: self.predict_test_logits().double().log_softmax(1), draws)
        self.gradient_equivalents = work  # test metrics are not part of what the method costs
        return torch.stack(logs).logsumexp(0) - math.log(draws)

    def _at_draws(self, measure: Callable[[], T], count: int) -> list[T]:
        """Return ``measure()`` at each of ``count`` draws of the weights; running statistics are restored."""
        kept = [buffer.clone() for layer in running_layers(self.model) for buffer in layer.buffers(recurse=False)]
        measured = []
        for _ in range(count):
            with torch.no_grad(), self.objective.step():  # so a frozen objective draws, too
                if self.schedule.closing_batchnorm == "draw":
                    self.update_batchnorm()
                measured.append(measure())
        buffers = [buffer for layer in running_layers(self.model) for buffer in layer.buffers(recurse=False)]
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
        return measured

    def update_batchnorm(self) -> None:
        """Estimate running statistics again, unless they are frozen or there are none.

        Over the training images without augmentation, or over evenly spaced ones where they are more than
        `STATISTICS_EXAMPLES`.
        """
        frozen = self.schedule.train != "all" or self.schedule.batchnorm == "frozen"
        if frozen or not running_layers(self.model):
            return
        inputs, transform = self.split.train.inputs, self.split.transform
        inputs = inputs[:: math.ceil(len(inputs) / STATISTICS_EXAMPLES)]
        self.count_work(len(inputs), FORWARD)
        parts = inputs.chunk(math.ceil(len(inputs) / EVALUATION_BATCH))
        with self.numerics.autocast(self.device):
            update_batchnorm(self.model, (self.numerics.to_memory_format(transform.evaluation(part)) for part in parts))


@torch.no_grad()
def _copy_into(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def form_of(value: Any) -> Any:
    """Return a nested structure with types and shapes in place of tensors, and a mark in place of numbers."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape
    if isinstance(value, dict):
        return {name: form_of(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [form_of(inner) for inner in value]
    return int if isinstance(value, int | float) else value
