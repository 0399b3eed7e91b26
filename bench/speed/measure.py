"""Measure the time of a training step of each method and prior, side by side. Needs deelbo only."""

import gc
import json
import platform
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.execution.environment import hardware, versions
from bench.speed.equivalence import BOUNDS, Deviation, measure_deviation
from bench.speed.workloads import CLASSES, METHODS, Setting, baseline_run, fast_run, make_split
from deelbo.pretrained.backbones import build_backbone
from deelbo.training.run import TrainingRun

PROFILED_STEPS = 5
BASELINE_ROUNDS = 2
Times = dict[str, list[float]]


def measure(setting: Setting, device: torch.device) -> dict[str, Any]:
    """Measure milliseconds per step of MAP and DE ELBo with each prior, their ratio, and a plain PyTorch baseline.

    Every round times some steps of each variant in turn, so that other work on the machine affects all alike; a ratio
    is the median over rounds of the ratios within a round. The steps are those of `deelbo.fit`, on synthetic images.
    First of all, loss and gradients of the fast path are compared with a plain float32 path.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        with setting.numerics.backend_flags():
            deviation = _check_fast_path(setting, device)
            names = [f"{method} {prior}" for prior in setting.priors for method in METHODS]
            memory = {name: _peak_gib(setting, name, device) for name in names} if device.type == "cuda" else {}
            runs = {name: fast_run(setting, name, device) for name in names}
            times = _measure_rounds(runs, setting, device)
        result = _summary(setting, device, deviation, next(iter(runs.values())).objective.dim, times, memory)
        if setting.naive_steps:
            result |= _or_error("naive", lambda: _measure_baseline(setting, runs, device))
        if setting.profile:
            with setting.numerics.backend_flags():
                result |= _or_error("profile", lambda: {n: _profile(run, device) for n, run in runs.items()})
        return result
    finally:
        torch.set_num_threads(before)


def write(result: dict[str, Any], out: Path | None) -> None:
    """Write the result as JSON to a .json file, to a folder under a name of its own, or to the terminal."""
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


def _check_fast_path(setting: Setting, device: torch.device) -> Deviation:
    split = make_split(setting, device)
    model, head = build_backbone(setting.backbone, CLASSES, image_size=setting.size)
    random = torch.Generator().manual_seed(0)
    pixels = split.geometry.training(split.train.pixels, split.geometry.draw(setting.batch, random).to(device))
    x = split.normalization(pixels)
    deviation = measure_deviation(model.to(device), head, x, split.train.labels, setting.batch, setting.numerics)
    if excess := deviation.exceeds(BOUNDS[setting.numerics.precision]):
        remedy = "a larger --batch or --size" + ("" if setting.numerics.precision == "float32" else ", or float32")
        raise ValueError(
            f"the fast path of {setting.backbone} deviates from plain float32 in {', '.join(excess)}: its speed would "
            f"mean nothing; try {remedy}"
        )
    return deviation


def _measure_rounds(runs: dict[str, TrainingRun], setting: Setting, device: torch.device) -> Times:
    """Return mean seconds per step, one number per round; the first round is not counted."""
    times: Times = {name: [] for name in runs}
    for run in runs.values():
        _seconds_per_step(_step_of(run), setting.steps, device)
    for turn in range(setting.rounds):
        for name in list(runs) if turn % 2 == 0 else list(reversed(runs)):
            times[name].append(_seconds_per_step(_step_of(runs[name]), setting.steps, device))
    return times


def _measure_baseline(setting: Setting, runs: dict[str, TrainingRun], device: torch.device) -> dict[str, Any]:
    """Measure the baseline under torch's default flags, and the fast run beside it in every round."""
    times: Times = defaultdict(list)
    ratios: Times = defaultdict(list)
    for method in METHODS:
        run, baseline = runs.get(f"{method} l2-sp"), baseline_run(setting, method, device)
        for _ in range(BASELINE_ROUNDS):
            for _ in range(max(2 * setting.workers, 1)):  # prefetched batches would hide half of the work
                baseline.step()
            seconds = _seconds_per_step(baseline.step, setting.naive_steps, device)
            times[method].append(seconds)
            if run is not None:
                with setting.numerics.backend_flags():
                    fast = _seconds_per_step(_step_of(run), setting.steps, device)
                ratios[method].append(seconds / fast)
        baseline.close()
    return _rates(times, setting) | {"over_fast": {method: _spread(values) for method, values in ratios.items()}}


def _summary(
    setting: Setting, device: torch.device, deviation: Deviation, weights: int, times: Times, memory: dict[str, float]
) -> dict[str, Any]:
    pairs = {prior: zip(times[f"de-elbo {prior}"], times[f"map {prior}"], strict=True) for prior in setting.priors}
    result = {
        "environment": _environment(device, setting.threads),
        "setting": asdict(setting),
        "backbone": setting.backbone,
        "weights": weights,
        "deviation_from_plain": asdict(deviation),
        **_rates(times, setting),
        "de_elbo_over_map": {prior: _spread([elbo / map_ for elbo, map_ in pairs[prior]]) for prior in pairs},
    }
    if memory:
        shares = {prior: memory[f"de-elbo {prior}"] / memory[f"map {prior}"] for prior in setting.priors}
        result |= {"peak_memory_gib": memory, "de_elbo_over_map_memory": shares}
    return result


def _rates(times: Times, setting: Setting) -> dict[str, Any]:
    return {
        "milliseconds_a_step": {name: _spread([1000 * value for value in values]) for name, values in times.items()},
        "images_a_second": {name: setting.batch / statistics.median(values) for name, values in times.items()},
    }


def _or_error(name: str, part: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {name: part()}
    except Exception as error:
        return {name: {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}}


def _step_of(run: TrainingRun) -> Callable[[], object]:
    return lambda: run.step(run.batches()[0])


def _seconds_per_step(step: Callable[[], object], steps: int, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _synchronize(device)
    return (time.perf_counter() - start) / steps


def _peak_gib(setting: Setting, name: str, device: torch.device) -> float:
    """Return the peak memory of training, with this run alone on the device, without the first step."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    run = fast_run(setting, name, device)
    _step_of(run)()
    _synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        _step_of(run)()
    return float(torch.cuda.max_memory_allocated(device) - before) / 2**30


def _profile(run: TrainingRun, device: torch.device) -> list[dict[str, Any]]:
    """Return what takes most time, in milliseconds per step: kernels on a GPU, operations on a CPU."""
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as profiler:
        _seconds_per_step(_step_of(run), PROFILED_STEPS, device)

    def own_time(event: Any) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total)

    rows = []
    for event in sorted(profiler.key_averages(), key=own_time, reverse=True):
        # on a GPU the rows of operations and of annotations repeat the time of their kernels
        if own_time(event) > 0 and (event.device_type.name == "CUDA") == cuda and not event.is_user_annotation:
            milliseconds, calls = own_time(event) / 1000 / PROFILED_STEPS, event.count / PROFILED_STEPS
            rows.append({"operation": event.key[:100], "milliseconds": milliseconds, "calls": calls})
    return rows[:25]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _environment(device: torch.device, threads: int) -> dict[str, Any]:
    facts = hardware(device) | {"threads": threads, "platform": platform.platform(), "versions": versions()}
    del facts["node"]  # results are published, names of machines are not
    if device.type == "cuda":
        facts["cudnn"], facts["cuda"] = torch.backends.cudnn.version(), torch.version.cuda
    return facts
