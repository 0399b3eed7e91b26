"""DE ELBo by successive halving: bad learning rates stop early, by the objective itself. Nothing is held out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from bench.methods.asha import Rungs
from bench.methods.base import Method, objective_rank
from bench.methods.de_elbo import DEELBoOptions
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.types import LEARNING_RATES, LearningRates, filled

if TYPE_CHECKING:
    from bench.trials.spec import TrialTemplate

__all__ = ["DEELBoHalving"]


class HalvingSettings(DEELBoOptions):
    """Several learning rates begin, one ends.

    Attributes:
        rungs: after which shares of the run they are compared.
        eta: one in so many goes on from each rung but the last, from which the best one does.
    """

    method: Literal["deelbo-halving"] = "deelbo-halving"
    learning_rates: LearningRates = LEARNING_RATES
    rungs: Annotated[Rungs, AfterValidator(filled)] = (0.125, 0.25)
    eta: Annotated[int, Field(ge=2, lt=2**31, strict=True)] = 2

    def find_problem(self, prior: str) -> str | None:
        if len(self.learning_rates) < self.eta:
            return (
                f"learning_rates = {list(self.learning_rates)} with eta = {self.eta}, of which one in {self.eta} goes "
                f"on from a rung: give {self.eta} learning_rates or more, or use de-elbo"
            )
        return super().find_problem(prior)

    def num_at_rungs(self) -> list[int]:
        """How many train up to each rung, and to the end: 4, 2, 1 by default."""
        counts = [len(self.learning_rates)]
        while len(counts) < len(self.rungs):
            counts.append(math.ceil(counts[-1] / self.eta))
        return [*counts, 1]

    def max_trials(self, prior: str) -> int:
        return sum(self.num_at_rungs())


class DEELBoHalving(Method):
    """All learning rates train to the first rung; the best half of them, by the objective there, to the next; one to
    the end. By default that is 4 x 1/8 + 2 x 1/8 + 3/4 = 1.5 runs, where the DE ELBo's four take 4.

    At a rung the objective is the mean NLL under q of the last training batches plus the regularizer: it costs nothing.
    A run that diverged there, or failed, stops. Where none completed, the first that diverged goes on, so that the cell
    has its result; where all failed there is none.
    """

    name = "deelbo-halving"
    title = "DE ELBo, halving"
    bayesian = True
    adaptive = True
    Settings = HalvingSettings
    settings: HalvingSettings

    def __init__(self, template: TrialTemplate, settings: HalvingSettings, name: str | None = None) -> None:
        self.levels = (*settings.rungs, 1.0)
        self._counts = settings.num_at_rungs()
        self._level = 0
        self._entered: tuple[float, ...] = settings.learning_rates
        self._told: dict[float, TrialRecord] = {}
        self._stopped: list[TrialSpec] = []
        super().__init__(template, settings, name)

    def initial_trials(self) -> Iterable[TrialSpec]:
        return self._specs(0, self.settings.learning_rates)

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        self._told[record.spec.learning_rate] = record
        if len(self._told) < len(self._entered) or self._level == len(self.settings.rungs):
            return ()
        kept = self._best(self._counts[self._level + 1])
        self._stopped += [told.spec for rate, told in self._told.items() if rate not in kept]
        self._level += 1
        self._entered, self._told = kept, {}
        later = range(self._level + 1, len(self._counts))
        self._counts[self._level] = len(kept)
        for level in later:
            self._counts[level] = min(self._counts[level], len(kept))
        return self._specs(self._level, kept)

    def stopped_trials(self) -> Sequence[TrialSpec]:
        stopped, self._stopped = self._stopped, []
        return stopped

    def stages(self) -> Counter[str]:
        return Counter(run=sum(self._counts))

    def run_equivalents(self) -> Mapping[str, float]:
        parts = [until - since for since, until in pairwise((0.0, *self.levels))]
        return {"run": sum(count * part for count, part in zip(self._counts, parts, strict=True))}

    def _best(self, count: int) -> tuple[float, ...]:
        """So many of the rates that completed this rung, the best first; one that diverged where none did."""
        order = sorted(self._entered, key=lambda rate: objective_rank(self._told[rate]))  # stable: of equals the first
        done = [rate for rate in order if math.isfinite(objective_rank(self._told[rate])[1])]
        return tuple(done[:count] or [rate for rate in order if self._told[rate].succeeded][:1])

    def _specs(self, level: int, rates: Sequence[float]) -> list[TrialSpec]:
        since = self.levels[level - 1] if level else 0.0
        where = {"until": self.levels[level], "since": since} | self.settings.spec_fields
        return [self.spec("run", rate, **where) for rate in rates]
