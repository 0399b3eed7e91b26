"""ASHA: random configurations, of which those that look bad early stop early. Li et al. 2020, "A System for Massively
Parallel Hyperparameter Tuning"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from bench.methods.base import validation_rank
from bench.methods.random_search import sample_configurations
from bench.methods.sequential import SequentialMethod, SequentialSettings
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.types import Count, Number, Share

if TYPE_CHECKING:
    from bench.trials.spec import TrialTemplate

__all__ = ["ASHA", "Rungs", "passes_rung"]


def _rising(rungs: Any) -> Any:
    if any(later <= earlier for earlier, later in pairwise(rungs)):
        raise ValueError("must rise, each share of a run above the one before")
    return rungs


Rungs = Annotated[tuple[Share, ...], AfterValidator(_rising)]
"""Shares of a run after which it is looked at, rising; the whole run, 1, is not among them."""


class ASHASettings(SequentialSettings):
    """Asynchronous successive halving.

    Attributes:
        trials: 24 where not given: how many configurations begin; all of the grid where it has fewer.
        rungs: after which shares of a run it may stop.
        eta: one in so many goes on from each rung.
    """

    method: Literal["asha"] = "asha"
    trials: Count = 24
    rungs: Rungs = (0.1, 0.3)
    eta: Annotated[float, Number, Field(gt=1, allow_inf_nan=False)] = 3.0

    def configurations(self, prior: str) -> int:
        return min(self.trials, self.size(prior))

    def find_problem(self, prior: str) -> str | None:
        if (count := self.configurations(prior)) < self.eta:
            return (
                f"{count} configurations with prior {prior}, of which one in eta = {self.eta:g} goes on from each "
                f"rung: set trials and the grid to {self.eta:g} or more, or eta lower"
            )
        return super().find_problem(prior)

    def max_trials(self, prior: str) -> int:
        return super().max_trials(prior) + len(self.rungs) * self.configurations(prior)


def passes_rung(value: float, before: Sequence[float], eta: float) -> bool:
    """Whether a run with this validation NLL goes on from a rung, after those that reached it before.

    Where it is at or below the 1/eta quantile of theirs, interpolated, as Ray's ``AsyncHyperBandScheduler`` has it; the
    first always does. What is not finite does not go on, and does not count among those before: an infinite one would
    have no quantile to be interpolated.
    """
    finite = sorted(-other for other in before if math.isfinite(other))
    if not math.isfinite(value) or not finite:
        return math.isfinite(value)
    # numpy's percentile to the bit, without its 50 microseconds a call, of which a replay makes millions
    place = (len(finite) - 1) * ((1 - 1 / eta) * 100 / 100)
    below = math.floor(place)
    low, high, part = finite[below], finite[min(below + 1, len(finite) - 1)], place - below
    cutoff = low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)
    return not -value < cutoff


class ASHA(SequentialMethod):
    """The stopping form: a configuration is looked at after each rung's share of its run, and goes on or stops.

    It is compared with the configurations before it in number that reached the rung, for which it waits; so what is
    trained depends on results, never on which came first. Each rung is a trial, going on where the rung before ended;
    the first of all is never stopped, unless it diverged.

    The learning rate's schedule is one cosine over the whole run, as it must be if the last rung is to be an ordinary
    run. At an early rung the rate is still near its start: validation NLL there favors configurations that do well
    under the noise of a high rate, and those are behind that would be ahead at the end, when the rate has come down.
    Late rungs decide fairly and save little. Nothing here corrects for that.
    """

    name = "asha"
    title = "ASHA"
    Settings = ASHASettings
    settings: ASHASettings

    def __init__(self, template: TrialTemplate, settings: ASHASettings, name: str | None = None) -> None:
        self.levels = (*settings.rungs, 1.0)
        self._points = sample_configurations(settings, template.cell)
        self._at: list[dict[int, TrialRecord | None]] = [{} for _ in self.levels]
        """For each level the records of the numbers that reached it, None for those that never will."""
        self._stopped: list[TrialSpec] = []
        self._decided = [0] * len(settings.rungs)
        """For each rung the first number of which is not known whether it goes on from there."""
        super().__init__(template, settings, name)

    def initial_trials(self) -> Iterable[TrialSpec]:
        return [self._level(number, 0) for number in range(self.size)]

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        number = record.spec.number
        if record.spec.stage != "tune" or number is None:
            return []
        level = self.levels.index(record.spec.until)
        self._at[level][number] = record
        return self.record_tuned(record) if level == len(self.settings.rungs) else self._decide(level)

    def stopped_trials(self) -> Sequence[TrialSpec]:
        stopped, self._stopped = self._stopped, []
        return stopped

    def num_tuning_trials(self) -> int:
        return self.size * len(self.levels) - sum(record is None for at in self._at for record in at.values())

    def run_equivalents(self) -> Mapping[str, float]:
        out = [sum(record is None for record in at.values()) for at in self._at]
        parts = [level - since for since, level in zip((0.0, *self.levels), self.levels, strict=False)]
        tuned = sum((self.size - n) * part for n, part in zip(out, parts, strict=True))
        return {"tune": tuned, "retrain": self.num_retraining_trials()}

    def _level(self, number: int, level: int) -> TrialSpec:
        since = self.levels[level - 1] if level else 0.0
        return self.spec("tune", number=number, until=self.levels[level], since=since, **self._points[number])

    def _decide(self, rung: int) -> list[TrialSpec]:
        """Decides on all numbers at that rung of which it is possible by now, in their order.

        Nobody waits at a later rung for one that stops here: who is there went on from here, after this one's turn.
        """
        asked: list[TrialSpec] = []
        at = self._at[rung]
        while (number := self._decided[rung]) in at:
            self._decided[rung] += 1
            record = at[number]
            if record is None:
                continue
            value = validation_rank(record)[1]
            before = [validation_rank(at[other])[1] for other in range(number) if at[other] is not None]  # type: ignore[arg-type]
            if passes_rung(value, before, self.settings.eta):
                asked.append(self._level(number, rung + 1))
                continue
            for later in self._at[rung + 1 :]:
                later[number] = None
            self._stopped.append(record.spec)
            asked += self.record_tuned(record)
        return asked
