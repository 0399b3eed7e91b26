"""ELBo: learn regularisation by the plain evidence lower bound, kappa = 1. One run a learning rate, on all N images."""

from __future__ import annotations

from collections.abc import Iterable

from bench.benchmark import ELBoSettings
from bench.methods.base import Method
from bench.trials import TrialSpec

__all__ = ["ELBo"]


class ELBo(Method):
    """The run whose objective is least at the end is the one that counts; there is nothing to retrain."""

    name = "elbo"
    settings: ELBoSettings

    def first(self) -> Iterable[TrialSpec]:
        return [self.spec("run", rate, kappa=1.0) for rate in self.settings.learning_rates]
