"""One training run, the same for every objective: SGD, Nesterov momentum, cosine schedule, clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from deelbo.checkpoint import Checkpoint
from deelbo.clock import PhaseClock
from deelbo.numerics import Numerics
from deelbo.objectives import Objective
from deelbo.run import Run, Schedule
from deelbo.tasks import Split
from deelbo.tasks.images import Normalisation

__all__ = ["FitResult", "fit"]


@dataclass(frozen=True)
class FitResult:
    """What a run leaves behind.

    Attributes:
        status: "completed", or "diverged" where a loss or a metric was not finite.
        steps: steps that were run.
        metrics: train_nll (mean over the last stretch), and where there was data for it val_nll, val_acc, test_nll,
            test_acc (class-balanced, 0 to 1), all at the posterior mean; objective and nll_under_q (posterior draws).
        state: `Objective.describe` at the end.
        seconds: by phase of the clock.
        series: one row a look: epoch, step, train_seconds, learning_rate, train_nll, val_*, and the objective's state.
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
) -> FitResult:
    """Trains ``model`` in place by ``objective`` on ``split.train``, and measures it.

    Args:
        model: on its device; its trained weights are the objective's.
        split: the images; they are moved to the model's device.
        objective: over the model's weights, with N = the number of training images.
        schedule: how to train.
        seed: of the order of images, augmentation and whatever the model itself draws.
        test: whether to measure test accuracy at the end.
        clock: where seconds are booked; a new one where None.
        on_epoch: called with each row of the series, its time booked nowhere; not with those of a checkpoint.
        numerics: how forward and backward are computed; in float32 where None.
        checkpoint: where the run is kept between epochs, and gone on from where it is there already. The clock's
            seconds then go on from the checkpoint's, and its writing is booked under "checkpoint". None: nowhere.

    Raises:
        ValueError: the objective's N is not the number of training images.
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
            run = Run(model, _moved(split, device, test), objective, schedule, seed, numerics)
        with clock.phase("warmup"):
            run.warm_up()
        if checkpoint is not None:
            checkpoint.resume(run, clock)
        diverged = _train(run, clock, on_epoch, checkpoint)
        series = run.series
        metrics = {"train_nll": series[-1]["train_nll"]}
        metrics |= {name: series[-1][name] for name in ("val_nll", "val_acc") if name in series[-1]}
        with clock.phase("monitor"):
            state = objective.describe()
        if test:
            with clock.phase("test"):
                metrics["test_nll"], metrics["test_acc"] = run.evaluate(run.split.test)
        if objective.is_bayesian:
            with clock.phase("select"):
                metrics["nll_under_q"] = run.nll_under_posterior()
                metrics["objective"] = metrics["nll_under_q"] + state["regulariser"]
    finite = all(math.isfinite(value) for value in metrics.values())
    status = "completed" if finite and not diverged else "diverged"
    return FitResult(status, int(series[-1]["step"]), metrics, state, clock.seconds, series)


def _train(
    run: Run,
    clock: PhaseClock,
    on_epoch: Callable[[dict[str, float]], None] | None,
    checkpoint: Checkpoint | None,
) -> bool:
    """The step loop, from where the run stands; whether it diverged. No step waits for the device.

    It ends early where the training loss stops being finite.
    """
    looks = run.looks()
    with clock.phase("train"):
        for epoch in range(run.steps_done // run.steps_an_epoch + 1, run.epochs + 1):
            run.model.train()
            for batch in run.batches():
                run.nll += run.step(batch)
                run.since += 1
            if epoch in looks:
                row = _look(run, clock, epoch)
                if on_epoch is not None:
                    with clock.paused():
                        on_epoch(dict(row))
                if not math.isfinite(row["train_nll"]):
                    return True
            if checkpoint is not None and checkpoint.due():
                checkpoint.keep(run, clock)
    return False


def _look(run: Run, clock: PhaseClock, epoch: int) -> dict[str, float]:
    """Adds a row to the run's series. Waits for the device."""
    train_nll = float(run.nll) / run.since
    run.nll.zero_()
    run.since = 0
    row = {"epoch": epoch, "step": run.steps_done, "train_seconds": clock.read("train")}
    row |= {"learning_rate": run.last_rate, "train_nll": train_nll}
    with clock.phase("monitor"):
        row |= run.objective.describe()
    if run.split.validation is not None:
        with clock.phase("evaluate" if epoch == run.epochs else "monitor"):
            row["val_nll"], row["val_acc"] = run.evaluate(run.split.validation)
    run.series.append(row)
    return row


def _moved(split: Split, device: torch.device, test: bool) -> Split:
    """The split on the device; the test images only where they will be looked at."""
    parts: dict[str, Any] = {"train": split.train.to(device), "test": split.test.to(device) if test else split.test}
    parts["validation"] = None if split.validation is None else split.validation.to(device)
    norm = split.normalisation
    return replace(split, normalisation=Normalisation(norm.mean.to(device), norm.std.to(device)), **parts)
