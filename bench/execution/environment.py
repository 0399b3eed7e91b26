"""The hardware and the package versions of a trial or a measurement."""

import platform
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench.utils.code import hash_module, running_code
from bench.utils.text import single_line
from deelbo.plugins import Plugin

PACKAGES = [
    *("deelbo", "torch", "torchvision", "numpy", "scikit-learn", "ray", "mlflow"),
    *("curvlinops-for-pytorch", "laplace-torch", "optuna", "prodigyopt", "schedulefree"),  # of the extra `methods`
]


def hardware(device: torch.device) -> dict[str, Any]:
    """Describe the hardware; on ``repeatable`` hardware, not on a GPU, a trial gives the same metrics to the bit.

    A GPU that torch cannot use is left out.
    """
    facts: dict[str, Any] = {"device": device.type, "node": single_line(platform.node(), 100), "cpu": _cpu_model()}
    facts |= {"threads": torch.get_num_threads(), "repeatable": device.type == "cpu"}
    if device.type == "cuda":
        with suppress(RuntimeError, AssertionError):  # a trial that failed for this reason needs a record, too
            facts["gpu"] = single_line(torch.cuda.get_device_name(device), 100)
            facts["gpu_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    return facts


def versions(plugins: Iterable[Plugin] = ()) -> dict[str, str]:
    """Return the versions of everything that affects a result, and the hashes of this package's and plug-ins' code."""
    installed = {"python": platform.python_version(), "code": running_code().hash}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    for plugin in plugins:
        if plugin.distribution:
            installed[plugin.distribution] = plugin.version
        installed[f"{plugin.distribution or plugin.module} code"] = _hash_module(plugin.module)
    return installed


_hash_module = cache(hash_module)


def _cpu_model() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            model = next(line.split(":", 1)[1] for line in file if line.startswith("model name"))
    except (OSError, ValueError, StopIteration):
        model = platform.processor() or platform.machine()
    return single_line(model, 100)
