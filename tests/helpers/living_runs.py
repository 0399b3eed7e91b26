"""Count the training runs, and their parts, that nobody has freed."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from deelbo.training.run import TrainingRun


class LivingRuns:
    """Weak references to each training run and to the objects that hold its memory."""

    def __init__(self) -> None:
        self.count = 0
        self._references: list[tuple[str, weakref.ref[Any]]] = []

    def add(self, run: TrainingRun) -> None:
        self.count += 1
        weights = dict(run.model.named_parameters())
        parts = {"run": run, "model": run.model, "objective": run.objective, "optimizer": run.optimizer}
        parts |= {"split": run.split, "pixels": run.split.train.pixels, "weight": next(iter(weights.values()))}
        self._references += [(name, weakref.ref(part)) for name, part in parts.items()]

    def names(self) -> list[str]:
        """Return which parts are alive."""
        return [name for name, reference in self._references if reference() is not None]


@contextmanager
def counted_runs() -> Iterator[LivingRuns]:
    """A block in which training runs are counted and Python's automatic garbage collection is off."""
    living, make = LivingRuns(), TrainingRun.__init__

    def watched(self: TrainingRun, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        living.add(self)

    gc.disable()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "__init__", watched)
        try:
            yield living
        finally:
            gc.enable()


def leave_cycle() -> None:
    """Leave an exception in a reference cycle, as imports and compilers do; its frames hold those of the caller."""
    try:
        raise ImportError("an optional package")
    except ImportError as error:
        kept = [error]
        error.args = (kept,)
