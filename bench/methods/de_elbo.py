"""DE ELBo: learn the regularization by the data-emphasized ELBo; one run per learning rate, on all N images."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from bench.methods.base import Method, MethodSettings, learned_strengths, metric_rank
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.types import DEFAULT_LEARNING_RATES, Flag, LearningRates, Number, Positive, parse_number

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
    """Settings that all DE ELBo methods share; those that the published method lacks are off by default.

    Attributes:
        kappa: the likelihood's factor.
        groups: which weights share a prior variance.
        batchnorm: "running" statistics, or their estimate at the posterior "mean" when training has ended.
        closing: statistics of the draws by which the closing objective is measured: "running", or those of each "draw".
        noise_until: share of the steps that draw from the posterior; the rest is MAP with the learned strengths.
        start_alpha: weight decay of the backbone from which training starts; None: that of ``training.sigma``.
    """

    kappa: Annotated[str | float, BeforeValidator(_kappa)] = "D/N"
    groups: Annotated[str, BeforeValidator(_groups)] = BACKBONE_AND_HEAD
    batchnorm: Literal["running", "mean"] = "running"
    closing: Literal["running", "draw"] = "running"
    noise_until: Annotated[float, Number, Field(gt=0, le=1)] = 1.0
    start_alpha: Positive | None = None

    def find_problem(self, prior: str) -> str | None:
        if self.groups == "layer" and prior == "ptyl":
            return (
                "groups = layer with prior ptyl, whose covariance is one over all of the backbone: set groups to "
                "[backbone, head], or priors to l2-zero and l2-sp"
            )
        return None

    def find_training_problem(self, training: Mapping[str, Any]) -> str | None:
        if training["train"] == "head" and (self.batchnorm, self.closing) != ("running", "running"):
            return (
                f"batchnorm = {self.batchnorm} and closing = {self.closing} with training.train = head, which leaves "
                "all statistics as pretrained: set both to running, or leave them out"
            )
        return None

    @property
    def spec_fields(self) -> dict[str, Any]:
        """The fields of `TrialSpec` that these settings determine."""
        is_number = isinstance(self.kappa, float)
        share = 1.0 if isinstance(self.kappa, float) else float(self.kappa.removesuffix("D/N") or 1)
        return {
            "kappa" if is_number else "kappa_share": self.kappa if is_number else share,
            "groups": self.groups,
            "final_batchnorm": self.batchnorm,
            "closing_batchnorm": self.closing,
            "noise_until": self.noise_until,
            "start_alpha": self.start_alpha,
        }


class DEELBoSettings(DEELBoOptions):
    method: Literal["de-elbo"] = "de-elbo"
    learning_rates: LearningRates = DEFAULT_LEARNING_RATES
    retrain: Flag = False

    def find_problem(self, prior: str) -> str | None:
        if self.retrain and self.groups == "layer":
            return "retrain: true with groups = layer, as MAP has one strength for all of the backbone: leave out one"
        return super().find_problem(prior)

    def max_trials(self, prior: str) -> int:
        return len(self.learning_rates) + self.retrain


class DEELBo(Method):
    """As `ELBo`, with the likelihood weighted by kappa, D/N by default.

    With ``retrain`` the best run's learned strengths are given to MAP, which is trained once more on all N images.
    """

    name = "de-elbo"
    title = "DE ELBo"
    bayesian = True
    Settings = DEELBoSettings
    settings: DEELBoSettings

    def initial_trials(self) -> Iterable[TrialSpec]:
        self._runs: dict[int | None, TrialRecord] = {}
        fields = self.settings.spec_fields
        rates = enumerate(self.settings.learning_rates)
        if not self.settings.retrain:
            return [self.spec("run", rate, **fields) for _, rate in rates]
        return [self.spec("run", rate, number=i, **fields) for i, rate in rates]

    def next_trials(self, record: TrialRecord) -> Iterable[TrialSpec]:
        if not self.settings.retrain or record.spec.stage != "run":
            return ()
        self._runs[record.spec.number] = record
        if len(self._runs) < len(self.settings.learning_rates):
            return ()
        best = min(self._runs.values(), key=lambda run: (metric_rank(run, "objective"), run.spec.number))
        if (strengths := learned_strengths(best)) is None:
            return ()
        if self.cell.prior == "ptyl" and (alpha := strengths["weight_decay"]) is not None:
            strengths |= {"weight_decay": None, "prior_scale": 1 / (self.cell.n * alpha)}
        point = {"noise_until": 1.0, "final_batchnorm": "running", "closing_batchnorm": "running", "start_alpha": None}
        return [self.retraining(replace(best.spec, kappa=None, **point, **strengths))]  # type: ignore[arg-type]

    def stages(self) -> Counter[str]:
        return Counter(run=len(self.settings.learning_rates)) + Counter(retrain=int(self.settings.retrain))


class DEELBoBestSettings(DEELBoSettings):
    """As `DEELBoSettings`, with other defaults; docs/findings.md says on which data they were chosen."""

    method: Literal["de-elbo-best"] = "de-elbo-best"  # type: ignore[assignment]
    kappa: Annotated[str | float, BeforeValidator(_kappa)] = "10.0 D/N"
    batchnorm: Literal["running", "mean"] = "mean"
    closing: Literal["running", "draw"] = "draw"
    noise_until: Annotated[float, Number, Field(gt=0, le=1)] = 0.85
    start_alpha: Positive | None = 0.01


class DEELBoBest(DEELBo):
    """The DE ELBo with the options that keep its accuracy, on by default."""

    name = "de-elbo-best"
    title = "DE ELBo, best"
    Settings = DEELBoBestSettings
    settings: DEELBoBestSettings
