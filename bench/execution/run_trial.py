"""Run one trial: train what a `TrialSpec` describes, and return its `TrialRecord`. Ray is not involved."""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from bench.execution.environment import hardware, versions
from bench.execution.objectives import make_objective
from bench.execution.optimizers import make_optimizer
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from deelbo.data import Source, TextSource, load_task
from deelbo.data.examples import Transform
from deelbo.data.images import ImageTransform
from deelbo.groups import find_module
from deelbo.plugins import Plugin
from deelbo.pretrained.backbones import build_backbone
from deelbo.pretrained.embedded import Pretrained
from deelbo.pretrained.registry import BackboneSource, find_backbone
from deelbo.saved_model import SavedModel
from deelbo.training.checkpoint import Checkpoint, Handover
from deelbo.training.clock import PhaseClock
from deelbo.training.fit import FitResult, fit
from deelbo.training.numerics import Numerics
from deelbo.training.schedule import Schedule

Series = list[dict[str, float]]


@dataclass(frozen=True)
class TrialContext:
    """The circumstances of a trial, beside what its spec determines.

    Without a handover, which loads the end of the segment before, it trains from the start of the run. ``keep`` takes
    the model of a trial that was tested, with its record as metadata, outside of all seconds.
    """

    device: torch.device
    concurrency: int = 1
    attempt: int = 1
    data: str | None = None
    verify_data: bool = True
    timed: bool = True
    lost_seconds: float = 0.0
    checkpoint: Checkpoint | None = None
    handover: Handover | None = None
    source: Source | None = None
    plugins: tuple[Plugin, ...] = ()
    network: BackboneSource | None = None
    keep: Callable[[SavedModel], object] | None = None


def run_trial(spec: TrialSpec, pretrained: Pretrained, context: TrialContext) -> tuple[TrialRecord, Series]:
    """Return the record of one trial, with the traceback if it failed, and the series of evaluations.

    ``resumed_seconds`` in the state of a resumed trial were spent by processes that died, and are not lost.
    """
    started, start = time.time(), time.perf_counter()
    clock = PhaseClock(context.device)
    values: dict[str, Any] = {"metrics": {}, "state": {}}
    fingerprints: dict[str, str] = {}
    series: Series = []
    model: SavedModel | None = None
    try:
        result, model = _train(spec, pretrained, context, clock, fingerprints)
        series = result.series
        values = {"status": result.status, "metrics": result.metrics, "state": result.state}
        if context.device.type == "cuda":
            values["state"]["peak_device_gib"] = torch.cuda.max_memory_allocated(context.device) / 2**30
    except Exception as error:
        values |= {"status": "failed", "error": traceback.format_exc() + _memory_advice(error, spec, context.device)}
    seconds = clock.seconds | {"total": time.perf_counter() - start}
    lost_seconds, checkpoint = context.lost_seconds, context.checkpoint
    if spec.since > 0:  # 0: the segment before was lost, and trained again
        resumed_at = None if context.handover is None else context.handover.resumed_at_step
        values["state"]["handed_over_at_step"] = resumed_at or 0
    if checkpoint is not None and checkpoint.resumed_at_step is not None:
        values["state"]["resumed_at_step"] = checkpoint.resumed_at_step
        values["state"]["resumed_seconds"] = checkpoint.resumed_seconds
        seconds["total"] += checkpoint.resumed_seconds
        lost_seconds = max(lost_seconds - checkpoint.resumed_seconds, 0.0)
    record = TrialRecord(
        spec=spec,
        seconds=seconds,
        started=started,
        finished=time.time(),
        attempt=context.attempt,
        concurrency=context.concurrency,
        hardware=hardware(context.device),
        versions=versions(context.plugins) | {"pretrained": pretrained.fingerprint_for(spec.prior)} | fingerprints,
        lost_seconds=lost_seconds,
        timed=context.timed,
        **values,
    )
    if context.keep is not None and model is not None and record.status == "completed" and spec.is_tested:
        context.keep(replace(model, metadata={**model.metadata, "record": json.loads(record.to_json())}))
    return record, series


def _train(
    spec: TrialSpec, pretrained: Pretrained, context: TrialContext, clock: PhaseClock, fingerprints: dict[str, str]
) -> tuple[FitResult, SavedModel]:
    """Set a trial up and train its model; add the hash of the images to ``fingerprints`` as soon as it is known."""
    device = context.device
    if device.type == "cuda":
        torch.cuda.init()  # without it the next line raises
        torch.cuda.reset_peak_memory_stats(device)
    with clock.phase("setup"):
        optimizer = make_optimizer(spec.optimizer)
        network = context.network or BackboneSource(spec.backbone)
        source = network.tokenize(context.source)
        task = load_task(spec.dataset, context.data, spec.image_size, context.verify_data, source)
        fingerprints["data"] = task.fingerprint
        split = task.split(spec.n, spec.seed, validation=spec.stage == "tune")
        split = replace(split, transform=fit_to_network(split.transform, network))
        model, head = make_model(spec, pretrained, task.pool.num_classes, device, network.model)
        objective = make_objective(spec, model, head, pretrained, len(split.train))
    schedule = Schedule(**{field.name: getattr(spec, field.name) for field in fields(Schedule)})
    if spec.compile:
        torch.compiler.reset()  # the graphs of earlier trials would count against its limit, and warm it up
    numerics = Numerics(spec.precision, spec.channels_last, spec.compile)
    result = fit(
        model,
        split,
        objective,
        schedule,
        seed=spec.seed,
        test=spec.stage != "tune",
        clock=clock,
        numerics=numerics,
        checkpoint=context.checkpoint,
        until=spec.until,
        handover=context.handover,
        optimizer=optimizer,
    )
    inputs = split.train.inputs
    trained = SavedModel(
        model,
        split.transform,
        task.class_names,
        network.model,
        head,
        spec.image_size,
        tuple(inputs.shape[1:]),
        str(inputs.dtype).removeprefix("torch."),
        replace(numerics, compile=False),
        {"text": {"columns": source.text, "max_length": source.max_length}} if isinstance(source, TextSource) else {},
    )
    return result, trained


def fit_to_network(transform: Transform, network: BackboneSource) -> Transform:
    """Return the transform with the network's own normalization of images, if it has one."""
    entry = find_backbone(network.model)
    mean, std = network.mean or entry.mean, network.std or entry.std
    if mean is None or std is None or not isinstance(transform, ImageTransform):
        return transform
    return transform.normalized_by(mean, std)


def make_model(
    spec: TrialSpec, pretrained: Pretrained, num_classes: int, device: torch.device, network: str | None = None
) -> tuple[nn.Module, str]:
    """Return the network with the initial weights of its prior, and the name of its head.

    All weights are frozen but the head's if the trial trains that alone.

    ``network`` is its name for `deelbo.pretrained.registry.find_backbone`; None: that of the backbone.
    """
    weights = pretrained.swag_weights if spec.prior == "ptyl" else pretrained.weights
    if weights is None:
        raise ValueError(f"prior ptyl needs backbones.{spec.backbone}.ptyl: its mean, variance and factor")
    name = network or spec.backbone
    model, head = build_backbone(name, num_classes, weights or None, spec.seed, spec.head, spec.image_size)
    if spec.train == "head":
        model.requires_grad_(False)
        find_module(model, head).requires_grad_(True)
    return model.to(device), head


def _memory_advice(error: Exception, spec: TrialSpec, device: torch.device) -> str:
    """Return a last line for the traceback if memory was too small: what did not fit, and what to lower."""
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
        return ""
    facts = hardware(device)
    memory = f"{facts['gpu']} ({facts['gpu_gib']} GiB)" if "gpu" in facts else "the memory of this machine"
    size = "" if spec.image_size is None else f", training.image_size = {spec.image_size}"
    half = "" if spec.precision == "bf16" else ", or set training.precision to bf16"
    return (
        f"out of memory: {spec.backbone} with training.batch_size = {spec.batch_size}{size} does not fit "
        f"{memory}: lower training.batch_size or training.image_size{half}\n"
    )
