"""What a benchmark is: its settings, their types, what is taken where nothing is given, and what makes no sense."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Self, Union

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bench.config.sections import BackboneSettings, Resources, Training
from bench.methods import METHODS, method_named
from bench.methods.base import Method, MethodSettings
from bench.trials.spec import Cell, TrialTemplate
from bench.types import Count, Filled, Name, Positive, Prior, Seed, Strict, filled
from bench.utils.text import short_repr

__all__ = ["EMBEDDED", "Benchmark", "make_methods", "trial_template"]


EMBEDDED = "digits-resnet"
"""The backbone that comes with the package: made here, its weights and its SWAG posterior too."""
MOST_TRIALS = 100_000  # 17 times the paper's; each takes 10 microseconds and 3 KB before anything runs


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
            sum(one.max_trials(prior) for one, prior in running)
            * sum(map(len, self.datasets.values()))
            * len(self.backbones)
            * len(self.seeds)
        )
        if count > MOST_TRIALS:
            raise ValueError(
                f"{short_repr.repr(count)} trials are asked for, expected at most {MOST_TRIALS}: make the grids "
                "smaller, or "
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
                    raise ValueError(f"{short} = {short_repr.repr(name)}: must be a name")
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
                raise ValueError(f"backbones = {short_repr.repr(named)}: {error}") from None
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

    def identity_settings(self) -> dict[str, Any]:
        """Return the settings in which runs that share a storage must agree; all others may be extended."""
        resources = {"cpus_per_trial", "gpus_per_trial"}  # threads and devices decide the last digits, and all seconds
        return self.model_dump(
            mode="json", include={"name": True, "training": True, "verify_data": True, "resources": resources}
        )


def trial_template(benchmark: Benchmark, cell: Cell) -> TrialTemplate:
    """Return the fields that all trials of a cell share."""
    return TrialTemplate(cell, benchmark.backbones[cell.backbone].head, benchmark.training.model_dump())


def make_methods(benchmark: Benchmark) -> list[Method]:
    """Every entry of the benchmark, once for each of the cells that it runs in."""
    sizes = [(dataset, n) for dataset, sizes in benchmark.datasets.items() for n in sizes]
    where = product(sizes, benchmark.backbones, benchmark.priors, benchmark.seeds)
    templates = [
        trial_template(benchmark, Cell(dataset, backbone, prior, n, seed))
        for (dataset, n), backbone, prior, seed in where
    ]
    return [
        method_named(settings.method)(template, settings, name)
        for template in templates
        for name, settings in benchmark.methods.items()
        if settings.runs_on(template.cell.prior)
    ]
