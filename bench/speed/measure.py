"""What a training step of each method and prior costs, side by side. Needs deelbo alone."""

from __future__ import annotations

import gc
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.execution.environment import hardware, versions
from bench.speed.equivalence import BOUNDS, Deviation, deviation
from bench.speed.workloads import CLASSES, METHODS, Setting, fast_run, naive_run, split_of
from deelbo.pretrained.backbones import build_backbone
from deelbo.training.run import TrainingRun

__all__ = ["Setting", "measure", "write"]


PROFILED = 5
NAIVE_ROUNDS = 2
Times = dict[str, list[float]]


def measure(setting: Setting, device: torch.device) -> dict[str, Any]:
    """Milliseconds a step of MAP and DE ELBo with each prior, their ratio, and the naive baseline beside them.

    Every round times some steps of each variant, one variant after the other, so that what else the machine does hits
    all alike; a ratio is the median over rounds of the two times of one round. The steps are those that `deelbo.fit`
    trains with, on synthetic images, augmentation included. Before anything is timed the fast path's loss and gradients
    are compared with the plain float32 path. A part that breaks off after the times were taken (the baseline's loader,
    the profiler) is named in the result, which is kept.

    Raises:
        ValueError: the fast path deviates by more than its precision explains.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        with setting.numerics.switched_on():
            found = _guarded(setting, device)
            names = [f"{method} {prior}" for prior in setting.priors for method in METHODS]
            memory = {name: _peak_gib(setting, name, device) for name in names} if device.type == "cuda" else {}
            runs = {name: fast_run(setting, name, device) for name in names}
            times = _interleaved(runs, setting, device)
        result = _summary(setting, device, found, next(iter(runs.values())).objective.dim, times, memory)
        result |= _tried("naive", lambda: _naive(setting, runs, device)) if setting.naive_steps else {}
        with setting.numerics.switched_on():
            if setting.profile:
                result |= _tried("profile", lambda: {n: _profile(run, device) for n, run in runs.items()})
        return result
    finally:
        torch.set_num_threads(before)


def write(result: dict[str, Any], out: Path | None) -> None:
    """As JSON to a .json file, to a folder under a name that says what was measured on what, or to the terminal."""
    text = json.dumps(result, indent=1)
    if out is None:
        print(text)
        return
    path = out if out.suffix == ".json" else out / f"{_name(result)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    print(path)


def _name(result: dict[str, Any]) -> str:
    environment, setting = result["environment"], result["setting"]
    machine = re.sub(r"[^a-z0-9]+", "-", str(environment.get("gpu") or environment["cpu"]).lower()).strip("-")
    numerics = setting["numerics"]
    words = [machine, setting["backbone"], f"{setting['size']}px", f"batch{setting['batch']}", numerics["precision"]]
    return "_".join([*words, *[word for word in ("channels_last", "compile") if numerics[word]]])


def _guarded(setting: Setting, device: torch.device) -> Deviation:
    split = split_of(setting, device)
    model, head = build_backbone(setting.backbone, CLASSES, image_size=setting.size)
    random = torch.Generator().manual_seed(0)
    pixels = split.geometry.training(split.train.pixels, split.geometry.draw(setting.batch, random).to(device))
    x = split.normalization(pixels)
    found = deviation(model.to(device), head, x, split.train.labels, setting.batch, setting.numerics)
    if beyond := found.beyond(BOUNDS[setting.numerics.precision]):
        try_ = "a larger --batch or --size" + ("" if setting.numerics.precision == "float32" else ", or float32")
        raise ValueError(
            f"the fast path of {setting.backbone} deviates from plain float32 in {', '.join(beyond)}: its speed would "
            f"mean nothing; try {try_}"
        )
    return found


def _interleaved(runs: dict[str, TrainingRun], setting: Setting, device: torch.device) -> Times:
    """Mean seconds of a step, a number a round."""
    times: Times = {name: [] for name in runs}
    for run in runs.values():
        _timed(_stepped(run), setting.steps, device)
    for turn in range(setting.rounds):
        for name in list(runs) if turn % 2 == 0 else list(reversed(runs)):
            times[name].append(_timed(_stepped(runs[name]), setting.steps, device))
    return times


def _naive(setting: Setting, runs: dict[str, TrainingRun], device: torch.device) -> dict[str, Any]:
    """The baseline, under torch's switches as they were found, a fast run timed beside it in every round.

    What its loader had ready is used up before anything is timed, or only half of the work would count.
    """
    times: Times = {}
    ratios: Times = {}
    for method in METHODS:
        run, naive = runs.get(f"{method} l2-sp"), naive_run(setting, method, device)
        for _ in range(NAIVE_ROUNDS):
            for _ in range(max(2 * setting.workers, 1)):
                naive.step()
            seconds = _timed(naive.step, setting.naive_steps, device)
            times.setdefault(method, []).append(seconds)
            if run is not None:
                with setting.numerics.switched_on():
                    fast = _timed(_stepped(run), setting.steps, device)
                ratios.setdefault(method, []).append(seconds / fast)
        naive.close()
    return {
        "milliseconds_a_step": {
            method: _spread([1000 * value for value in values]) for method, values in times.items()
        },
        "images_a_second": {method: setting.batch / statistics.median(values) for method, values in times.items()},
        "over_fast": {method: _spread(values) for method, values in ratios.items()},
    }


def _summary(
    setting: Setting, device: torch.device, found: Deviation, weights: int, times: Times, memory: dict[str, float]
) -> dict[str, Any]:
    def ratio(prior: str) -> list[float]:
        return [de / map_ for de, map_ in zip(times[f"de-elbo {prior}"], times[f"map {prior}"], strict=True)]

    result = {
        "environment": _environment(device, setting.threads),
        "setting": asdict(setting),
        "backbone": setting.backbone,
        "weights": weights,
        "deviation_from_plain": asdict(found),
        "milliseconds_a_step": {name: _spread([1000 * value for value in values]) for name, values in times.items()},
        "images_a_second": {name: setting.batch / statistics.median(values) for name, values in times.items()},
        "de_elbo_over_map": {prior: _spread(ratio(prior)) for prior in setting.priors},
    }
    if memory:
        shares = {prior: memory[f"de-elbo {prior}"] / memory[f"map {prior}"] for prior in setting.priors}
        result |= {"peak_memory_gib": memory, "de_elbo_over_map_memory": shares}
    return result


def _tried(name: str, part: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {name: part()}
    except (RuntimeError, OSError) as error:
        return {name: {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}}


def _stepped(run: TrainingRun) -> Callable[[], object]:
    return lambda: run.step(run.batches()[0])


def _timed(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Mean seconds of a step."""
    _synchronize(device)
    since = time.perf_counter()
    for _ in range(steps):
        step()
    _synchronize(device)
    return (time.perf_counter() - since) / steps


def _peak_gib(setting: Setting, name: str, device: torch.device) -> float:
    """Most memory that training has allocated at one time, the run alone on the device, first calls left out."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    run = fast_run(setting, name, device)
    _stepped(run)()
    _synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        _stepped(run)()
    return float(torch.cuda.max_memory_allocated(device) - before) / 2**30


def _profile(run: TrainingRun, device: torch.device) -> list[dict[str, Any]]:
    """What takes most time, in milliseconds a step: kernels on a GPU, operations on a CPU."""
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as profiler:
        _timed(_stepped(run), PROFILED, device)

    def own(event: Any) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total)

    # an operation's row repeats its kernels' time
    events = [event for event in profiler.key_averages() if (event.device_type.name == "CUDA") == cuda]
    return [
        {"operation": event.key[:100], "milliseconds": own(event) / 1000 / PROFILED, "calls": event.count / PROFILED}
        for event in sorted(events, key=own, reverse=True)[:25]
        if own(event) > 0
    ]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _environment(device: torch.device, threads: int) -> dict[str, Any]:
    facts = hardware(device) | {"threads": threads, "platform": platform.platform(), "versions": versions()}
    del facts["node"]  # results are shared, names of machines are not
    if device.type == "cuda":
        facts["cudnn"], facts["cuda"] = torch.backends.cudnn.version(), torch.version.cuda
    return facts
