"""DE ELBo with successive halving: bad learning rates stop early, judged by the objective; no validation set."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bench.methods.asha import Rungs
from bench.methods.base import Method, metric_rank
from bench.methods.de_elbo import DEELBoOptions
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec, TrialTemplate
from bench.types import DEFAULT_LEARNING_RATES, LearningRates, check_unique


class HalvingSettings(DEELBoOptions):
    """At each of the ``rungs``, shares of the run, one in ``eta`` continues; from the last only the best does."""

    method: Literal["deelbo-halving"] = "deelbo-halving"
    learning_rates: LearningRates = DEFAULT_LEARNING_RATES
    rungs: Annotated[Rungs, AfterValidator(check_unique)] = (0.125, 0.25)
    eta: Annotated[int, Field(ge=2, lt=2**31, strict=True)] = 2

    def find_problem(self, prior: str) -> str | None:
        if len(self.learning_rates) < self.eta:
            return (
                f"learning_rates = {list(self.learning_rates)} with eta = {self.eta}, of which one in {self.eta} "
                f"continues from a rung: give {self.eta} learning_rates or more, or use de-elbo"
            )
        return super().find_problem(prior)

    def num_at_rungs(self) -> list[int]:
        """Return how many learning rates train up to each rung and to the end: 4, 2, 1 by default."""
        counts = [len(self.learning_rates)]
        for _ in self.rungs[1:]:
            counts.append(math.ceil(counts[-1] / self.eta))
        return [*counts, 1]

    def max_trials(self, prior: str) -> int:
        return sum(self.num_at_rungs())


class DEELBoHalving(Method):
    """Train all learning rates to the first rung, the best half of them to the next, and one to the end.

    By default that is 4 x 1/8 + 2 x 1/8 + 3/4 = 1.5 runs instead of the DE ELBo's 4. The objective at a rung, of the
    last training batches, costs nothing extra. A run that diverged or failed stops; if none completed, the first that
    diverged continues, so that the cell has a result.
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
        self._rates: tuple[float, ...] = settings.learning_rates
        self._records: dict[float, TrialRecord] = {}
        super().__init__(template, settings, name)

    def initial_trials(self) -> Iterable[TrialSpec]:
        return self._specs(0, self.settings.learning_rates)

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        self._records[record.spec.learning_rate] = record
        if len(self._records) < len(self._rates) or self._level == len(self.settings.rungs):
            return ()
        survivors = self._best(self._counts[self._level + 1])
        self._stopped += [record.spec for rate, record in self._records.items() if rate not in survivors]
        self._level += 1
        self._rates, self._records = survivors, {}
        later = [min(count, len(survivors)) for count in self._counts[self._level :]]
        self._counts[self._level :] = later
        return self._specs(self._level, survivors)

    def stages(self) -> Counter[str]:
        return Counter(run=sum(self._counts))

    def run_equivalents(self) -> Mapping[str, float]:
        parts = [until - since for since, until in pairwise((0.0, *self.levels))]
        return {"run": sum(count * part for count, part in zip(self._counts, parts, strict=True))}

    def _best(self, count: int) -> tuple[float, ...]:
        """Return the best ``count`` learning rates that completed this rung; one that diverged if none did."""
        order = sorted(self._rates, key=lambda rate: metric_rank(self._records[rate], "objective"))  # stable
        done = [rate for rate in order if math.isfinite(metric_rank(self._records[rate], "objective")[1])]
        return tuple(done[:count] or [rate for rate in order if self._records[rate].succeeded][:1])

    def _specs(self, level: int, rates: Sequence[float]) -> list[TrialSpec]:
        since = self.levels[level - 1] if level else 0.0
        where = {"until": self.levels[level], "since": since} | self.settings.spec_fields
        return [self.spec("run", rate, **where) for rate in rates]
