"""The interface of a method, and what every method's trials have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from bench.benchmark import Benchmark
from bench.trials import Cell, TrialRecord, TrialSpec

__all__ = ["Method"]


class Method(ABC):
    """A method at work in one cell, by ask and tell.

    `ask` gives the next trial that may start now, or None: nothing now, and, once every asked trial was told, nothing
    any more. `tell` takes each asked trial's record, in any order. A record that exists from an earlier run is told
    like a new one, so a method never knows whether it was interrupted.
    """

    name: str
    settings: Any

    def __init__(self, benchmark: Benchmark, cell: Cell, settings: Any) -> None:
        self.benchmark, self.cell, self.settings = benchmark, cell, settings
        self._queue: deque[TrialSpec] = deque(self.first())

    @abstractmethod
    def first(self) -> Iterable[TrialSpec]:
        """The trials that depend on no other's result."""

    def then(self, record: TrialRecord) -> Iterable[TrialSpec]:
        """The trials that this record makes possible."""
        return ()

    def ask(self) -> TrialSpec | None:
        """The next trial, or None."""
        return self._queue.popleft() if self._queue else None

    def tell(self, record: TrialRecord) -> None:
        """What came of a trial that was asked for."""
        self._queue.extend(self.then(record))

    def stages(self) -> Counter[str]:
        """How many trials of each stage this cell will take, all told, before any was asked for."""
        return Counter(spec.stage for spec in self.first())

    def count(self) -> int:
        """How many trials this cell will take, all told."""
        return self.stages().total()

    def spec(self, stage: str, learning_rate: float, **strengths: float | None) -> TrialSpec:
        """A trial of this method in this cell. ``strengths``: those fields of `TrialSpec` that the method sets."""
        values: dict[str, Any] = dict.fromkeys(("weight_decay", "head_weight_decay", "prior_scale", "kappa"))
        values |= self.benchmark.training.model_dump() | strengths
        return TrialSpec(
            dataset=self.cell.dataset,
            backbone=self.cell.backbone,
            head=self.benchmark.backbones[self.cell.backbone].head,
            method=self.name,
            prior=self.cell.prior,
            n=self.cell.n,
            seed=self.cell.seed,
            stage=stage,
            learning_rate=learning_rate,
            **values,
        )
