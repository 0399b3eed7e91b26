"""What a training step of each method and prior costs, side by side. Needs deelbo alone."""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.guard import BOUNDS, deviation
from bench.naive import NaiveRun
from deelbo.backbones import build_backbone, split_at_head
from deelbo.learned_l2 import make_groups
from deelbo.numerics import Numerics
from deelbo.objectives import MAP, DataEmphasizedELBO, Objective
from deelbo.priors import GaussianPrior, LowRank
from deelbo.run import Run, Schedule
from deelbo.tasks import Split
from deelbo.tasks.images import Geometry, Images, Normalisation
from deelbo.vectors import flatten

__all__ = ["Setting", "measure", "write"]

METHODS = ("map", "de-elbo")
RANK = 5
CLASSES = 10
PROFILED = 5


@dataclass(frozen=True)
class Setting:
    """What is timed, and how.

    Attributes:
        backbone, batch, size: the network, images a step, and the side of what it sees.
        channels: of the images.
        stored: side of the images in memory: they are brought to 8/7 of ``size``, cropped at random and flipped, as
            CIFAR-10's; None keeps them at ``size``, moved by one pixel, as the digits.
        priors: which of l2-zero, l2-sp, ptyl.
        rounds, steps: rounds of measurement, and steps of each variant in a round.
        naive_steps: steps of the baseline in a round; 0 leaves it out.
        workers: of the baseline's loader.
        profile: whether to say where the device's time goes.
    """

    backbone: str = "digits-resnet"
    batch: int = 50
    size: int = 16
    channels: int = 1
    stored: int | None = None
    priors: tuple[str, ...] = ("l2-zero", "l2-sp", "ptyl")
    rounds: int = 20
    steps: int = 20
    naive_steps: int = 0
    workers: int = 0
    threads: int = 1
    profile: bool = False
    numerics: Numerics = field(default_factory=Numerics)


def measure(setting: Setting, device: torch.device) -> dict[str, Any]:
    """Milliseconds a step of MAP and DE ELBo with each prior, their ratio, and the naive baseline beside them.

    Every round times some steps of each variant, one variant after the other, so that what else the machine does hits
    all alike; a ratio is the median over rounds of the two times of one round. The steps are those that `deelbo.fit`
    trains with, on synthetic images, augmentation included. Before anything is timed the fast path's loss and gradients
    are compared with the plain float32 path.

    Raises:
        ValueError: the fast path deviates by more than its precision explains.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        with setting.numerics.switched_on():
            return _measure(setting, device)
    finally:
        torch.set_num_threads(before)


def _measure(setting: Setting, device: torch.device) -> dict[str, Any]:
    found = _guarded(setting, device)
    names = [f"{method} {prior}" for prior in setting.priors for method in METHODS]
    memory = {name: _peak_gib(setting, name, device) for name in names} if device.type == "cuda" else {}
    runs = {name: _run(setting, name, device) for name in names}
    weights = next(iter(runs.values())).objective.dim
    variants: dict[str, tuple[Callable[[int], object], int]] = {
        name: (_stepper(run), setting.steps) for name, run in runs.items()
    }
    if setting.naive_steps:
        for method in METHODS:
            naive = _naive(setting, method, device)
            variants[f"naive {method} l2-sp"] = (_repeated(naive.step), setting.naive_steps)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for take, steps in variants.values():
        _timed(take, steps, device)
    for turn in range(setting.rounds):
        for name in list(variants) if turn % 2 == 0 else list(reversed(variants)):
            times[name].append(_timed(*variants[name], device))
    result = {
        "environment": _environment(device, setting.threads),
        "setting": asdict(setting),
        "backbone": setting.backbone,
        "weights": weights,
        "deviation_from_plain": asdict(found),
        "milliseconds_a_step": {name: _spread([1000 * value for value in values]) for name, values in times.items()},
        "images_a_second": {name: setting.batch / statistics.median(values) for name, values in times.items()},
        "de_elbo_over_map": {
            prior: _ratio(times[f"de-elbo {prior}"], times[f"map {prior}"]) for prior in setting.priors
        },
    }
    if setting.naive_steps and "l2-sp" in setting.priors:
        result["naive_over_fast"] = {
            method: _ratio(times[f"naive {method} l2-sp"], times[f"{method} l2-sp"]) for method in METHODS
        }
    if memory:
        result["peak_memory_gib"] = memory
        result["de_elbo_over_map_memory"] = {
            prior: memory[f"de-elbo {prior}"] / memory[f"map {prior}"] for prior in setting.priors
        }
    if setting.profile:
        result["profile"] = {name: _profile(run, device) for name, run in runs.items()}
    return result


def write(result: dict[str, Any], out: Path | None) -> None:
    """As JSON to a file, to a folder under a name that says what was measured on what, or to the terminal."""
    text = json.dumps(result, indent=1)
    if out is None:
        print(text)
        return
    if out.is_dir():
        out = out / f"{_name(result)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    print(out)


def _name(result: dict[str, Any]) -> str:
    environment, setting = result["environment"], result["setting"]
    machine = re.sub(r"[^a-z0-9]+", "-", str(environment.get("gpu") or environment["cpu"]).lower()).strip("-")
    numerics = setting["numerics"]
    words = [machine, setting["backbone"], f"{setting['size']}px", f"batch{setting['batch']}", numerics["precision"]]
    return "_".join([*words, *[word for word in ("channels_last", "compile") if numerics[word]]])


def _guarded(setting: Setting, device: torch.device) -> Any:
    split = _split(setting, device)
    model, head = build_backbone(setting.backbone, CLASSES, image_size=setting.size)
    random = torch.Generator().manual_seed(0)
    pixels = split.geometry.training(split.train.pixels, split.geometry.draw(setting.batch, random).to(device))
    x = split.normalisation(pixels)
    found = deviation(model.to(device), head, x, split.train.labels, setting.batch, setting.numerics)
    bound = BOUNDS[setting.numerics.precision]
    if not found.within(bound):
        raise ValueError(
            f"the fast path of {setting.backbone} deviates from plain float32 by {found}, more than {bound} allows: "
            "its speed would mean nothing; try --precision float32"
        )
    return found


def _split(setting: Setting, device: torch.device) -> Split:
    random = torch.Generator().manual_seed(0)
    side = setting.stored or setting.size
    shape = (setting.batch, setting.channels, side, side)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    images = Images(pixels, torch.randint(0, CLASSES, (setting.batch,), generator=random), CLASSES).to(device)
    geometry = Geometry(setting.size, setting.size, pad=1)
    if setting.stored:
        geometry = Geometry(round(setting.size * 8 / 7), setting.size, flip=True)
    return Split(images, None, images, Normalisation.of(images), geometry)


def _run(setting: Setting, name: str, device: torch.device) -> Run:
    method, prior = name.split(" ")
    model, head = build_backbone(setting.backbone, CLASSES, image_size=setting.size)
    model.to(device)
    chosen: str | GaussianPrior = prior
    if prior == "ptyl":
        mean = flatten(split_at_head(model, head)[0])
        random = torch.Generator(device).manual_seed(0)
        factor = torch.randn(len(mean), RANK, generator=random, device=device).mul_(0.01)
        chosen = LowRank(mean, torch.full_like(mean, 1e-4), factor)
    groups = make_groups(model, head, chosen)
    objective: Objective
    if method == "map":
        objective = MAP(groups, setting.batch, {"backbone": 1e-3, "head": 1e-3})
    else:
        objective = DataEmphasizedELBO(groups, setting.batch)
    schedule = Schedule(0.001, steps=10**6, batch_size=setting.batch)
    return Run(model.train(), _split(setting, device), objective, schedule, 0, setting.numerics)


def _naive(setting: Setting, method: str, device: torch.device) -> NaiveRun:
    model, head = build_backbone(setting.backbone, CLASSES, image_size=setting.size)
    split = _split(setting, torch.device("cpu"))
    images = split.train.take(torch.arange(setting.batch).repeat(20))  # epochs of 20 steps, so that workers stay up
    split = Split(images, None, images, split.normalisation, split.geometry)
    return NaiveRun(model.to(device), head, split, method, setting.batch, setting.workers)


def _stepper(run: Run) -> Callable[[int], object]:
    def take(steps: int) -> None:
        for _ in range(steps):
            run.step(run.batches()[0])

    return take


def _repeated(step: Callable[[], object]) -> Callable[[int], object]:
    def take(steps: int) -> None:
        for _ in range(steps):
            step()

    return take


def _timed(take: Callable[[int], object], steps: int, device: torch.device) -> float:
    """Mean seconds of a step."""
    _synchronise(device)
    since = time.perf_counter()
    take(steps)
    _synchronise(device)
    return (time.perf_counter() - since) / steps


def _peak_gib(setting: Setting, name: str, device: torch.device) -> float:
    """Most memory that a run alone on the device has allocated at one time."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    alone = torch.cuda.memory_allocated(device)
    take = _stepper(_run(setting, name, device))
    torch.cuda.reset_peak_memory_stats(device)  # what building the prior took is over before training
    take(3)
    return float(torch.cuda.max_memory_allocated(device) - alone) / 2**30


def _profile(run: Run, device: torch.device) -> list[dict[str, Any]]:
    """The operations that take most of the device's time, in milliseconds a step."""
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    take = _stepper(run)
    with torch.profiler.profile(activities=activities) as profiler:
        take(PROFILED)
        _synchronise(device)

    def own(event: Any) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total)

    events = sorted(profiler.key_averages(), key=own, reverse=True)
    return [
        {"operation": event.key[:100], "milliseconds": own(event) / 1000 / PROFILED, "calls": event.count / PROFILED}
        for event in events[:25]
        if own(event) > 0
    ]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    return _spread([a / b for a, b in zip(above, below, strict=True)])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _environment(device: torch.device, threads: int) -> dict[str, Any]:
    from bench.execute import hardware, versions

    facts = hardware(device) | {"threads": threads, "platform": platform.platform(), "versions": versions()}
    del facts["node"]  # results are shared, names of machines are not
    if device.type == "cuda":
        facts["cudnn"], facts["cuda"] = torch.backends.cudnn.version(), torch.version.cuda
    return facts
