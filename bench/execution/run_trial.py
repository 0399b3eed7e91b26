"""Runs one trial: a `TrialSpec` through deelbo to a `TrialRecord`. No Ray here."""

from __future__ import annotations

import time
import traceback
from typing import Any

import torch
from torch import nn

from bench.execution.environment import hardware, versions
from bench.execution.objectives import make_objective
from bench.execution.optimizers import make_optimizer
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from deelbo.data import load_task
from deelbo.pretrained.backbones import build_backbone
from deelbo.pretrained.embedded import Pretrained
from deelbo.training.checkpoint import Checkpoint
from deelbo.training.clock import PhaseClock
from deelbo.training.fit import fit
from deelbo.training.handover import Handover
from deelbo.training.numerics import Numerics
from deelbo.training.schedule import Schedule

__all__ = ["run_trial", "start_fingerprint"]


Series = list[dict[str, float]]


def run_trial(
    spec: TrialSpec,
    pretrained: Pretrained,
    device: torch.device,
    concurrency: int = 1,
    attempt: int = 1,
    data: str | None = None,
    verify: bool = True,
    timed: bool = True,
    lost_seconds: float = 0.0,
    checkpoint: Checkpoint | None = None,
    handover: Handover | None = None,
) -> tuple[TrialRecord, Series]:
    """Trains and measures one trial. An error becomes a record of status "failed" with its traceback.

    ``data`` and ``verify`` say where images are read and how far they are checked, as for `deelbo.data.load_task`.
    ``timed`` goes to the record, and so does ``lost_seconds``, what earlier attempts ran. ``checkpoint``, this trial's
    own, is where it is kept on the way. ``handover``, of a trial that trains a part of a run, is where the part before
    left the run, and where this one leaves it; without it the trial trains all of the run until where it stops. A trial
    that went on from one has in its state ``resumed_at_step``, and
    ``resumed_seconds``: how many of its seconds, those in ``total`` too, are of processes that died, and so not lost.
    """
    started, since = time.time(), time.perf_counter()
    clock = PhaseClock(device)
    values: dict[str, Any] = {"metrics": {}, "state": {}}
    seen: dict[str, str] = {}
    series: Series = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with clock.phase("setup"):
            optimizer = make_optimizer(spec.optimizer)
            task = load_task(spec.dataset, data, spec.image_size, verify)
            seen["data"] = task.fingerprint
            split = task.split(spec.n, spec.seed, validation=spec.stage == "tune")
            model, head = make_model(spec, pretrained, task.pool.num_classes, device)
            objective = make_objective(spec, model, head, pretrained, len(split.train))
        schedule = Schedule(
            spec.learning_rate,
            spec.steps,
            spec.batch_size,
            spec.momentum,
            spec.clip_norm,
            spec.posterior_passes,
            spec.series_points,
        )
        numerics = Numerics(spec.precision, spec.channels_last, spec.compile)
        if spec.compile:
            torch.compiler.reset()  # a trial's graphs are its own: they count in its warm-up, and never run out
        test = spec.stage != "tune"
        result = fit(
            model,
            split,
            objective,
            schedule,
            seed=spec.seed,
            test=test,
            clock=clock,
            numerics=numerics,
            checkpoint=checkpoint,
            until=spec.until,
            handover=handover,
            optimizer=optimizer,
        )
        series = result.series
        values = {"status": result.status, "metrics": result.metrics, "state": result.state}
        if device.type == "cuda":
            values["state"]["peak_device_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    except Exception as error:
        values |= {"status": "failed", "error": traceback.format_exc()}
        if _is_out_of_memory(error):
            values["error"] += _out_of_memory(spec, device)
    if spec.since > 0 and "status" in values:
        taken_up = None if handover is None else handover.resumed_at_step
        values["state"]["handed_over_at_step"] = taken_up or 0  # 0: the part before was lost, and trained once more
    seconds = clock.seconds | {"total": time.perf_counter() - since}
    if checkpoint is not None and checkpoint.resumed_at_step is not None:
        values["state"]["resumed_at_step"] = checkpoint.resumed_at_step
        values["state"]["resumed_seconds"] = checkpoint.resumed_seconds
        seconds["total"] += checkpoint.resumed_seconds
        lost_seconds = max(lost_seconds - checkpoint.resumed_seconds, 0.0)  # those came to something
    record = TrialRecord(
        spec=spec,
        seconds=seconds,
        started=started,
        finished=time.time(),
        attempt=attempt,
        concurrency=concurrency,
        hardware=hardware(device),
        versions=versions() | {"pretrained": start_fingerprint(spec.prior, pretrained)} | seen,
        lost_seconds=lost_seconds,
        timed=timed,
        **values,
    )
    return record, series


def start_fingerprint(prior: str, pretrained: Pretrained) -> str:
    """A hash of what a run with that prior starts from."""
    return pretrained.fingerprint if prior == "ptyl" else pretrained.weights_fingerprint


def make_model(
    spec: TrialSpec, pretrained: Pretrained, num_classes: int, device: torch.device
) -> tuple[nn.Module, str]:
    """The network where its prior says that training starts, and the name of its head."""
    weights = pretrained.swag_weights if spec.prior == "ptyl" else pretrained.weights
    if weights is None:
        raise ValueError(f"prior ptyl needs backbones.{spec.backbone}.ptyl: its mean, variance and factor")
    model, head = build_backbone(spec.backbone, num_classes, weights, spec.seed, spec.head, spec.image_size)
    return model.to(device), head


def _is_out_of_memory(error: Exception) -> bool:
    """Torch has a type of its own for a GPU's memory only."""
    words = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in words


def _out_of_memory(spec: TrialSpec, device: torch.device) -> str:
    """A last line for the traceback: what was asked for, and what to lower."""
    facts = hardware(device)
    there = f"{facts['gpu']} ({facts['gpu_gib']} GiB)" if "gpu" in facts else "the memory of this machine"
    size = "" if spec.image_size is None else f", training.image_size = {spec.image_size}"
    half = "" if spec.precision == "bf16" else ", or set training.precision to bf16"
    return (
        f"out of memory: {spec.backbone} with training.batch_size = {spec.batch_size}{size} does not fit "
        f"{there}: lower training.batch_size or training.image_size{half}\n"
    )
