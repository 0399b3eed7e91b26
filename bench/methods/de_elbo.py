"""DE ELBo: learn the regularization by the data-emphasized ELBo; one run per learning rate, on all N images."""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from bench.methods.base import Method, MethodSettings
from bench.trials.spec import TrialSpec
from bench.types import DEFAULT_LEARNING_RATES, LearningRates, parse_number

BACKBONE_AND_HEAD = "backbone+head"


def _kappa(value: Any) -> Any:
    relative = isinstance(value, str) and value.strip().endswith("D/N")
    if relative:
        value = value.strip().removesuffix("D/N").strip().removesuffix("*").strip() or 1.0
    try:
        factor = float(parse_number(value)) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ValueError("must be D/N, a share of it such as 0.1 D/N, or a positive number")
    if not relative:
        return factor
    return "D/N" if factor == 1 else f"{factor!r} D/N"


def _groups(value: Any) -> Any:
    if value in ("layer", BACKBONE_AND_HEAD):
        return value
    if isinstance(value, list | tuple) and set(value) == {"backbone", "head"}:
        return BACKBONE_AND_HEAD
    raise ValueError("must be layer, or [backbone, head]")


class DEELBoOptions(MethodSettings):
    """Settings that all DE ELBo methods share: the likelihood's factor, and which weights share a prior variance."""

    kappa: Annotated[str | float, BeforeValidator(_kappa)] = "D/N"
    groups: Annotated[str, BeforeValidator(_groups)] = BACKBONE_AND_HEAD

    def find_problem(self, prior: str) -> str | None:
        if self.groups == "layer" and prior == "ptyl":
            return (
                "groups = layer with prior ptyl, whose covariance is one over all of the backbone: set groups to "
                "[backbone, head], or priors to l2-zero and l2-sp"
            )
        return None

    @property
    def spec_fields(self) -> dict[str, Any]:
        """The fields of `TrialSpec` that these settings determine."""
        if isinstance(self.kappa, float):
            return {"kappa": self.kappa, "groups": self.groups}
        return {"kappa_share": float(self.kappa.removesuffix("D/N") or 1), "groups": self.groups}


class DEELBoSettings(DEELBoOptions):
    method: Literal["de-elbo"] = "de-elbo"
    learning_rates: LearningRates = DEFAULT_LEARNING_RATES

    def max_trials(self, prior: str) -> int:
        return len(self.learning_rates)


class DEELBo(Method):
    """As `ELBo`, with the likelihood weighted by kappa, D/N by default."""

    name = "de-elbo"
    title = "DE ELBo"
    bayesian = True
    Settings = DEELBoSettings
    settings: DEELBoSettings

    def initial_trials(self) -> Iterable[TrialSpec]:
        return [self.spec("run", rate, **self.settings.spec_fields) for rate in self.settings.learning_rates]
