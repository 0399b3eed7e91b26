"""Measure the time of a training step of each method and prior, side by side. Needs deelbo only."""

import gc
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from bench.speed.equivalence import BOUNDS, Deviation, measure_deviation
from bench.speed.result_file import Result, environment
from bench.speed.timing import (
    Step,
    Times,
    measure_rounds,
    median_and_range,
    milliseconds,
    ratios,
    seconds_per_step,
    synchronize,
)
from bench.speed.workloads import CLASSES, METHODS, Setting, baseline_run, fast_run, make_split
from deelbo.pretrained.backbones import build_backbone
from deelbo.training.run import TrainingRun

PROFILED_STEPS = 5
BASELINE_ROUNDS = 2


def measure(setting: Setting, device: torch.device, save: Callable[[Result], object] = lambda _: None) -> Result:
    """Measure milliseconds per step of MAP and DE ELBo with each prior, their ratio, and a plain PyTorch baseline.

    Every round times some steps of each variant in turn, so that other work on the machine affects all alike; a ratio
    is the median over rounds of the ratios within a round. The steps are those of `deelbo.fit`, on synthetic images.
    First of all, loss and gradients of the fast path are compared with a plain float32 path. ``save`` is called with
    the result before the baseline, and again after each part that may hang or fail.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        with setting.numerics.backend_flags():
            deviation = _check_fast_path(setting, device)
            names = [f"{method} {prior}" for prior in setting.priors for method in METHODS]
            memory = {name: _peak_gib(setting, name, device) for name in names} if device.type == "cuda" else {}
            runs = {name: fast_run(setting, name, device) for name in names}
            steps = {name: _step_of(run) for name, run in runs.items()}
            times = measure_rounds(steps, setting.rounds, setting.steps, device)
        result = _summary(setting, device, deviation, next(iter(runs.values())).objective.dim, times, memory)
        save(result)
        if setting.naive_steps:
            result |= _or_error("naive", lambda: _measure_baseline(setting, runs, device))
            save(result)
        if setting.profile:
            with setting.numerics.backend_flags():
                result |= _or_error("profile", lambda: {n: _profile(run, device) for n, run in runs.items()})
            save(result)
        return result
    finally:
        torch.set_num_threads(before)


def _check_fast_path(setting: Setting, device: torch.device) -> Deviation:
    split = make_split(setting, device)
    model, head = build_backbone(setting.backbone, CLASSES, image_size=setting.size)
    random = torch.Generator().manual_seed(0)
    x = split.transform.training(split.train.inputs, split.transform.draw(setting.batch, random).to(device))
    deviation = measure_deviation(model.to(device), head, x, split.train.labels, setting.batch, setting.numerics)
    if excess := deviation.exceeds(BOUNDS[setting.numerics.precision]):
        remedy = "a larger --batch or --size" + ("" if setting.numerics.precision == "float32" else ", or float32")
        raise ValueError(
            f"the fast path of {setting.backbone} deviates from plain float32 in {', '.join(excess)}: its speed would "
            f"mean nothing; try {remedy}"
        )
    return deviation


def _measure_baseline(setting: Setting, runs: dict[str, TrainingRun], device: torch.device) -> dict[str, Any]:
    """Measure the baseline under torch's default flags, and the fast run beside it in every round."""
    times: Times = defaultdict(list)
    ratios: Times = defaultdict(list)
    for method in METHODS:
        run, baseline = runs.get(f"{method} l2-sp"), baseline_run(setting, method, device)
        for _ in range(BASELINE_ROUNDS):
            for _ in range(max(2 * setting.workers, 1)):  # prefetched batches would hide half of the work
                baseline.step()
            seconds = seconds_per_step(baseline.step, setting.naive_steps, device)
            times[method].append(seconds)
            if run is not None:
                with setting.numerics.backend_flags():
                    fast = seconds_per_step(_step_of(run), setting.steps, device)
                ratios[method].append(seconds / fast)
        baseline.close()
    return _rates(times, setting) | {
        "over_fast": {method: median_and_range(values) for method, values in ratios.items()}
    }


def _summary(
    setting: Setting, device: torch.device, deviation: Deviation, weights: int, times: Times, memory: dict[str, float]
) -> dict[str, Any]:
    result = {
        "environment": environment(device, setting.threads),
        "setting": asdict(setting),
        "backbone": setting.backbone,
        "weights": weights,
        "deviation_from_plain": asdict(deviation),
        **_rates(times, setting),
        "de_elbo_over_map": {prior: ratios(times, f"de-elbo {prior}", f"map {prior}") for prior in setting.priors},
    }
    if memory:
        shares = {prior: memory[f"de-elbo {prior}"] / memory[f"map {prior}"] for prior in setting.priors}
        result |= {"peak_memory_gib": memory, "de_elbo_over_map_memory": shares}
    return result


def _rates(times: Times, setting: Setting) -> dict[str, Any]:
    return {
        "milliseconds_a_step": milliseconds(times),
        "images_a_second": {name: setting.batch / statistics.median(values) for name, values in times.items()},
    }


def _or_error(name: str, part: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {name: part()}
    except Exception as error:
        return {name: {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}}


def _step_of(run: TrainingRun) -> Step:
    return lambda: run.step(run.batches()[0])


def _peak_gib(setting: Setting, name: str, device: torch.device) -> float:
    """Return the peak memory of training, with this run alone on the device, without the first step."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    run = fast_run(setting, name, device)
    _step_of(run)()
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        _step_of(run)()
    return float(torch.cuda.max_memory_allocated(device) - before) / 2**30


def _profile(run: TrainingRun, device: torch.device) -> list[dict[str, Any]]:
    """Return what takes most time, in milliseconds per step: kernels on a GPU, operations on a CPU."""
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as profiler:
        seconds_per_step(_step_of(run), PROFILED_STEPS, device)

    def own_time(event: Any) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total)

    rows = []
    for event in sorted(profiler.key_averages(), key=own_time, reverse=True):
        # on a GPU the rows of operations and of annotations repeat the time of their kernels
        if own_time(event) > 0 and (event.device_type.name == "CUDA") == cuda and not event.is_user_annotation:
            milliseconds, calls = own_time(event) / 1000 / PROFILED_STEPS, event.count / PROFILED_STEPS
            rows.append({"operation": event.key[:100], "milliseconds": milliseconds, "calls": calls})
    return rows[:25]
