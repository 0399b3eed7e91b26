"""Replay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.cli.console import console, short
from bench.config.loading import parse_benchmark
from bench.exceptions import ConfigError, RecordError
from bench.labels import PRIOR_NAMES, dataset_name, method_name
from bench.replay.grid_table import load_grid_tables
from bench.replay.settings import OFTEN, REPETITIONS, is_off_grid, replay_settings
from bench.replay.simulation import replay_method
from bench.report.build import write_report
from bench.results.frame import iterate_groups, sort_rows
from bench.results.sources import load_storage
from bench.storage.records import RecordStore
from bench.utils.text import format_duration

__all__ = ["AFTER", "means", "run_replay"]


AFTER = (1, 4, 12)
"""After how many configurations the terminal's table looks; and after all."""


def run_replay(
    storage: str, names: Sequence[str], changes: Sequence[str], repetitions: int | None, slots: int, out: Path | None
) -> int:
    """Replays methods on all finished grids of a storage. Writes replay.csv and a report in which they stand beside
    what ran, and prints their means.

    Raises:
        RecordError: the storage has no finished grid, or series that lack an epoch.
        ConfigError: as `replay_settings` does.
    """
    store = RecordStore(storage)
    content = store.read_benchmark()
    if content is None:
        raise RecordError(f"{store.url} holds no benchmark: give the storage of a finished `run`")
    benchmark = parse_benchmark(content, store.path("benchmark.json"))
    tables, left_out = load_grid_tables(store, benchmark)
    asked = [
        (table, replay_settings(benchmark, table, names, changes)) for table in tables
    ]  # all are checked before one runs
    parts = []
    with console.status("reading the grids' series") as status:
        for grid, settings in asked:
            for name, one in settings.items():
                grid.check(name, one)
        for name in names:
            if is_off_grid(benchmark, name):
                console.print(f"{name} is replayed on the grid: the benchmark's own (grid: false) may leave it")
        for i, (grid, settings) in enumerate(asked, start=1):
            for name, one in settings.items():
                often = repetitions or REPETITIONS.get(one.method, OFTEN)
                status.update(f"replaying cell {i} of {len(asked)}: {name}, {often} times")
                parts.append(replay_method(benchmark, grid, name, one, often, slots))
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
    files = write_report([load_storage(store)], folder, replays=found)
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
    columns = ["hours", "test_acc", "wall_hours"]
    table = grouped[columns].mean().mask(grouped[columns].count().ne(grouped.size(), axis=0))
    table["repetitions"] = grouped["repetition"].nunique()
    return sort_rows(table.reset_index(), "after")


def _printed(table: pd.DataFrame, slots: int, handovers: Mapping[str, float | None]) -> Iterator[Table]:
    """A table for each dataset, N and backbone, with a line for each prior and method; below it, what is not paid."""
    what, column = ("compute", "hours") if slots == 1 else (f"wall-clock time on {slots} slots", "wall_hours")
    for where, block in iterate_groups(table, ["dataset", "backbone", "n"]):
        dataset, backbone, n = where.values()
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
        for line, means_of in iterate_groups(block, ["prior", "method"]):
            cells = {row["after"]: _cell(row["test_acc"], row[column]) for row in means_of.to_dict("records")}
            row = [cells.get(k, "") for k in (*AFTER, 0)]
            printed.add_row(PRIOR_NAMES[line["prior"]], method_name(line["method"]), *row)
        yield printed


def _handing_over(seconds: float | None) -> str:
    if seconds is None:
        return "; handing parts of runs over, as the storage has no part of a tuning run."
    return f". Handing a part of a run over counts {seconds:.2g} s, the storage's median."


def _cell(accuracy: float, hours: float) -> str:
    return f"{'-' if pd.isna(accuracy) else f'{accuracy:.1%}'} {format_duration(hours * 3600)}"
