"""ASHA: random configurations, of which bad ones stop early (Li et al. 2020)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from bench.methods.base import metric_rank
from bench.methods.random_search import sample_configurations
from bench.methods.sequential import SequentialMethod, SequentialSettings
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec, TrialTemplate
from bench.types import Count, Fraction, Number


def _rising(rungs: Any) -> Any:
    if any(later <= earlier for earlier, later in pairwise(rungs)):
        raise ValueError("must rise, each share of a run above the one before")
    return rungs


Rungs = Annotated[tuple[Fraction, ...], AfterValidator(_rising)]
"""Rising shares of a run at which it is evaluated; the end of the run, 1, is not among them."""


class ASHASettings(SequentialSettings):
    """At each of the ``rungs``, shares of a run, one in ``eta`` continues. A grid below ``trials`` is tried whole."""

    method: Literal["asha"] = "asha"
    trials: Count = 24
    rungs: Rungs = (0.1, 0.3)
    eta: Annotated[float, Number, Field(gt=1, allow_inf_nan=False)] = 3.0

    def configurations(self, prior: str) -> int:
        return min(self.trials, self.size(prior))

    def find_problem(self, prior: str) -> str | None:
        if (count := self.configurations(prior)) < self.eta:
            return (
                f"{count} configurations with prior {prior}, of which one in eta = {self.eta:g} continues from each "
                f"rung: set trials and the grid to {self.eta:g} or more, or eta lower"
            )
        return super().find_problem(prior)

    def max_trials(self, prior: str) -> int:
        return super().max_trials(prior) + len(self.rungs) * self.configurations(prior)


def passes_rung(value: float, before: Sequence[float], eta: float) -> bool:
    """Return whether a run with this validation NLL continues from a rung: it is at or below the quantile 1/eta.

    This is the rule of Ray's ``AsyncHyperBandScheduler``. The first always continues, a value that is not finite never.
    """
    finite = sorted(-other for other in before if math.isfinite(other))
    if not math.isfinite(value) or not finite:
        return math.isfinite(value)
    # equal to numpy.percentile to the bit, which takes 50 microseconds a call; a replay makes millions of calls
    place = (len(finite) - 1) * ((1 - 1 / eta) * 100 / 100)
    below = math.floor(place)
    low, high, part = finite[below], finite[min(below + 1, len(finite) - 1)], place - below
    cutoff = low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)
    return not -value < cutoff


class ASHA(SequentialMethod):
    """The stopping variant: each configuration is evaluated at every rung of its run, and continues or stops.

    It waits for, and is compared with, the configurations of lower number that reached the rung: the trials depend on
    results, never on which came first. One cosine over the whole run is the schedule of the learning rate, so an early
    rung favors configurations that do well under a high rate's noise. Nothing here corrects that.
    """

    name = "asha"
    title = "ASHA"
    Settings = ASHASettings
    settings: ASHASettings

    def __init__(self, template: TrialTemplate, settings: ASHASettings, name: str | None = None) -> None:
        self.levels = (*settings.rungs, 1.0)
        self._points = sample_configurations(settings, template.cell)
        # records by level and configuration number; None for those that stopped before
        self._at_level: list[dict[int, TrialRecord | None]] = [{} for _ in self.levels]
        self._num_decided = [0] * len(settings.rungs)
        super().__init__(template, settings, name)

    def initial_trials(self) -> Iterable[TrialSpec]:
        return [self._level(number, 0) for number in range(self.size)]

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        number = record.spec.number
        if record.spec.stage != "tune" or number is None:
            return []
        level = self.levels.index(record.spec.until)
        self._at_level[level][number] = record
        return self.record_tuned(record) if level == len(self.settings.rungs) else self._decide(level)

    def num_tuning_trials(self) -> int:
        return self.size * len(self.levels) - sum(record is None for at in self._at_level for record in at.values())

    def run_equivalents(self) -> Mapping[str, float]:
        out = [sum(record is None for record in at.values()) for at in self._at_level]
        parts = [level - since for since, level in zip((0.0, *self.levels), self.levels, strict=False)]
        tuned = sum((self.size - n) * part for n, part in zip(out, parts, strict=True))
        return {"tune": tuned, "retrain": self.num_retraining_trials()}

    def _level(self, number: int, level: int) -> TrialSpec:
        since = self.levels[level - 1] if level else 0.0
        return self.spec("tune", number=number, until=self.levels[level], since=since, **self._points[number])

    def _decide(self, rung: int) -> list[TrialSpec]:
        """Decide, in order, on all configurations at that rung for which the results before them are known."""
        trials: list[TrialSpec] = []
        at = self._at_level[rung]
        while (number := self._num_decided[rung]) in at:
            self._num_decided[rung] += 1
            record = at[number]
            if record is None:
                continue
            value = metric_rank(record)[1]
            before = [metric_rank(at[other])[1] for other in range(number) if at[other] is not None]  # type: ignore[arg-type]
            if passes_rung(value, before, self.settings.eta):
                trials.append(self._level(number, rung + 1))
                continue
            for later in self._at_level[rung + 1 :]:
                later[number] = None  # so that no other waits for it there
            self._stopped.append(record.spec)
            trials += self.record_tuned(record)
        return trials
