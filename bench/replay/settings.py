"""Settings with which methods are replayed: the benchmark's own entries, or defaults on the grid."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.config.benchmark import Benchmark
from bench.config.loading import apply_override, parse_benchmark
from bench.exceptions import ConfigError
from bench.methods import METHODS, REGISTRY, method_named
from bench.methods.base import MethodSettings
from bench.methods.grid_search import Grid, MAPGridSearch
from bench.replay.grid_table import GridTable
from bench.utils.text import short_repr

REPETITIONS = {"bo": 20}
"""Default repetitions of slow methods: a Gaussian process takes 0.6 s of one core for a grid of 24 configurations,
random search a thousandth of that."""
DEFAULT_REPETITIONS = 200
KEPT_OFF_GRID = ("method", "priors", "sampler", "seed", "startup")
"""Settings kept of an entry that samples from ranges; the grid replaces the others."""


def replay_settings(
    benchmark: Benchmark, table: GridTable, names: Sequence[str], changes: Sequence[str] = ()
) -> dict[str, MethodSettings]:
    """Choose the settings with which each named entry is replayed, after changes such as ``asha.rungs=[0.2]``.

    An entry of the benchmark keeps its settings. Other methods, and entries that sample from ranges (``grid: false``),
    get the grid's learning rates and strengths and as many trials as the grid has. Every incumbent is retrained,
    whatever an entry says: that costs nothing here, and makes the curve known at every number.

    Raises:
        ConfigError: an unknown key or method, an invalid value, or a method that a grid cannot answer.
    """
    prior, entries = table.cell.prior, benchmark.content()["methods"]
    content: dict[str, dict[str, Any]] = {}
    for name, given in _parse_changes(names, changes).items():
        entry = entries.get(name, {})
        kind = _replayable_kind(name, entry | given)
        on_grid = name in entries and not is_off_grid(benchmark, name)
        content[name] = (entry if on_grid else _defaults(kind, table, entry, given.get("trials"))) | given
        if "retrain" in kind.model_fields:
            content[name] |= {"retrain": "incumbents"}
    content = {name: given for name, given in content.items() if prior in (given.get("priors") or [prior])}
    if not content:
        return {}
    settings = parse_benchmark(benchmark.content() | {"methods": content, "priors": [prior]}, "replay").methods
    for name, checked in settings.items():
        _check(name, checked, prior)
    return settings


def is_off_grid(benchmark: Benchmark, name: str) -> bool:
    """Return True if the benchmark has an entry of that name that samples from ranges instead of a grid."""
    return name in benchmark.methods and getattr(benchmark.methods[name], "grid", True) is False


def _parse_changes(names: Sequence[str], changes: Sequence[str]) -> dict[str, dict[str, Any]]:
    parsed: dict[str, Any] = {name: {} for name in names}
    for change in changes:
        if (entry := change.partition("=")[0].partition(".")[0]) not in parsed:
            raise ConfigError(f"--set {change}: {entry} is not replayed: use one of {', '.join(names)}")
        apply_override(parsed, change)
    for name, given in parsed.items():
        if not isinstance(given, dict):
            raise ConfigError(
                f"--set {name}={short_repr.repr(given)}: {name} has keys, such as {name}.trials=12: set one"
            )
    return parsed


def _check(name: str, settings: MethodSettings, prior: str) -> None:
    if getattr(settings, "grid", True) is False:
        raise ConfigError(f"{name} with grid: false proposes trials that are on no grid: set {name}.grid to true")
    if (problem := settings.find_problem(prior)) is not None:
        raise ConfigError(f"methods.{name}: {problem}")
    if (missing := settings.missing_package()) is not None:
        raise ConfigError(
            f"{name} needs the package {missing}, which is not installed: pip install 'deelbo[methods]', "
            f"or leave {name} out of --methods"
        )


def _defaults(
    kind: type[MethodSettings], table: GridTable, entry: Mapping[str, Any], trials: Any = None
) -> dict[str, Any]:
    """Settings of a method that the benchmark does not have on a grid: the whole grid."""
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    given = table.grid.settings.model_dump(mode="json", include=set(Grid.model_fields) - {"method", "priors"})
    given |= {"trials": len(table), "grid": True} | {key: entry[key] for key in KEPT_OFF_GRID if key in entry}
    if "startup" in fields:  # some of few trials must be left to the sampler
        count = trials if isinstance(trials, int) else len(table)
        given["startup"] = min(given.get("startup", fields["startup"].default), max(count // 2, 1))
    return {key: value for key, value in given.items() if key in fields}


def _replayable_kind(name: str, given: Mapping[str, Any]) -> type[MethodSettings]:
    replayable = [method.name for method in METHODS if _is_replayable(method.Settings)]
    method = given.get("method", name)
    if not isinstance(method, str) or method not in REGISTRY:
        raise ConfigError(
            f"no method {method!r} to replay: use one of {', '.join(replayable)}, or name one of them by {name}.method"
        )
    kind = method_named(method).Settings
    if not _is_replayable(kind):
        raise ConfigError(
            f"{name} cannot be replayed: its trials are not those of a grid, or have no order; use "
            f"{', '.join(replayable)}"
        )
    return kind


def _is_replayable(kind: type[MethodSettings]) -> bool:
    """Return True if a method proposes configurations of a grid one after the other."""
    return issubclass(kind, Grid) and "seed" in kind.model_fields and kind is not MAPGridSearch.Settings
