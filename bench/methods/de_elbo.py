"""DE ELBo: learn regularisation by the data-emphasized ELBo. One run a learning rate, on all N images."""

from __future__ import annotations

from collections.abc import Iterable

from bench.benchmark import DEELBoSettings
from bench.methods.base import Method
from bench.trials import TrialSpec

__all__ = ["DEELBo"]


class DEELBo(Method):
    """As `ELBo`, with the likelihood counted kappa times; kappa = D/N unless the configuration says otherwise."""

    name = "de-elbo"
    settings: DEELBoSettings

    def first(self) -> Iterable[TrialSpec]:
        kappa = None if self.settings.kappa == "D/N" else float(self.settings.kappa)
        return [self.spec("run", rate, kappa=kappa) for rate in self.settings.learning_rates]
