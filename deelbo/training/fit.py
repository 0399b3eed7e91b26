"""One training run, the same for every objective: one optimizer, cosine schedule, clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from deelbo.data import Split
from deelbo.data.images import Normalization
from deelbo.objectives.base import Objective
from deelbo.training.checkpoint import Checkpoint
from deelbo.training.clock import PhaseClock
from deelbo.training.handover import Handover
from deelbo.training.numerics import Numerics
from deelbo.training.run import MakeOptimizer, TrainingRun
from deelbo.training.schedule import Schedule

__all__ = ["FitResult", "fit"]


@dataclass(frozen=True)
class FitResult:
    """What a run leaves behind.

    Attributes:
        status: "completed", or "diverged" where a loss or a metric was not finite.
        steps: steps that the run has behind it, those that were handed over included.
        metrics: train_nll (mean since the look before), and where there was data for it val_nll, val_acc, test_nll,
            test_acc (class-balanced, 0 to 1), all at the posterior mean; objective and nll_under_q (posterior draws),
            or what `Objective.final` gives. Of a run that stops before its end: train_nll, val_*, and for a Bayesian
            objective the objective with train_nll for its first term.
        state: `Objective.describe` at the end.
        seconds: by phase of the clock, of this process alone.
        series: one row a look: epoch, step, train_seconds, learning_rate, train_nll, val_*, and the objective's state.
            A stop between two looks is looked at as well, which leaves no trace in the run that goes on.
    """

    status: str
    steps: int
    metrics: dict[str, float]
    state: dict[str, float]
    seconds: dict[str, float]
    series: list[dict[str, float]]


def fit(
    model: nn.Module,
    split: Split,
    objective: Objective,
    schedule: Schedule,
    *,
    seed: int = 0,
    test: bool = True,
    clock: PhaseClock | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    numerics: Numerics | None = None,
    checkpoint: Checkpoint | None = None,
    until: float = 1.0,
    handover: Handover | None = None,
    optimizer: MakeOptimizer | None = None,
) -> FitResult:
    """Trains ``model`` in place by ``objective`` on ``split.train``, and measures it.

    Args:
        model: on its device; its trained weights are the objective's.
        split: the images; they are moved to the model's device.
        objective: over the model's weights, with N = the number of training images.
        schedule: how to train.
        seed: of the order of images, augmentation and whatever the model itself draws.
        test: whether to measure test accuracy at the end. Not where the run stops before.
        clock: where seconds are booked; a new one where None.
        on_epoch: called with each row of the series, its time booked nowhere; not with those of a checkpoint.
        numerics: how forward and backward are computed; in float32 where None.
        checkpoint: where the run is kept between epochs, and gone on from where it is there already. The clock's
            seconds then go on from the checkpoint's, and its writing is booked under "checkpoint". None: nowhere.
        until: the share of the run's epochs after which training stops, rounded up to whole ones. The cosine is the
            whole run's.
        handover: how an earlier stretch of the run is taken up and, where ``until`` is below 1, this one handed on. Its
            time is booked under "checkpoint". None: the run starts from its start, and ends where it stops.
        optimizer: makes the optimizer of the parameters that are trained (rho among them) and the learning rate; SGD
            with Nesterov's momentum where None. It must have no weight decay of its own. One that averages weights
            (schedule-free) is looked at and measured in its evaluation mode.

    Raises:
        ValueError: the objective's N is not the number of training images, or until is no share above 0.
    """
    if objective.num_examples != len(split.train):
        raise ValueError(f"the objective was made for N = {objective.num_examples}, the split has {len(split.train)}")
    device = objective.weights[0].device
    clock = clock or PhaseClock(device)
    cuda = [device] if device.type == "cuda" else []
    numerics = numerics or Numerics()
    with torch.random.fork_rng(devices=cuda), numerics.switched_on():
        torch.manual_seed(seed)
        with clock.phase("setup"):
            images = _moved(split, device, test and until == 1)
            run = TrainingRun(model, images, objective, schedule, seed, numerics, optimizer, until)
        with clock.phase("warmup"):
            run.warm_up()
        if handover is not None:
            handover.take_up(run, clock)
        if checkpoint is not None:
            checkpoint.resume(run, clock)
        series, diverged = _train(run, clock, on_epoch, checkpoint)
        if handover is not None and until < 1 and not diverged:
            handover.keep(run, clock)
        run.end()
        metrics = {"train_nll": series[-1]["train_nll"]}
        metrics |= {name: series[-1][name] for name in ("val_nll", "val_acc") if name in series[-1]}
        with clock.phase("monitor"):
            state = objective.describe()
        if until == 1:
            metrics |= _final(run, clock, test, state["regularizer"])
        elif objective.is_bayesian:
            metrics["objective"] = metrics["train_nll"] + state["regularizer"]
    finite = all(math.isfinite(value) for value in metrics.values())
    status = "completed" if finite and not diverged else "diverged"
    return FitResult(status, int(series[-1]["step"]), metrics, state, clock.seconds, series)


def _train(
    run: TrainingRun,
    clock: PhaseClock,
    on_epoch: Callable[[dict[str, float]], None] | None,
    checkpoint: Checkpoint | None,
) -> tuple[list[dict[str, float]], bool]:
    """The step loop, from where the run stands to where it stops; the rows of all looks, and whether it diverged.

    No step waits for the device. It ends early where the training loss stops being finite.
    """
    looks = run.looks()

    def look(epoch: int) -> dict[str, float]:
        row = _look(run, clock, epoch)
        if on_epoch is not None:
            with clock.paused():
                on_epoch(dict(row))
        return row

    with clock.phase("train"):
        for epoch in range(run.steps_done // run.steps_an_epoch + 1, run.stop + 1):
            run.model.train()
            for batch in run.batches():
                run.nll += run.step(batch)
                run.since += 1
                if run.objective.due(run.steps_done):
                    with clock.phase("adapt"):
                        run.objective.adapt(run)
            if epoch in looks:
                run.series.append(look(epoch))
                run.nll.zero_()
                run.since = 0
                if not math.isfinite(run.series[-1]["train_nll"]):
                    return run.series, True
            if checkpoint is not None and checkpoint.due():
                checkpoint.keep(run, clock)
        if run.stop in looks:
            return run.series, False
        row = look(run.stop)  # no look of the whole run's: nothing of it stays in the run
    return [*run.series, row], not math.isfinite(row["train_nll"])


def _look(run: TrainingRun, clock: PhaseClock, epoch: int) -> dict[str, float]:
    """A row of the series. Waits for the device."""
    row = {"epoch": epoch, "step": run.steps_done, "train_seconds": run.earlier_seconds + clock.read("train")}
    row |= {"learning_rate": run.last_rate, "train_nll": float(run.nll) / run.since}
    with clock.phase("monitor"), run.looking():
        row |= run.objective.describe()
        if run.split.validation is not None:
            with clock.phase("evaluate" if epoch == run.stop else "monitor"):
                row["val_nll"], row["val_acc"] = run.evaluate(run.split.validation)
    return row


def _final(run: TrainingRun, clock: PhaseClock, test: bool, regularizer: float) -> dict[str, float]:
    """What a whole run's end is measured by."""
    metrics = {}
    if test:
        with clock.phase("test"):
            metrics["test_nll"], metrics["test_acc"] = run.evaluate(run.split.test)
    if run.objective.is_bayesian:
        with clock.phase("select"):
            metrics["nll_under_q"] = run.nll_under_posterior()
            metrics["objective"] = metrics["nll_under_q"] + regularizer
    elif type(run.objective).final is not Objective.final:  # MAP selects nothing, in no time
        with clock.phase("select"):
            metrics |= run.objective.final(run)
    return metrics


def _moved(split: Split, device: torch.device, test: bool) -> Split:
    """The split on the device; the test images only where they will be looked at."""
    parts: dict[str, Any] = {"train": split.train.to(device), "test": split.test.to(device) if test else split.test}
    parts["validation"] = None if split.validation is None else split.validation.to(device)
    norm = split.normalization
    return replace(split, normalization=Normalization(norm.mean.to(device), norm.std.to(device)), **parts)
