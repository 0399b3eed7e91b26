"""Benchmark service that compares methods for choosing the strength of L2 regularization.

``bench.run`` and ``bench.load`` are imported on first use (PEP 562), so ``import bench`` itself loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import Result, load, run

__all__ = ["Result", "load", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        value = globals()[name] = getattr(import_module("bench.api"), name)
        return value
    raise AttributeError(f"module 'bench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
