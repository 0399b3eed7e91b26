"""A benchmark as people write it: a short YAML file, checked before anything starts."""

from __future__ import annotations

import math
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

__all__ = [
    "PRESETS",
    "Benchmark",
    "ConfigError",
    "DEELBoSettings",
    "GridSearchSettings",
    "Training",
    "load_benchmark",
    "preset_names",
]

SHORT = reprlib.Repr()  # never spells out a whole structure: an alias in YAML may stand for billions of values
SHORT.maxstring = SHORT.maxother = 60
SHORT.maxlevel = 2
LARGEST_FILE = 1_000_000
LEAST_SIGMA = 1e-12  # that of deelbo.posterior, whose import takes seconds

PRESETS = Path(__file__).parent / "presets"


class ConfigError(ValueError):
    """Bad input, in one line: what came, what was expected, what to do."""


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


def _filled(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("must hold at least one value")
    if len(set(values)) < len(values):
        raise ValueError("must not hold a value twice")
    return values


Number = BeforeValidator(_number)
Filled = AfterValidator(_filled)
Positive = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Number, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Prior = Literal["l2-zero", "l2-sp", "ptyl"]
Retrain = Literal["best", "all"]


class Strict(BaseModel):
    """No unknown keys, and nothing changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


LEARNING_RATES = (0.1, 0.01, 0.001, 0.0001)


class GridSearchSettings(Strict):
    """MAP + grid search. One strength for backbone and head (alpha = beta) with L2-zero and L2-SP; with PTYL the
    backbone's is its prior's scale lambda, and ``weight_decays`` are the head's."""

    learning_rates: Annotated[tuple[Positive, ...], Filled] = LEARNING_RATES
    weight_decays: Annotated[tuple[NotNegative, ...], Filled] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0)
    ptyl_lambdas: Annotated[tuple[Positive, ...], Filled] = tuple(10.0**i for i in range(10))
    retrain: Annotated[Retrain | dict[Prior, Retrain], BeforeValidator(_retrain)] = "best"

    def retrains(self, prior: str) -> Retrain:
        """Which tuned configurations of that prior are trained again on all N images."""
        if isinstance(self.retrain, dict):
            return self.retrain.get(prior, "best")  # type: ignore[call-overload, no-any-return]
        return self.retrain


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


class Training(Strict):
    """How every run is trained, whatever its method. See `deelbo.Schedule`."""

    steps: Count = 6000
    batch_size: Count = 128
    momentum: Annotated[float, Number, Field(ge=0, lt=1)] = 0.9
    clip_norm: Positive = 1.0
    sigma: Annotated[float, Number, Field(ge=LEAST_SIGMA, allow_inf_nan=False)] = 1e-4
    posterior_passes: Count = 10
    series_points: Count = 20


class Resources(Strict):
    """What one trial takes, and how many run at once (``slots``; as many as fit where it is not given)."""

    cpus_per_trial: Count = 1
    gpus_per_trial: NotNegative = 0
    slots: Count | None = None


class Benchmark(Strict):
    """Everything a benchmark is. Each (prior, n, seed) is a cell in which all the methods compete."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    dataset: str
    backbone: str
    head: str | None = None
    priors: Annotated[tuple[Prior, ...], Filled]
    n: Annotated[tuple[Count, ...], Filled]
    seeds: Annotated[tuple[Seed, ...], Filled]
    methods: Methods
    training: Training = Training()
    resources: Resources = Resources()
    order_seed: Seed = 0
    max_failures: Annotated[int, Field(ge=0, strict=True)] = 2

    def content(self) -> dict[str, Any]:
        """As its YAML file would be read; `parse_benchmark` takes it back."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def settings_that_bind(self) -> dict[str, Any]:
        """What must be the same for two runs of a benchmark to share a storage: all else may be extended."""
        return self.model_dump(mode="json", include={"name", "dataset", "backbone", "head", "training"})


def preset_names() -> list[str]:
    """The benchmarks that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_benchmark(config: str) -> Benchmark:
    """Reads a preset by name, or a YAML file by path.

    Raises:
        ConfigError: no such preset or file, not YAML, an unknown key, or a value that makes no sense.
    """
    path = PRESETS / f"{config}.yaml" if config in preset_names() else Path(config)
    if not path.is_file():
        raise ConfigError(f"no preset or file {config!r}: give a YAML file, or one of {', '.join(preset_names())}")
    if path.stat().st_size > LARGEST_FILE:
        raise ConfigError(f"{config} has {path.stat().st_size} bytes: a benchmark is a short YAML file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{config}: not a YAML file that can be read ({one_line(error)}): mend the file") from error
    return parse_benchmark(content, config)


def parse_benchmark(content: Any, source: str) -> Benchmark:
    """Checks what a YAML file held. Raises ConfigError, naming the key, as `load_benchmark` does."""
    if not isinstance(content, dict):
        raise ConfigError(
            f"{source}: expected keys such as name, dataset, methods; got {type(content).__name__}: see docs/config.md"
        )
    try:
        return Benchmark.model_validate(content)
    except ValidationError as error:
        problems = [_problem(details) for details in error.errors()]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(" ".join(f"{source}: {problems[0]}{more}".split())) from error


def _problem(details: Any) -> str:
    branches = ("function-", "tuple[", "dict[", "literal[")
    parts = [str(part) for part in details["loc"] if not str(part).startswith(branches)]
    key = ".".join(parts) or "the benchmark"
    if details["type"] == "extra_forbidden":
        known = _keys_beside(details["loc"])
        return f"unknown key {key}: remove it, or use one of {known}"
    if details["type"] == "missing":
        return f"key {key} is missing: add it"
    message = details["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if details["type"] == "tuple_type":
        message = "must be a list, [...]"
    if details["type"] == "value_error" and isinstance(details["input"], dict | BaseModel):
        return f"{key}: {message}"
    return f"{key} = {SHORT.repr(details['input'])}: {message}"


def _keys_beside(location: Annotated[tuple[Any, ...], Filled]) -> str:
    """The keys that exist where an unknown one was found."""
    model: Any = Benchmark
    for part in location[:-1]:
        by_alias = {field.alias or name: field for name, field in model.model_fields.items()}
        annotation = by_alias[str(part)].annotation if str(part) in by_alias else None
        choices = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        inner = [a for a in choices if issubclass(a, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return ", ".join(field.alias or name for name, field in model.model_fields.items())


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks."""
    return " ".join(str(error).split())
