"""DE ELBo without a learning rate: one run, by an optimizer that estimates its own step size."""

from collections.abc import Iterable
from typing import Literal

from bench.methods.base import Method
from bench.methods.de_elbo import DEELBoOptions
from bench.trials.spec import TrialSpec
from bench.types import Positive

PACKAGES = {"prodigy": "prodigyopt", "schedule-free": "schedulefree"}


class LRFreeSettings(DEELBoOptions):
    """One run; ``learning_rate`` is a factor of the optimizer's own step size."""

    method: Literal["deelbo-free"] = "deelbo-free"
    optimizer: Literal["prodigy", "schedule-free"] = "prodigy"
    learning_rate: Positive = 1.0

    @property
    def packages(self) -> tuple[str, ...]:  # type: ignore[override]
        return (PACKAGES[self.optimizer],)

    def max_trials(self, prior: str) -> int:
        return 1


class DEELBoLRFree(Method):
    """Take the result of the only run; nothing is selected or retrained."""

    name = "deelbo-free"
    title = "DE ELBo, no rate"
    bayesian = True
    Settings = LRFreeSettings
    settings: LRFreeSettings

    def initial_trials(self) -> Iterable[TrialSpec]:
        fields = {"optimizer": self.settings.optimizer} | self.settings.spec_fields
        return [self.spec("run", self.settings.learning_rate, **fields)]
