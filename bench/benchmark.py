"""What a benchmark is: its settings, their types, what is taken where nothing is given, and what makes no sense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StringConstraints, model_validator

from bench.methods import METHODS, MethodSettings
from bench.said import SHORT
from bench.setting_types import Count, Filled, NotNegative, Number, Positive, Prior, Seed, Strict, filled

__all__ = ["EMBEDDED", "BackboneSettings", "Benchmark", "SWAGFiles", "Training"]

EMBEDDED = "digits-resnet"
"""The backbone that comes with the package: made here, its weights and its SWAG posterior too."""
MOST_TRIALS = 100_000  # 17 times the paper's; each takes 10 microseconds and 3 KB before anything runs
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
LEAST_SIGMA = 1e-12  # that of deelbo.posterior, whose import takes seconds


def _swag_files(value: Any) -> Any:
    if value is not None and not isinstance(value, str | BaseModel):
        parts = value if isinstance(value, dict) else {}
        if set(parts) != {"mean", "variance", "factor"} or not all(isinstance(part, str) for part in parts.values()):
            raise ValueError("must be a file, or {mean: FILE, variance: FILE, factor: FILE}")
    return value


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
    accelerator: Annotated[str, StringConstraints(pattern=NAME)] | None = None

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


def _entries(methods: Any) -> Any:
    """Every entry with the name of its method, which is its own where none is given; nothing behind a name asks for the
    method as it is by default."""
    if not isinstance(methods, dict):
        return methods
    full = {name: {} if settings is None else settings for name, settings in methods.items()}
    return {
        name: {"method": name} | settings if isinstance(settings, dict) else settings for name, settings in full.items()
    }


def _some(methods: Any) -> Any:
    if not methods:
        raise ValueError(f"names no method: give at least one of {', '.join(method.name for method in METHODS)}")
    for name, entry in methods.items():
        if entry.method != name and name in {method.name for method in METHODS}:
            raise ValueError(f"{name} is a method and would stand for {entry.method}: give that entry another name")
    return methods


if TYPE_CHECKING:
    Entry = MethodSettings
else:
    Entry = Annotated[Union[tuple(method.Settings for method in METHODS)], Field(discriminator="method")]  # noqa: UP007

IN_SHORT = {"datasets": ("dataset", "n"), "backbones": ("backbone", "head")}
"""One dataset, or one backbone, may be named without a mapping."""


class Benchmark(Strict):
    """Everything a benchmark is. Each (dataset, n, backbone, prior, seed) is a cell in which all the methods compete.

    ``dataset`` with ``n``, and ``backbone`` with ``head``, are read as short for one of ``datasets`` and ``backbones``.
    ``timed`` says whether seconds are to be compared; where they are not, a run may be kept every
    ``checkpoint_minutes``, and goes on from there when its process has died.
    """

    name: Name
    datasets: Annotated[dict[str, Annotated[tuple[Count, ...], Filled]], Filled]
    backbones: Annotated[dict[str, BackboneSettings], Filled]
    priors: Annotated[tuple[Prior, ...], Filled]
    seeds: Annotated[tuple[Seed, ...], Filled]
    methods: Annotated[dict[Name, Entry], BeforeValidator(_entries), AfterValidator(_some)]
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
        running = [(one, prior) for one in self.methods.values() for prior in self.priors if one.runs_on(prior)]
        count = (
            sum(one.most_trials(prior) for one, prior in running)
            * sum(map(len, self.datasets.values()))
            * len(self.backbones)
            * len(self.seeds)
        )
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
                named = dict.fromkeys(filled(named))
            except ValueError as error:
                raise ValueError(f"backbones = {SHORT.repr(named)}: {error}") from None
        if isinstance(named, dict):
            content["backbones"] = {name: {} if settings is None else settings for name, settings in named.items()}
        return content | _resources(content)

    def content(self) -> dict[str, Any]:
        """As its YAML file would be read; `parse_benchmark` takes it back."""
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, settings in content["methods"].items():
            if settings["method"] == name:
                del settings["method"]
        return content

    def settings_that_bind(self) -> dict[str, Any]:
        """What must be the same for two runs of a benchmark to share a storage: all else may be extended."""
        resources = {"cpus_per_trial", "gpus_per_trial"}  # threads and devices decide the last digits, and all seconds
        return self.model_dump(
            mode="json", include={"name": True, "training": True, "verify_data": True, "resources": resources}
        )
