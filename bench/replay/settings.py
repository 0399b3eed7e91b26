"""The command `replay`: which methods, with what settings, how often; a file of what came, and a table of its means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.config.benchmark import Benchmark
from bench.config.loading import apply_override, parse_benchmark
from bench.exceptions import ConfigError
from bench.methods import METHODS, method_named
from bench.methods.base import MethodSettings
from bench.methods.grid_search import Grid, MAPGridSearch
from bench.replay.grid_table import GridTable
from bench.utils.text import short_repr

__all__ = ["REPETITIONS", "is_off_grid", "replay_settings"]


REPETITIONS = {"bo": 20}
"""How often each method is replayed unless told otherwise; those that are not named: `OFTEN`. A Gaussian process takes
0.6 s of one core for a grid of 24, random search a thousandth of that."""
OFTEN = 200
OFF_GRID = ("method", "priors", "sampler", "seed", "startup")
"""What is kept of an entry that chooses from boxes: the rest says where and how often, which the grid decides."""


def replay_settings(
    benchmark: Benchmark, table: GridTable, names: Sequence[str], changes: Sequence[str] = ()
) -> dict[str, MethodSettings]:
    """The settings with which each of the named entries is replayed on that table.

    Those of the benchmark's own entry of that name where it has one. Otherwise the method of that name by default, on
    the grid's learning rates and strengths and with as many trials as the grid has; so too where the own entry chooses
    from boxes (``grid: false``), of which `OFF_GRID` are kept. Every best so far is trained again, whatever an entry
    says: that costs nothing here, and makes the curve known at every number.

    Args:
        benchmark: the storage's.
        table: of a cell.
        names: of entries, or of methods.
        changes: such as ``asha.rungs=[0.2]``, made before anything is checked.

    Raises:
        ConfigError: an unknown key or method, a value that makes no sense, or a method that a grid cannot answer.
    """
    prior, own = table.cell.prior, benchmark.content()["methods"]
    changed: dict[str, Any] = {name: {} for name in names}
    for change in changes:
        if (entry := change.partition("=")[0].partition(".")[0]) not in changed:
            raise ConfigError(f"--set {change}: {entry} is not replayed: use one of {', '.join(names)}")
        apply_override(changed, change)
    content: dict[str, dict[str, Any]] = {}
    for name, given in changed.items():
        if not isinstance(given, dict):
            raise ConfigError(
                f"--set {name}={short_repr.repr(given)}: {name} has keys, such as {name}.trials=12: set one"
            )
        kind = _replayable(name, own.get(name, {}) | given)
        as_it_is = name in own and not is_off_grid(benchmark, name)
        base = own[name] if as_it_is else _by_default(kind, table, own.get(name, {}), given.get("trials"))
        content[name] = base | given
        if "retrain" in kind.model_fields:
            content[name] |= {"retrain": "incumbents"}
    here = {name: given for name, given in content.items() if prior in (given.get("priors") or [prior])}
    if not here:
        return {}
    checked = parse_benchmark(benchmark.content() | {"methods": here, "priors": [prior]}, "replay").methods
    for name, settings in checked.items():
        if getattr(settings, "grid", True) is False:
            raise ConfigError(f"{name} with grid: false asks for what is on no grid: set {name}.grid to true")
        if (problem := settings.find_problem(prior)) is not None:
            raise ConfigError(f"methods.{name}: {problem}")
        if (missing := settings.missing_package()) is not None:
            raise ConfigError(
                f"{name} needs the package {missing}, which is not installed: pip install 'deelbo[methods]', "
                f"or leave {name} out of --methods"
            )
    return checked


def is_off_grid(benchmark: Benchmark, name: str) -> bool:
    """Whether the benchmark has an entry of that name which chooses from boxes and not from a grid."""
    return name in benchmark.methods and getattr(benchmark.methods[name], "grid", True) is False


def _by_default(
    kind: type[MethodSettings], table: GridTable, own: Mapping[str, Any], trials: Any = None
) -> dict[str, Any]:
    """What a method is given that the benchmark does not have, or not on a grid: the grid, all of it."""
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    given = table.grid.settings.model_dump(mode="json", include=set(Grid.model_fields) - {"method", "priors"})
    given |= {"trials": len(table), "grid": True} | {key: own[key] for key in OFF_GRID if key in own}
    if "startup" in fields:  # of few trials some must be left to the sampler
        count = trials if isinstance(trials, int) else len(table)
        given["startup"] = min(given.get("startup", fields["startup"].default), max(count // 2, 1))
    return {key: value for key, value in given.items() if key in fields}


def _replayable(name: str, given: Mapping[str, Any]) -> type[MethodSettings]:
    can = [method.name for method in METHODS if _on_grid(method.Settings)]
    method = given.get("method", name)
    if method not in [one.name for one in METHODS]:
        raise ConfigError(
            f"no method {method!r} to replay: use one of {', '.join(can)}, or name one of them by {name}.method"
        )
    kind = method_named(str(method)).Settings
    if not _on_grid(kind):
        raise ConfigError(
            f"{name} cannot be replayed: its trials are not those of a grid, or have no order; use {', '.join(can)}"
        )
    return kind


def _on_grid(kind: type[MethodSettings]) -> bool:
    """Whether a method draws configurations of a grid, one after the other."""
    return issubclass(kind, Grid) and "seed" in kind.model_fields and kind is not MAPGridSearch.Settings
