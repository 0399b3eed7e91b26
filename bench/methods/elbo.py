"""ELBo: learn the regularization by the evidence lower bound, kappa = 1; one run per learning rate, on all N images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from bench.methods.base import Method, MethodSettings
from bench.trials.spec import TrialSpec
from bench.types import DEFAULT_LEARNING_RATES, LearningRates

__all__ = ["ELBo"]


class ELBoSettings(MethodSettings):
    """One run per learning rate."""

    method: Literal["elbo"] = "elbo"
    learning_rates: LearningRates = DEFAULT_LEARNING_RATES

    def max_trials(self, prior: str) -> int:
        return len(self.learning_rates)


class ELBo(Method):
    """Take the run with the lowest objective at its end; nothing is retrained."""

    name = "elbo"
    title = "ELBo"
    bayesian = True
    Settings = ELBoSettings
    settings: ELBoSettings

    def initial_trials(self) -> Iterable[TrialSpec]:
        return [self.spec("run", rate, kappa=1.0) for rate in self.settings.learning_rates]
