"""DE ELBo: learn regularisation by the data-emphasized ELBo. One run a learning rate, on all N images."""

from __future__ import annotations

from collections.abc import Iterable

from bench.methods.base import Method
from bench.trials import TrialSpec

__all__ = ["DEELBo"]


class DEELBo(Method):
    """As `ELBo`, with the likelihood counted kappa times; kappa = D/N unless the configuration says otherwise."""

    name = "de-elbo"

    def first(self) -> Iterable[TrialSpec]:
        settings = self.benchmark.methods.de_elbo
        assert settings is not None
        kappa = None if settings.kappa == "D/N" else float(settings.kappa)
        return [self.spec("run", rate, kappa=kappa) for rate in settings.learning_rates]
