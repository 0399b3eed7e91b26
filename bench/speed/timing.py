"""Time steps side by side."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Times = dict[str, list[float]]
Step = Callable[[], object]


def measure_rounds(steps: dict[str, Step], rounds: int, count: int, device: torch.device) -> Times:
    """Return mean seconds per step, one number per round of ``count`` steps; the first round is not counted.

    Every round times each variant in turn, in alternating order, so that other work on the machine affects all alike.
    """
    times: Times = {name: [] for name in steps}
    for step in steps.values():
        seconds_per_step(step, count, device)
    for turn in range(rounds):
        for name in list(steps) if turn % 2 == 0 else list(reversed(steps)):
            times[name].append(seconds_per_step(steps[name], count, device))
    return times


def seconds_per_step(step: Step, count: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / count


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_and_range(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def milliseconds(times: Times) -> dict[str, dict[str, float]]:
    return {name: median_and_range([1000 * value for value in values]) for name, values in times.items()}


def ratios(times: Times, name: str, base: str) -> dict[str, float]:
    """Return the median and range over rounds of one variant's time over another's in the same round."""
    return median_and_range([value / other for value, other in zip(times[name], times[base], strict=True)])
