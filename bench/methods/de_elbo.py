"""DE ELBo: learn regularization by the data-emphasized ELBo. One run a learning rate, on all N images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from bench.methods.base import Method, MethodSettings
from bench.trials.spec import TrialSpec
from bench.types import LEARNING_RATES, LearningRates, number

__all__ = ["DEELBo", "DEELBoOptions"]


TOGETHER = "backbone+head"


def _kappa(value: Any) -> Any:
    share, times, unit = value.rpartition("D/N") if isinstance(value, str) else ("", "", value)
    if times:
        value = share.strip().removesuffix("*").strip() or 1.0
    try:
        found = float(number(value)) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not 0 < found < math.inf or (times and unit.strip()):
        raise ValueError("must be D/N, a share of it such as 0.1 D/N, or a positive number")
    if not times:
        return found
    return "D/N" if found == 1 else f"{found!r} D/N"


def _groups(value: Any) -> Any:
    if value in ("layer", TOGETHER):
        return value
    if isinstance(value, list | tuple) and set(value) == {"backbone", "head"}:
        return TOGETHER
    raise ValueError("must be layer, or [backbone, head]")


class DEELBoOptions(MethodSettings):
    """How a DE ELBo counts and groups.

    Attributes:
        kappa: how often the likelihood counts: ``D/N``, a share of it (``0.1 D/N``), or a number.
        groups: which weights share a prior variance: those of the backbone and of the head, or of each layer.
    """

    kappa: Annotated[str | float, BeforeValidator(_kappa)] = "D/N"
    groups: Annotated[str, BeforeValidator(_groups)] = TOGETHER

    def find_problem(self, prior: str) -> str | None:
        if self.groups == "layer" and prior == "ptyl":
            return (
                "groups = layer with prior ptyl, whose covariance is one over all of the backbone: set groups to "
                "[backbone, head], or priors to l2-zero and l2-sp"
            )
        return None

    @property
    def spec_fields(self) -> dict[str, Any]:
        """Fields of `TrialSpec`: kappa, kappa_share and groups."""
        if isinstance(self.kappa, float):
            return {"kappa": self.kappa, "groups": self.groups}
        return {"kappa_share": float(self.kappa.removesuffix("D/N") or 1), "groups": self.groups}


class DEELBoSettings(DEELBoOptions):
    """The DE ELBo: one run a learning rate."""

    method: Literal["de-elbo"] = "de-elbo"
    learning_rates: LearningRates = LEARNING_RATES

    def max_trials(self, prior: str) -> int:
        return len(self.learning_rates)


class DEELBo(Method):
    """As `ELBo`, with the likelihood counted kappa times; kappa = D/N unless the configuration says otherwise."""

    name = "de-elbo"
    title = "DE ELBo"
    bayesian = True
    Settings = DEELBoSettings
    settings: DEELBoSettings

    def initial_trials(self) -> Iterable[TrialSpec]:
        return [self.spec("run", rate, **self.settings.spec_fields) for rate in self.settings.learning_rates]
