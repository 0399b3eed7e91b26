"""A benchmark: the settings of a configuration, their types, defaults and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bench.config.sections import BackboneSettings, ImageSettings, OwnSettings, Resources, TextSettings, Training
from bench.exceptions import ConfigError
from bench.methods import REGISTRY, method_named
from bench.methods.base import Method, MethodSettings
from bench.trials.spec import Cell, TrialTemplate
from bench.types import Count, Flag, Name, Positive, Prior, Seed, StrictModel, Unique, check_unique
from bench.utils.text import short_repr
from deelbo.data import Source
from deelbo.paths import expand_user
from deelbo.pretrained.registry import TEXT_PREFIX, BackboneSource, imported_package

EMBEDDED = "digits-resnet"  # trained by this package, which also fits its SWAG posterior
MAX_TRIALS = 100_000  # 17 times the paper's; each takes 10 microseconds and 3 KB before anything runs
SHORT_FORMS = {"datasets": ("dataset", "n"), "backbones": ("backbone", "head")}


def _expand_short_form(content: dict[str, Any], key: str) -> None:
    """Replace the short form of ``key``, for a single dataset or backbone, by the mapping that it stands for."""
    name_key, setting = SHORT_FORMS[key]
    given = [k for k in (name_key, setting) if k in content]
    if given and key in content:
        raise ValueError(f"{given[0]} and {key} are both given: keep one")
    if not given:
        return
    if name_key not in content or (key == "datasets" and setting not in content):
        raise ValueError(f"key {setting if name_key in content else name_key} is missing: add it")
    name, value = content.pop(name_key), content.pop(setting, None)
    if not isinstance(name, str):
        raise ValueError(f"{name_key} = {short_repr.repr(name)}: must be a name")
    content[key] = {name: value if key == "datasets" else {setting: value}}


def _expand_backbones(backbones: Any) -> Any:
    """Return a list of names, or a mapping with empty values, as a mapping of settings."""
    if isinstance(backbones, list) and all(isinstance(name, str) for name in backbones):
        try:
            backbones = dict.fromkeys(check_unique(backbones))
        except ValueError as error:
            raise ValueError(f"backbones = {short_repr.repr(backbones)}: {error}") from None
    if isinstance(backbones, dict):
        return {name: {} if settings is None else settings for name, settings in backbones.items()}
    return backbones


def _expand_methods(methods: Any) -> Any:
    """Give each entry the name of its method, by default its own; an empty entry stands for the method's defaults."""
    if not isinstance(methods, dict):
        return methods
    return {
        name: {"method": name} | (settings or {}) if isinstance(settings, dict | None) else settings
        for name, settings in methods.items()
    }


def _check_methods(methods: Any) -> Any:
    if not methods:
        raise ValueError(f"names no method: give at least one of {REGISTRY.describe()}")
    for name, settings in methods.items():
        if settings.method != name and name in REGISTRY:
            raise ValueError(f"{name} is a method and would stand for {settings.method}: give that entry another name")
    return methods


def _read_method(settings: Any) -> Any:
    """Return the settings of an entry as the class of its method reads them."""
    if not isinstance(settings, dict):
        return settings
    name = settings["method"]
    if not isinstance(name, str) or name not in REGISTRY:
        context = {"given": short_repr.repr(name), "known": REGISTRY.describe()}
        raise PydanticCustomError("unknown_method", "no method {given}: use one of {known}", context)
    return method_named(name).Settings.model_validate(settings)


ConfiguredMethod = Annotated[SerializeAsAny[MethodSettings], BeforeValidator(_read_method)]
"""The settings of a method, of the class that its method has for them."""


def _kind_of_dataset(value: Any) -> str:
    if isinstance(value, dict):
        return "texts" if "text" in value else "images"
    return "texts" if isinstance(value, TextSettings) else "images" if isinstance(value, BaseModel) else "sizes"


Dataset = Annotated[
    Annotated[tuple[Count, ...], Unique, Tag("sizes")]
    | Annotated[ImageSettings, Tag("images")]
    | Annotated[TextSettings, Tag("texts")],
    Discriminator(_kind_of_dataset),
]
"""The sizes of a dataset that comes by its name, or the user's own images or texts."""


class Benchmark(StrictModel):
    """A whole benchmark: each (dataset, n, backbone, prior, seed) is a cell for all methods; see docs/config.md."""

    name: Name
    datasets: Annotated[dict[str, Dataset], Unique]
    backbones: Annotated[dict[str, BackboneSettings], Unique]
    priors: Annotated[tuple[Prior, ...], Unique]
    seeds: Annotated[tuple[Seed, ...], Unique]
    methods: Annotated[dict[Name, ConfiguredMethod], BeforeValidator(_expand_methods), AfterValidator(_check_methods)]
    training: Training = Training()
    resources: Resources = Resources()
    order_seed: Seed = 0
    max_failures: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 2
    data: str | None = None
    verify_data: Flag = True
    timed: Flag = True
    checkpoint_minutes: Positive | None = None
    keep: Literal["none", "chosen", "all"] = "none"

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, content: Any) -> Any:
        """Expand short forms, and set what is not given: ``gpus_per_trial`` by the backbones, ``keep`` by the data."""
        if not isinstance(content, dict):
            return content
        content = dict(content)
        for key in SHORT_FORMS:
            _expand_short_form(content, key)
        if "backbones" in content:
            content["backbones"] = _expand_backbones(content["backbones"])
        resources, backbones = content.get("resources", {}), content.get("backbones")
        if isinstance(resources, dict) and isinstance(backbones, dict):
            content["resources"] = {"gpus_per_trial": float(set(backbones) != {EMBEDDED})} | resources
        if isinstance(datasets := content.get("datasets"), dict):
            has_own = any(_kind_of_dataset(setting) != "sizes" for setting in datasets.values())
            content.setdefault("keep", "chosen" if has_own else "none")
        return content

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse checkpoints of timed runs, which take time, and more trials than one machine can hold a list of."""
        if self.timed and self.checkpoint_minutes is not None:
            raise ValueError(
                f"checkpoint_minutes = {self.checkpoint_minutes:g} with timed: true, expected timed: false beside it, "
                "as a timed run restarts from its start: set timed: false, or leave checkpoint_minutes out"
            )
        cells = sum(len(_sizes(setting)) for setting in self.datasets.values()) * len(self.backbones) * len(self.seeds)
        trials = cells * sum(
            settings.max_trials(prior)
            for settings, prior in product(self.methods.values(), self.priors)
            if settings.runs_on(prior)
        )
        if trials > MAX_TRIALS:
            raise ValueError(
                f"{short_repr.repr(trials)} trials, expected at most {MAX_TRIALS}: make the grids smaller, or split it "
                "into several benchmarks"
            )
        return self

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The training set sizes of each dataset; ConfigError for an "all" that `with_pools` has not replaced."""
        sizes = {}
        for name, setting in self.datasets.items():
            if "all" in _sizes(setting):
                raise ConfigError(f"datasets.{name}.n = all is known only where its data are: give a number")
            sizes[name] = tuple(int(n) for n in _sizes(setting))
        return sizes

    def with_pools(self, pools: Mapping[str, int]) -> Self:
        """Return the benchmark with the number of training images, of the datasets in ``pools``, for "all"."""
        datasets = dict(self.datasets)
        for name, pool in pools.items():
            if isinstance(setting := datasets[name], OwnSettings):
                n = tuple(dict.fromkeys(pool if size == "all" else size for size in setting.n))
                datasets[name] = setting.model_copy(update={"n": n})
        return self.model_copy(update={"datasets": datasets})

    def source(self, dataset: str) -> Source | None:
        """Return where a dataset is on this machine, if it is the user's own."""
        setting = self.datasets[dataset]
        if not isinstance(setting, OwnSettings):
            return None
        return setting.source(str(expand_user(setting.path).absolute()))

    def backbone_source(self, backbone: str) -> BackboneSource:
        """Return the network of a backbone; a folder of its files is one of this machine."""
        settings = self.backbones[backbone]
        pixels = settings.normalization
        mean, std = (None, None) if pixels is None else (pixels.mean, pixels.std)
        source = BackboneSource(settings.model or backbone, mean, std, settings.max_length)
        if source.text_model is not None and (folder := expand_user(source.text_model)).is_dir():
            return replace(source, model=f"{TEXT_PREFIX}{folder.absolute()}")
        return source

    def imported_packages(self) -> list[str]:
        """Return the top-level packages from which networks are imported."""
        packages = [imported_package(settings.model or "") for settings in self.backbones.values()]
        return sorted({package for package in packages if package is not None})

    def content(self) -> dict[str, Any]:
        """Return the benchmark as its YAML file would be read; `parse_benchmark` is the inverse."""
        content = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, settings in content["methods"].items():
            if settings["method"] == name:
                del settings["method"]
        return content

    def identity_settings(self) -> dict[str, Any]:
        """Return the settings in which runs that share a storage must agree; all others may be extended."""
        resources = {"cpus_per_trial", "gpus_per_trial"}  # threads and devices decide the last digits, and all seconds
        include: dict[str, Any] = {"name": True, "training": True, "verify_data": True, "resources": resources}
        return self.model_dump(mode="json", include=include)


def _sizes(setting: tuple[int, ...] | OwnSettings) -> tuple[int | str, ...]:
    return setting.n if isinstance(setting, OwnSettings) else setting


def trial_template(benchmark: Benchmark, cell: Cell) -> TrialTemplate:
    """Return the fields that all trials of a cell share."""
    return TrialTemplate(cell, benchmark.backbones[cell.backbone].head, benchmark.training.model_dump())


def make_methods(benchmark: Benchmark) -> list[Method]:
    """Return every configured method, once for each of the cells that it runs in."""
    sizes = [(dataset, n) for dataset, sizes in benchmark.sizes.items() for n in sizes]
    methods = []
    for (dataset, n), backbone, prior, seed in product(sizes, benchmark.backbones, benchmark.priors, benchmark.seeds):
        template = trial_template(benchmark, Cell(dataset, backbone, prior, n, seed))
        for name, settings in benchmark.methods.items():
            if settings.runs_on(prior):
                methods.append(method_named(settings.method)(template, settings, name))
    return methods
