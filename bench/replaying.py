"""The command `replay`: which methods, with what settings, how often; a file of what came, and a table of its means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.benchmark import Benchmark
from bench.config import ConfigError, override, parse_benchmark
from bench.console import console, short
from bench.grid_table import GridTable, grid_tables
from bench.methods import METHODS, MethodSettings, method_named
from bench.methods.grid_search import Grid, MAPGridSearch
from bench.names import PRIOR_NAMES, dataset_name, in_order, method_name
from bench.records import RecordError, RecordStore
from bench.replay import replay
from bench.report import write_report
from bench.results import from_storage
from bench.said import SHORT

__all__ = ["AFTER", "REPETITIONS", "entries", "means", "off_grid", "run_replay"]

REPETITIONS = {"bo": 20}
"""How often each method is replayed unless told otherwise; those that are not named: `OFTEN`. A Gaussian process takes
0.6 s of one core for a grid of 24, random search a thousandth of that."""
OFTEN = 200
OFF_GRID = ("method", "priors", "sampler", "seed", "startup")
"""What is kept of an entry that chooses from boxes: the rest says where and how often, which the grid decides."""
AFTER = (1, 4, 12)
"""After how many configurations the terminal's table looks; and after all."""


def entries(
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
        override(changed, change)
    content: dict[str, dict[str, Any]] = {}
    for name, given in changed.items():
        if not isinstance(given, dict):
            raise ConfigError(f"--set {name}={SHORT.repr(given)}: {name} has keys, such as {name}.trials=12: set one")
        kind = _replayable(name, own.get(name, {}) | given)
        as_it_is = name in own and not off_grid(benchmark, name)
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
        if (problem := settings.problem(prior)) is not None:
            raise ConfigError(f"methods.{name}: {problem}")
        if (missing := settings.missing_package()) is not None:
            raise ConfigError(
                f"{name} needs the package {missing}, which is not installed: pip install 'deelbo[methods]', "
                f"or leave {name} out of --methods"
            )
    return checked


def off_grid(benchmark: Benchmark, name: str) -> bool:
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


def run_replay(
    storage: str, names: Sequence[str], changes: Sequence[str], repetitions: int | None, slots: int, out: Path | None
) -> int:
    """Replays methods on all finished grids of a storage. Writes replay.csv and a report in which they stand beside
    what ran, and prints their means.

    Raises:
        RecordError: the storage has no finished grid, or series that lack an epoch.
        ConfigError: as `entries` does.
    """
    store = RecordStore(storage)
    content = store.read_benchmark()
    if content is None:
        raise RecordError(f"{store.url} holds no benchmark: give the storage of a finished `run`")
    benchmark = parse_benchmark(content, store.path("benchmark.json"))
    tables, left_out = grid_tables(store, benchmark)
    asked = [(table, entries(benchmark, table, names, changes)) for table in tables]  # all are checked before one runs
    parts = []
    with console.status("reading the grids' series") as status:
        for grid, settings in asked:
            for name, one in settings.items():
                grid.check(name, one)
        for name in names:
            if off_grid(benchmark, name):
                console.print(f"{name} is replayed on the grid: the benchmark's own (grid: false) may leave it")
        for i, (grid, settings) in enumerate(asked, start=1):
            for name, one in settings.items():
                often = repetitions or REPETITIONS.get(one.method, OFTEN)
                status.update(f"replaying cell {i} of {len(asked)}: {name}, {often} times")
                parts.append(replay(benchmark, grid, name, one, often, slots))
    if not parts:
        raise ConfigError(f"{', '.join(names)}: none runs on a prior of the finished grids: choose others by --methods")
    found = pd.concat(parts, ignore_index=True)
    folder = out or Path(store.path("replay") if store.local else "replay")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be a folder ({error.strerror}): give another --out") from error
    file = folder / "replay.csv"
    found.to_csv(file, index=False, float_format="%.9g")
    for table in _printed(means(found), slots, {grid.cell.backbone: grid.handover for grid in tables}):
        console.print(table)
    if not all(grid.timed for grid in tables):
        console.print("The grid ran with timed: false: its seconds are no measurement, and not to be compared.")
    for line in left_out:
        console.print(f"left out: {line}")
    files = write_report([from_storage(store)], folder, replays=found)
    for name, path in sorted({"replay.csv": file, **files}.items()):
        console.print(f"{name:22} {short(path)}")
    return 0


def means(found: pd.DataFrame, after: Sequence[int] = AFTER) -> pd.DataFrame:
    """Mean accuracy and seconds of each method after some numbers of configurations, over seeds and repetitions.

    Columns: source, dataset, backbone, n, prior, method, repetitions, after (0: all), hours, test_acc, wall_hours. A
    mean of which any part is unknown is NaN.
    """
    place = ["source", "dataset", "backbone", "n", "prior", "method"]
    keys = [*place, "seed", "repetition"]
    last = found.groupby(keys, sort=False, dropna=False)["number"].transform("max")
    parts = [found[found["number"] == k].assign(after=k) for k in after]
    parts.append(found[found["number"] == last].assign(after=0))
    rows = pd.concat(parts, ignore_index=True)
    grouped = rows.groupby([*place, "after"], sort=False, dropna=False)
    table = grouped[["hours", "test_acc", "wall_hours"]].agg(lambda values: values.mean(skipna=False))
    table["repetitions"] = grouped["repetition"].nunique()
    return in_order(table.reset_index(), "after")


def _printed(table: pd.DataFrame, slots: int, handovers: Mapping[str, float | None]) -> Iterator[Table]:
    """A table for each dataset, N and backbone, with a line for each prior and method; below it, what is not paid."""
    what, column = ("compute", "hours") if slots == 1 else (f"wall-clock time on {slots} slots", "wall_hours")
    for (dataset, backbone, n), block in table.groupby(["dataset", "backbone", "n"], sort=False):
        printed = Table(
            title=f"{dataset_name(dataset)}, N = {n}, {backbone}: mean test accuracy and {what}, after configurations",
            title_justify="left",
            caption=f"Not counted: choosing what to try next{_handing_over(handovers[backbone])}",
            caption_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for name in ("", "method"):
            printed.add_column(name, no_wrap=True)
        for k in (*AFTER, 0):
            printed.add_column(str(k or "all"), justify="right", no_wrap=True)
        for (prior, method), lines in block.groupby(["prior", "method"], sort=False):
            by = lines.set_index("after")
            cells = [_cell(by.loc[k, "test_acc"], by.loc[k, column]) if k in by.index else "" for k in (*AFTER, 0)]
            printed.add_row(PRIOR_NAMES[prior], method_name(method), *cells)
        yield printed


def _handing_over(seconds: float | None) -> str:
    if seconds is None:
        return "; handing parts of runs over, as the storage has no part of a tuning run."
    return f". Handing a part of a run over counts {seconds:.2g} s, the storage's median."


def _cell(accuracy: float, hours: float) -> str:
    return f"{'-' if pd.isna(accuracy) else f'{accuracy:.1%}'} {_time(hours)}"


def _time(hours: float) -> str:
    seconds = hours * 3600
    if seconds < 1000:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{hours:,.1f} h"
