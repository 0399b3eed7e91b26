"""ELBo: learn the regularization by the evidence lower bound, kappa = 1; one run per learning rate, on all N images."""

from collections.abc import Iterable
from typing import Literal

from bench.methods.base import Method, TunedRateSettings
from bench.trials.spec import TrialSpec


class ELBoSettings(TunedRateSettings):
    method: Literal["elbo"] = "elbo"


class ELBo(Method):
    """Take the run with the lowest objective at its end; nothing is retrained."""

    name = "elbo"
    title = "ELBo"
    bayesian = True
    Settings = ELBoSettings
    settings: ELBoSettings

    def initial_trials(self) -> Iterable[TrialSpec]:
        return [self.spec("run", rate, kappa=1.0) for rate in self.settings.learning_rates]
