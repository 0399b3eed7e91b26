"""The interface of a method, its settings, and the order in which methods rank records."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec, TrialTemplate
from bench.types import DEFAULT_LEARNING_RATES, LearningRates, Prior, StrictModel, Unique

if TYPE_CHECKING:
    from deelbo.groups import Group
    from deelbo.objectives.base import Objective


class MethodSettings(StrictModel):
    """Settings of one configured method, an entry under ``methods``; runs on all priors if ``priors`` is None."""

    method: str
    priors: Annotated[tuple[Prior, ...], Unique] | None = None
    packages: ClassVar[tuple[str, ...]] = ()  # import names of those that it needs beside the benchmark's own

    def runs_on(self, prior: str) -> bool:
        return self.priors is None or prior in self.priors

    def missing_package(self) -> str | None:
        """Return one of `packages` that is not installed; None if all are."""
        return next((package for package in self.packages if find_spec(package) is None), None)

    def find_problem(self, prior: str) -> str | None:
        """Return why the settings do not fit that prior or each other, and what to do; None if they fit."""
        return None

    def find_training_problem(self, training: Mapping[str, Any]) -> str | None:
        """Return why the settings do not fit the section ``training`` of the configuration; as `find_problem`."""
        return None

    def max_trials(self, prior: str) -> int:
        """Return the largest number of trials that a cell of that prior may take."""
        raise NotImplementedError


class TunedRateSettings(MethodSettings):
    """Settings of a method that trains one run per learning rate."""

    learning_rates: LearningRates = DEFAULT_LEARNING_RATES

    def max_trials(self, prior: str) -> int:
        return len(self.learning_rates)


class Method(ABC):
    """A method at work in one cell, with an ask-and-tell interface.

    `ask` returns the next trial that may start now, or None: no trial now, and, once `tell` has received the records of
    all trials, no trial any more. `tell` receives the record of each trial, in any order. Records of an earlier call of
    `run` are received like new ones, so a method cannot tell whether it was interrupted. The trials must be a function
    of the settings and of the records received, never of time: reports ask again to find which records belong to it.
    """

    name: str  # of the entry in the configuration; the class attribute is the method's own
    title: ClassVar[str]
    bayesian: ClassVar[bool] = False  # its runs sample from a posterior, which takes longer than MAP
    adaptive: ClassVar[bool] = False  # results decide how many trials there are, so that `stages` are upper bounds
    dry_run: bool = False  # set by a caller that will run nothing: an expensive choice may be replaced by any trial
    Settings: ClassVar[type[MethodSettings]]
    settings: Any

    def __init__(self, template: TrialTemplate, settings: Any, name: str | None = None) -> None:
        self.template, self.cell, self.settings = template, template.cell, settings
        self.name = type(self).name if name is None else name
        self._stopped: list[TrialSpec] = []
        self._queue: deque[TrialSpec] = deque(self.initial_trials())

    @staticmethod
    def objective(spec: TrialSpec, groups: Sequence[Group], num_examples: int) -> Objective:
        """Return the objective of a trial that has this method's name as its ``learner``; import torch in here."""
        raise NotImplementedError(f"{spec.learner} defines no objective")

    @abstractmethod
    def initial_trials(self) -> Iterable[TrialSpec]:
        """Return the trials that depend on no result."""

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        """Return the trials that this record makes possible."""
        return ()

    def stopped_trials(self) -> Sequence[TrialSpec]:
        """Return the trials since the last call that will not continue, whose snapshots are deleted."""
        stopped, self._stopped = self._stopped, []
        return stopped

    def load_history(self, records: Sequence[TrialRecord]) -> None:  # noqa: B027 - most have nothing to take from it
        """Receive earlier records, and so earlier choices, before the first `ask`; `tell` receives them again."""

    def ask(self) -> TrialSpec | None:
        """Return the next trial, or None if none may start now."""
        return self._queue.popleft() if self._queue else None

    def tell(self, record: TrialRecord) -> None:
        self._queue.extend(self.next_trials(record))

    def stages(self) -> Counter[str]:
        """Return the number of trials of each stage in this cell; upper bounds while results decide."""
        return Counter(spec.stage for spec in self.initial_trials())

    def run_equivalents(self) -> Mapping[str, float]:
        """Return `stages` in whole runs: a trial that trains a segment of a run counts as that share."""
        return self.stages()

    def count(self) -> int:
        return self.stages().total()

    def spec(self, stage: str, learning_rate: float, **settings: Any) -> TrialSpec:
        """Return a trial of this method in this cell; ``settings`` as for `TrialTemplate.make`."""
        return self.template.make(self.name, stage, learning_rate, **settings)

    @staticmethod
    def retraining(spec: TrialSpec) -> TrialSpec:
        """Return the trial that trains a tuned configuration again, from start to end, on all N images."""
        return replace(spec, stage="retrain", until=1.0, since=0.0)


def learned_strengths(record: TrialRecord, prefix: str = "") -> dict[str, float | None] | None:
    """Return the strengths with which a run ended, as alpha and beta of `TrialSpec`, to be trained with by MAP.

    Args:
        record: of a run that learned them. Where it trained the head alone, there is no alpha.
        prefix: of their names in the record's state.

    Returns:
        None if the run failed, or one of them is not a positive number.
    """
    names = {"weight_decay": "backbone", "head_weight_decay": "head"}
    if record.spec.train == "head":
        del names["weight_decay"]
    found = {name: record.state.get(f"{prefix}weight_decay_{group}", math.nan) for name, group in names.items()}
    if record.status == "failed" or not all(0 < strength < math.inf for strength in found.values()):
        return None
    return {"weight_decay": None} | found


def metric_rank(record: TrialRecord, metric: str = "val_nll") -> tuple[bool, float]:
    """Return a sort key, best first; diverged and non-finite ones rank behind, failed ones last."""
    value = record.metrics.get(metric, math.inf)
    return record.status == "failed", value if math.isfinite(value) and record.status == "completed" else math.inf
