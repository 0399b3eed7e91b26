"""Train a network by one objective and measure it: one optimizer, one learning-rate schedule, clipped gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from deelbo._random import seeded
from deelbo.data.dataset import Split
from deelbo.objectives.base import FORWARD, Objective
from deelbo.training.checkpoint import Checkpoint, Handover
from deelbo.training.clock import PhaseClock
from deelbo.training.evaluation import classification_metrics
from deelbo.training.numerics import Numerics
from deelbo.training.run import OptimizerFactory, TrainingRun
from deelbo.training.schedule import Schedule

Row = dict[str, float]
OnEpoch = Callable[[Row], None]


@dataclass(frozen=True)
class FitResult:
    """Result of a training run.

    Attributes:
        status: "completed", or "diverged" where a loss or a metric is not finite.
        steps: optimizer steps of the run so far, those of earlier segments included.
        metrics: at the posterior mean: train_nll (mean since the last evaluation) and, where there are examples for it,
            val_nll, val_acc (of `Schedule.validation_epoch`), test_nll, test_acc (class-balanced, 0 to 1), test_ece and
            test_brier. A whole run of a Bayesian objective adds nll_under_q (posterior draws), objective and, with
            ``predictive_draws``, the four test metrics of predictions averaged over q as predictive_nll,
            predictive_acc, predictive_ece and predictive_brier; one of another objective its
            `Objective.selection_metrics`. A segment that ends earlier has no test metrics; a Bayesian objective is then
            estimated with train_nll.
        state: `Objective.describe` at the end; with `Schedule.validation_epoch` "best" also best_epoch, and
            best_share, its share of the schedule's epochs; and gradient_equivalents: the work of the run so far in
            gradients of one training batch, that of the phases train, adapt, evaluate and select. A step is 1, and so
            is a gradient for strengths by as many images; a product with a curvature matrix is 2, a forward pass 1/3.
        seconds: by phase of the clock, of this process alone.
        series: one row per evaluation: epoch, step, train_seconds, learning_rate, train_nll, val_nll, val_acc and the
            objective's state. Where the run stops between two evaluations, an extra row describes that point.
    """

    status: str
    steps: int
    metrics: dict[str, float]
    state: dict[str, float]
    seconds: dict[str, float]
    series: list[Row]


def fit(
    model: nn.Module,
    split: Split,
    objective: Objective,
    schedule: Schedule,
    *,
    seed: int = 0,
    test: bool = True,
    clock: PhaseClock | None = None,
    on_epoch: OnEpoch | None = None,
    numerics: Numerics | None = None,
    checkpoint: Checkpoint | None = None,
    until: float = 1.0,
    handover: Handover | None = None,
    optimizer: OptimizerFactory | None = None,
) -> FitResult:
    """Train ``model`` in place on ``split.train`` and measure it.

    Args:
        model: on its device; its trained weights are the objective's.
        split: examples, which are moved to the model's device.
        objective: over the model's weights, made for N = the number of training examples.
        schedule: length and speed of training.
        seed: of the order of examples, their augmentation, and the model's own random numbers.
        test: whether to measure the test metrics at the end of a whole run, if there are test examples.
        clock: where seconds are booked; None: a new clock.
        on_epoch: called with each new row of the series; its time is booked nowhere.
        numerics: precision and memory layout of forward and backward passes; None: float32.
        checkpoint: where the run is saved between epochs, and continued from if it is there. None: nowhere.
        until: fraction of the run's epochs, rounded up to whole ones, to train. The learning-rate schedule is the whole
            run's, which ends at `Schedule.stop_after`.
        handover: where an earlier segment of the run is continued from and, with ``until`` before the run's end, this
            one is saved. None: the run starts from the beginning, and is not saved where it stops.
        optimizer: makes the optimizer, given the trained parameters (rho among them) and the learning rate; None: SGD
            with Nesterov momentum. It must have no weight decay. One that averages weights is evaluated by its average.

    Raises:
        ValueError: the objective's N is not the number of training examples, or ``until`` is not above 0 and at most 1.
    """
    if objective.num_examples != len(split.train):
        raise ValueError(f"the objective was made for N = {objective.num_examples}, the split has {len(split.train)}")
    device, test = objective.weights[0].device, test and len(split.test) > 0
    clock, numerics = clock or PhaseClock(device), numerics or Numerics()
    with seeded(seed, device), numerics.backend_flags():
        with clock.phase("setup"):
            moved = _to_device(split, device, test and until >= schedule.stop_after)
            run = TrainingRun(model, moved, objective, schedule, seed, numerics, optimizer, until)
        with clock.phase("warmup"):
            run.warm_up()
        for snapshot in (handover, checkpoint):
            if snapshot is not None:
                snapshot.resume(run, clock)
        series, diverged = _train(run, clock, on_epoch, checkpoint)
        if handover is not None and not run.is_whole and not diverged:
            handover.save(run, clock)
        run.set_optimizer_mode("eval")  # the model keeps the weights that the optimizer evaluates
        metrics, state = _collect_metrics(run, clock, series, test)
    completed = not diverged and all(math.isfinite(value) for value in metrics.values())
    return FitResult(
        "completed" if completed else "diverged", int(series[-1]["step"]), metrics, state, clock.seconds, series
    )


def _to_device(split: Split, device: torch.device, test: bool) -> Split:
    """Return the split on the device; the test examples only where they will be used."""
    validation = None if split.validation is None else split.validation.to(device)
    test_examples = split.test.to(device) if test else split.test
    return Split(split.train.to(device), validation, test_examples, split.transform.to(device))


def _train(
    run: TrainingRun, clock: PhaseClock, on_epoch: OnEpoch | None, checkpoint: Checkpoint | None
) -> tuple[list[Row], bool]:
    """Train from where the run is to its last epoch; return the series, and whether the loss stopped being finite."""
    evaluation_epochs = run.evaluation_epochs()
    with clock.phase("train"):
        for epoch in range(run.steps_done // run.steps_per_epoch + 1, run.last_epoch + 1):
            _train_epoch(run, clock)
            if epoch in evaluation_epochs:
                run.series.append(_evaluate(run, clock, epoch, on_epoch))
                run.nll_sum.zero_()
                run.nll_steps = 0
                if not math.isfinite(run.series[-1]["train_nll"]):
                    return run.series, True
            if checkpoint is not None and checkpoint.is_due():
                checkpoint.save(run, clock)
        if run.last_epoch in evaluation_epochs:
            return run.series, False
        row = _evaluate(run, clock, run.last_epoch, on_epoch)  # not added to the series of a run that continues
    return [*run.series, row], not math.isfinite(row["train_nll"])


def _train_epoch(run: TrainingRun, clock: PhaseClock) -> None:
    run.set_training_mode()
    for batch in run.batches():
        if run.steps_done == run.noisy_steps and all(map(math.isfinite, run.objective.weight_decay().values())):
            run.objective.freeze()  # one that has diverged is noticed at the next evaluation
        run.nll_sum += run.step(batch)
        run.nll_steps += 1
        if run.objective.should_adapt(run.steps_done):
            with clock.phase("adapt"):
                run.objective.adapt(run)


def _evaluate(run: TrainingRun, clock: PhaseClock, epoch: int, on_epoch: OnEpoch | None) -> Row:
    """Return a row of the series, after calling ``on_epoch`` with it. Waits for the device."""
    row = {"epoch": epoch, "step": run.steps_done, "train_seconds": run.earlier_seconds + clock.read("train")}
    row |= {"learning_rate": run.last_rate, "train_nll": float(run.nll_sum) / run.nll_steps}
    with clock.phase("monitor"), run.evaluation_mode():
        row |= run.objective.describe()
        if run.split.validation is not None:
            is_needed = epoch == run.last_epoch or run.schedule.validation_epoch == "best"
            with clock.phase("evaluate" if is_needed else "monitor"):
                row["val_nll"], row["val_acc"] = run.evaluate(run.split.validation)
    if on_epoch is not None:
        with clock.paused():
            on_epoch(dict(row))
    return row


def _collect_metrics(
    run: TrainingRun, clock: PhaseClock, series: list[Row], test: bool
) -> tuple[dict[str, float], dict[str, float]]:
    is_best = run.schedule.validation_epoch == "best"
    finite = [row for row in series if is_best and math.isfinite(row.get("val_nll", math.nan))]
    judged = min(finite, key=lambda row: row["val_nll"], default=series[-1])
    metrics = {"train_nll": series[-1]["train_nll"]}
    metrics |= {name: judged[name] for name in ("val_nll", "val_acc") if name in judged}
    objective, whole = run.objective, run.is_whole
    if run.split.validation is not None:
        run.count_work(len(run.split.validation), FORWARD * (len(series) if is_best else 1))
    if whole and run.schedule.final_batchnorm == "mean":
        with clock.phase("select"):
            run.update_batchnorm()
    with clock.phase("monitor"):
        state = objective.describe()
    if finite:
        state |= {"best_epoch": judged["epoch"], "best_share": judged["epoch"] / run.epochs}
    if whole and test:
        with clock.phase("test"):
            metrics |= classification_metrics(run.predict_test_logits(), run.split.test, "test")
    if objective.is_bayesian:
        nll = metrics["train_nll"]
        if whole:
            with clock.phase("select"):
                nll = metrics["nll_under_q"] = run.nll_under_posterior()
        metrics["objective"] = nll + state["regularizer"]
        if whole and test and run.schedule.predictive_draws:
            with clock.phase("predictive"):
                metrics |= classification_metrics(run.posterior_predictive(), run.split.test, "predictive")
    elif whole and type(objective).selection_metrics is not Objective.selection_metrics:  # MAP's takes no time
        with clock.phase("select"):
            metrics |= objective.selection_metrics(run)
    return metrics, state | {"gradient_equivalents": run.gradient_equivalents}
