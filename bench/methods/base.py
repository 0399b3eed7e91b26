"""The interface of a method, and what every method's settings and trials have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.types import Filled, Prior, Strict

if TYPE_CHECKING:
    import torch

    from bench.trials.spec import TrialTemplate
    from deelbo.groups import Group
    from deelbo.objectives.base import Objective

__all__ = ["Method", "MethodSettings", "objective_rank", "validation_rank"]


class MethodSettings(Strict):
    """What a configuration says of one entry under ``methods``.

    Attributes:
        method: which method it is; the entry's own name where that is not given.
        priors: those of the benchmark's that it runs on; all where None.
        packages: what must be installed beside the benchmark's own requirements, by the names to import.
    """

    method: str
    priors: Annotated[tuple[Prior, ...], Filled] | None = None
    packages: ClassVar[tuple[str, ...]] = ()

    def runs_on(self, prior: str) -> bool:
        """Whether the configuration wants it on that prior."""
        return self.priors is None or prior in self.priors

    def missing_package(self) -> str | None:
        """One of `packages` that is not installed; None where all are."""
        return next((package for package in self.packages if find_spec(package) is None), None)

    def find_problem(self, prior: str) -> str | None:
        """Why it does not fit that prior, or its own budget, and what to do; None where it does."""
        return None

    def max_trials(self, prior: str) -> int:
        """How many a cell of that prior takes at most."""
        raise NotImplementedError


class Method(ABC):
    """A method at work in one cell, by ask and tell.

    `ask` gives the next trial that may start now, or None: nothing now, and, once every asked trial was told, nothing
    any more. `tell` takes each asked trial's record, in any order. A record that exists from an earlier run is told
    like a new one, so a method never knows whether it was interrupted. What it asks for must be decided by its settings
    and by what it was told, never by when: reports ask again to know what belongs to it.

    Attributes:
        name: the entry in the configuration; the class's own is the method's.
        title: what tables and legends call it.
        bayesian: whether its runs draw from a posterior, as the DE ELBo's do: they take longer than MAP's.
        adaptive: whether results decide how many trials there are, so that `stages` are the most that there may be.
        dry_run: set by who wants to know what belongs to it, and will run nothing: what is costly to find need not
            be found, any trial may stand for it.
    """

    name: str
    title: ClassVar[str]
    bayesian: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    dry_run: bool = False
    Settings: ClassVar[type[MethodSettings]]
    settings: Any

    def __init__(self, template: TrialTemplate, settings: Any, name: str | None = None) -> None:
        self.template, self.cell, self.settings = template, template.cell, settings
        self.name = type(self).name if name is None else name
        self._queue: deque[TrialSpec] = deque(self.initial_trials())

    @staticmethod
    def objective(spec: TrialSpec, groups: Sequence[Group], num_examples: int, generator: torch.Generator) -> Objective:
        """What a trial with this method's name in ``spec.learner`` minimizes. Torch is imported in here.

        Args:
            spec: the trial.
            groups: of weights, as ``spec.groups`` says.
            num_examples: how many images this run trains on.
            generator: random numbers of its own, on the weights' device.
        """
        raise NotImplementedError(f"{spec.learner} says nothing of an objective")

    @abstractmethod
    def initial_trials(self) -> Iterable[TrialSpec]:
        """The trials that depend on no other's result."""

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        """The trials that this record makes possible."""
        return ()

    def stopped_trials(self) -> Sequence[TrialSpec]:
        """Trials that were told since the last call, stopped before the end of their run, and will not be gone on with:
        what they left is not needed any more. Those that are not named are kept until the cell is done."""
        return ()

    def load_history(self, records: Sequence[TrialRecord]) -> None:  # noqa: B027 - most have nothing to take from there
        """Is told once, before the first `ask`, which records this entry has in this cell.

        They are told again by `tell`, each after its trial was asked for. A method whose next trial is costly to find
        takes from here what it asked for before.
        """

    def ask(self) -> TrialSpec | None:
        """The next trial, or None."""
        return self._queue.popleft() if self._queue else None

    def tell(self, record: TrialRecord) -> None:
        """What came of a trial that was asked for."""
        self._queue.extend(self.next_trials(record))

    def stages(self) -> Counter[str]:
        """How many trials of each stage this cell takes, all told; the most that it may, while that is not known."""
        return Counter(spec.stage for spec in self.initial_trials())

    def run_equivalents(self) -> Mapping[str, float]:
        """`stages` in whole runs: a trial that stops early, or goes on from another, is a part of one."""
        return self.stages()

    def count(self) -> int:
        """How many trials this cell takes, all told; the most that it may, while that is not known."""
        return self.stages().total()

    def spec(self, stage: str, learning_rate: float, **settings: Any) -> TrialSpec:
        """Return a trial of this method in this cell; ``settings`` as for `TrialTemplate.make`."""
        return self.template.make(self.name, stage, learning_rate, **settings)

    @staticmethod
    def retraining(spec: TrialSpec) -> TrialSpec:
        """The trial that trains a tuned configuration again, from its start to its end, on all N images."""
        return replace(spec, stage="retrain", until=1.0, since=0.0)


def validation_rank(record: TrialRecord) -> tuple[bool, float]:
    """Least is best: failed runs last, and before them those that diverged or whose validation NLL is not finite."""
    return _rank(record, "val_nll")


def objective_rank(record: TrialRecord) -> tuple[bool, float]:
    """The same by the objective, of methods that hold nothing out."""
    return _rank(record, "objective")


def _rank(record: TrialRecord, metric: str) -> tuple[bool, float]:
    value = record.metrics.get(metric, math.inf)
    return record.status == "failed", value if math.isfinite(value) and record.status == "completed" else math.inf
