"""What a benchmark is: its settings, their types, what is taken where nothing is given, and what makes no sense."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from bench.said import SHORT

__all__ = [
    "BackboneSettings",
    "Benchmark",
    "DEELBoSettings",
    "ELBoSettings",
    "GridSearchSettings",
    "SWAGFiles",
    "Training",
]

EMBEDDED = "digits-resnet"
"""The backbone that comes with the package: made here, its weights and its SWAG posterior too."""
MOST_TRIALS = 100_000  # 17 times the paper's; each takes 10 microseconds and 3 KB before anything runs
LEAST_SIGMA = 1e-12  # that of deelbo.posterior, whose import takes seconds


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; people mean a number."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("must be a number") from None
    return value


def _kappa(value: Any) -> Any:
    if value == "D/N":
        return value
    number = _number(value) if isinstance(value, str | int | float) else None
    if number is None or not 0 < number < math.inf:
        raise ValueError("must be D/N or a positive number")
    return float(number)


def _retrain(value: Any) -> Any:
    choices = value.values() if isinstance(value, dict) else [value]
    unknown = set(value) - set(get_args(Prior)) if isinstance(value, dict) else set()
    if unknown or not all(isinstance(choice, str) and choice in get_args(Retrain) for choice in choices):
        raise ValueError(f"must be best or all, or one of them for each of {', '.join(get_args(Prior))}")
    return value


def _swag_files(value: Any) -> Any:
    if value is not None and not isinstance(value, str | BaseModel):
        parts = value if isinstance(value, dict) else {}
        if set(parts) != {"mean", "variance", "factor"} or not all(isinstance(part, str) for part in parts.values()):
            raise ValueError("must be a file, or {mean: FILE, variance: FILE, factor: FILE}")
    return value


def _filled(values: Any) -> Any:
    if not values:
        raise ValueError("must hold at least one value")
    if len(set(values)) < len(values):
        raise ValueError("must not hold a value twice")
    return values


Number = BeforeValidator(_number)
Filled = AfterValidator(_filled)
Positive = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Number, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Prior = Literal["l2-zero", "l2-sp", "ptyl"]
Retrain = Literal["best", "all"]


class Strict(BaseModel):
    """No unknown keys, and nothing changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


LEARNING_RATES = (0.1, 0.01, 0.001, 0.0001)


class GridSearchSettings(Strict):
    """MAP + grid search. One strength for backbone and head (alpha = beta) with L2-zero and L2-SP, unless the prior is
    ``untied``: then alpha x beta. With PTYL the backbone's strength is its prior's scale lambda, and
    ``weight_decays`` are the head's."""

    learning_rates: Annotated[tuple[Positive, ...], Filled] = LEARNING_RATES
    weight_decays: Annotated[tuple[NotNegative, ...], Filled] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0)
    untied: tuple[Literal["l2-zero", "l2-sp"], ...] = ()
    ptyl_lambdas: Annotated[tuple[Positive, ...], Filled] = tuple(10.0**i for i in range(10))
    retrain: Annotated[Retrain | dict[Prior, Retrain], BeforeValidator(_retrain)] = "best"

    def retrains(self, prior: str) -> Retrain:
        """Which tuned configurations of that prior are trained again on all N images."""
        if isinstance(self.retrain, dict):
            return self.retrain.get(prior, "best")  # type: ignore[call-overload, no-any-return]
        return self.retrain

    def trials(self, prior: str) -> int:
        """How many a cell of that prior takes, the retrained ones included."""
        second = self.ptyl_lambdas if prior == "ptyl" else self.weight_decays if prior in self.untied else (None,)
        grid = len(self.learning_rates) * len(second) * len(self.weight_decays)
        return 2 * grid if self.retrains(prior) == "all" else grid + 1


class ELBoSettings(Strict):
    """The plain ELBo, kappa = 1: one run a learning rate."""

    learning_rates: Annotated[tuple[Positive, ...], Filled] = LEARNING_RATES


class DEELBoSettings(ELBoSettings):
    """The DE ELBo: one run a learning rate. ``kappa`` is D/N unless a number is given."""

    kappa: Annotated[Literal["D/N"] | float, BeforeValidator(_kappa)] = "D/N"


class Methods(Strict):
    """The methods in the race; at least one."""

    map_gs: GridSearchSettings | None = Field(None, alias="map-gs")
    de_elbo: DEELBoSettings | None = Field(None, alias="de-elbo")
    elbo: ELBoSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        """``elbo:`` with nothing behind it asks for the method as it is by default."""
        if isinstance(value, dict):
            return {name: {} if settings is None else settings for name, settings in value.items()}
        return value

    @model_validator(mode="after")
    def _some(self) -> Self:
        if all(settings is None for _, settings in self):
            raise ValueError("names no method: give at least one of map-gs, de-elbo, elbo")
        return self

    def trials(self, prior: str) -> int:
        """How many all of them take in a cell of that prior."""
        count = 0 if self.map_gs is None else self.map_gs.trials(prior)
        return count + sum(len(one.learning_rates) for one in (self.de_elbo, self.elbo) if one is not None)


class Training(Strict):
    """How every run is trained, whatever its method. See `deelbo.Schedule` and `deelbo.Numerics`."""

    steps: Count = 6000
    batch_size: Count = 128
    momentum: Annotated[float, Number, Field(ge=0, lt=1)] = 0.9
    clip_norm: Positive = 1.0
    sigma: Annotated[float, Number, Field(ge=LEAST_SIGMA, allow_inf_nan=False)] = 1e-4
    posterior_passes: Count = 10
    series_points: Count = 20
    image_size: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    channels_last: Annotated[bool, Field(strict=True)] = False
    compile: Annotated[bool, Field(strict=True)] = False


class Resources(Strict):
    """What one trial takes, and how many run at once (``slots``; as many as fit where it is not given).

    A `Benchmark` gives its trials a whole GPU each where ``gpus_per_trial`` is not given and its backbones need one.
    ``accelerator`` is the type of GPU that every trial gets, as Ray names it (`ray.util.accelerators`): H100.
    """

    cpus_per_trial: Count = 1
    gpus_per_trial: NotNegative = 0
    slots: Count | None = None
    accelerator: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None

    @model_validator(mode="after")
    def _some_accelerator(self) -> Self:
        """A type of GPU says nothing of trials that take none."""
        if self.accelerator is not None and not self.gpus_per_trial:
            raise ValueError(
                f"accelerator = {self.accelerator} with gpus_per_trial = 0, expected trials that take a GPU: set "
                "gpus_per_trial to 1, or leave accelerator out"
            )
        return self


class SWAGFiles(Strict):
    """PTYL's prior in three files of one tensor each."""

    mean: str
    variance: str
    factor: str


class BackboneSettings(Strict):
    """Where a backbone's weights come from, and which of its modules is the head."""

    weights: str | None = None
    ptyl: Annotated[str | SWAGFiles | None, BeforeValidator(_swag_files)] = None
    head: str | None = None


def _resources(content: dict[str, Any]) -> dict[str, Any]:
    """A whole GPU a trial where nobody said how many, and none where the only backbone is the embedded one, made for a
    laptop. It depends on no machine, or a benchmark would be another one elsewhere."""
    given, named = content.get("resources", {}), content.get("backbones")
    if not isinstance(given, dict) or "gpus_per_trial" in given or not isinstance(named, dict):
        return {}
    return {"resources": given | {"gpus_per_trial": float(set(named) != {EMBEDDED})}}


IN_SHORT = {"datasets": ("dataset", "n"), "backbones": ("backbone", "head")}
"""One dataset, or one backbone, may be named without a mapping."""


class Benchmark(Strict):
    """Everything a benchmark is. Each (dataset, n, backbone, prior, seed) is a cell in which all the methods compete.

    ``dataset`` with ``n``, and ``backbone`` with ``head``, are read as short for one of ``datasets`` and ``backbones``.
    ``timed`` says whether seconds are to be compared; where they are not, a run may be kept every
    ``checkpoint_minutes``, and goes on from there when its process has died.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    datasets: Annotated[dict[str, Annotated[tuple[Count, ...], Filled]], Filled]
    backbones: Annotated[dict[str, BackboneSettings], Filled]
    priors: Annotated[tuple[Prior, ...], Filled]
    seeds: Annotated[tuple[Seed, ...], Filled]
    methods: Methods
    training: Training = Training()
    resources: Resources = Resources()
    order_seed: Seed = 0
    max_failures: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 2
    data: str | None = None
    verify_data: Annotated[bool, Field(strict=True)] = True
    timed: Annotated[bool, Field(strict=True)] = True
    checkpoint_minutes: Positive | None = None

    @model_validator(mode="after")
    def _restarts(self) -> Self:
        """Checkpoints only where seconds are not to be compared: resuming warms up twice, and writing takes time."""
        if self.timed and self.checkpoint_minutes is not None:
            raise ValueError(
                f"checkpoint_minutes = {self.checkpoint_minutes:g} with timed: true, expected timed: false beside it, "
                "as a timed run restarts from its start: set timed: false, or leave checkpoint_minutes out"
            )
        return self

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        """Not more trials than one machine can hold a list of."""
        a_cell = [self.methods.trials(prior) for prior in self.priors]
        count = sum(a_cell) * sum(map(len, self.datasets.values())) * len(self.backbones) * len(self.seeds)
        if count > MOST_TRIALS:
            raise ValueError(
                f"{SHORT.repr(count)} trials are asked for, expected at most {MOST_TRIALS}: make the grids smaller, or "
                "several benchmarks of it"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _long_form(cls, content: Any) -> Any:
        """What is given in short, in full."""
        if not isinstance(content, dict):
            return content
        content = dict(content)
        for long, (short, setting) in IN_SHORT.items():
            given = [key for key in (short, setting) if key in content]
            if given and long in content:
                raise ValueError(f"{given[0]} and {long} are both given: keep one")
            if given == [setting]:
                raise ValueError(f"key {short} is missing: add it")
            if given:
                name = content.pop(short)
                if not isinstance(name, str):
                    raise ValueError(f"{short} = {SHORT.repr(name)}: must be a name")
                if long == "backbones":
                    content[long] = {name: {setting: content.pop(setting, None)}}
                elif setting in content:
                    content[long] = {name: content.pop(setting)}
                else:
                    raise ValueError(f"key {setting} is missing: add it")
        named = content.get("backbones")
        if isinstance(named, list) and all(isinstance(name, str) for name in named):
            try:
                named = dict.fromkeys(_filled(named))
            except ValueError as error:
                raise ValueError(f"backbones = {SHORT.repr(named)}: {error}") from None
        if isinstance(named, dict):
            content["backbones"] = {name: {} if settings is None else settings for name, settings in named.items()}
        return content | _resources(content)

    def content(self) -> dict[str, Any]:
        """As its YAML file would be read; `parse_benchmark` takes it back."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def settings_that_bind(self) -> dict[str, Any]:
        """What must be the same for two runs of a benchmark to share a storage: all else may be extended."""
        resources = {"cpus_per_trial", "gpus_per_trial"}  # threads and devices decide the last digits, and all seconds
        return self.model_dump(
            mode="json", include={"name": True, "training": True, "verify_data": True, "resources": resources}
        )
