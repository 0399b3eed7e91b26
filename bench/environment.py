"""What a trial or a measurement ran on, and with what."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

__all__ = ["hardware", "versions"]


def hardware(device: torch.device) -> dict[str, Any]:
    """What the trial ran on."""
    facts: dict[str, Any] = {"device": device.type, "node": platform.node(), "cpu": _cpu_model()}
    facts["threads"] = torch.get_num_threads()
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["gpu_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    return facts


def versions() -> dict[str, str]:
    """Versions of everything that touches a result."""
    found = {"python": platform.python_version()}
    for name in ("deelbo", "torch", "torchvision", "numpy", "scikit-learn", "ray", "mlflow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
