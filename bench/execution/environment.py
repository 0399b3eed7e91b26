"""What a trial or a measurement ran on, and with what."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bench.utils.text import single_line

__all__ = ["hardware", "versions"]


OWN = ("deelbo", "torch", "torchvision", "numpy", "scikit-learn", "ray", "mlflow")
OF_METHODS = ("curvlinops-for-pytorch", "laplace-torch", "optuna", "prodigyopt", "schedulefree")
"""Where they are installed: the extra `methods`."""


def hardware(device: torch.device) -> dict[str, Any]:
    """What the trial ran on: plain values, the texts short and of one line, as a record may hold them.

    ``repeatable`` says whether the trial run again gives the same metrics to the bit: true on a CPU, where the same
    seed, machine, threads and versions do; false on a GPU, some of whose sums are taken in any order, so that it is
    not promised there.
    """
    facts: dict[str, Any] = {"device": device.type, "node": single_line(platform.node(), 100), "cpu": _cpu_model()}
    facts |= {"threads": torch.get_num_threads(), "repeatable": device.type == "cpu"}
    if device.type == "cuda":
        facts["gpu"] = single_line(torch.cuda.get_device_name(device), 100)
        facts["gpu_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    return facts


def versions() -> dict[str, str]:
    """Versions of everything that touches a result."""
    found = {"python": platform.python_version()}
    for name in (*OWN, *OF_METHODS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":", 1)[1] for line in file if line.startswith("model name"))
    except (OSError, ValueError, StopIteration):
        model = platform.processor() or platform.machine()
    return single_line(model, 100)
