"""`replay`: simulate methods on finished grids, and report them beside the methods that ran."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.arguments import add_command, to_path

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from bench.cli.arguments import Subparsers
    from bench.config.benchmark import Benchmark
    from bench.replay.grid_table import GridTable

METHODS = "random,bo,asha"
MAX_COUNT = 100_000
SHOWN_NUMBERS = (1, 4, 12)
"""Numbers of configurations after which the printed table shows results, beside all of them."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "replay", _replay, "simulate other methods on a finished grid; trains nothing")
    parser.add_argument("storage", help="storage of a benchmark whose map-gs is finished, with retrain: all")
    parser.add_argument(
        "--methods", default=METHODS, metavar="NAME,...", help=f"methods to replay (default: {METHODS})"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a method, e.g. asha.rungs=[0.2] or bo.sampler=tpe; may be given often",
    )
    parser.add_argument("--repetitions", type=int, metavar="R", help="of each method (default: 200; of bo 20)")
    parser.add_argument("--slots", type=int, default=1, help="how many trials run at once, for wall_hours (default: 1)")
    parser.add_argument("--out", type=to_path, help="folder for the files (default: STORAGE/replay, else ./replay)")


def _replay(options: argparse.Namespace) -> int:
    """Write replay.csv and a report with the replayed methods, and print their means."""
    names = _check_options(options)
    from bench.cli.console import console
    from bench.config.loading import parse_benchmark
    from bench.exceptions import ConfigError, RecordError
    from bench.replay.grid_table import load_grid_tables
    from bench.report.build import write_report
    from bench.results.sources import load_storage
    from bench.storage.records import RecordStore
    from bench.utils.text import short

    store = RecordStore(options.storage)
    content = store.read_benchmark()
    if content is None:
        raise RecordError(f"{store.url} holds no benchmark: give the storage of a finished `run`")
    benchmark = parse_benchmark(content, store.path("benchmark.json"))
    tables, left_out = load_grid_tables(store, benchmark)
    replayed = _replay_all(benchmark, tables, names, options)
    folder = options.out or Path(store.path("replay") if store.local else "replay")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be a folder ({error.strerror}): give another --out") from error
    file = folder / "replay.csv"
    replayed.to_csv(file, index=False, float_format="%.9g")
    checkpoint_seconds = {table.cell.backbone: table.checkpoint_seconds for table in tables}
    for printed in _means_tables(compute_means(replayed), options.slots, checkpoint_seconds):
        console.print(printed)
    if not all(table.timed for table in tables):
        console.print("The grid ran with timed: false: its seconds are not measurements and cannot be compared.")
    for line in left_out:
        console.print(f"left out: {line}")
    files = write_report([load_storage(store)], folder, replays=replayed)
    for name, path in sorted({"replay.csv": file, **files}.items()):
        console.print(f"{name:22} {short(path)}")
    return 0


def _check_options(options: argparse.Namespace) -> list[str]:
    """Check the options and return the names of the methods."""
    for name in ("repetitions", "slots"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= MAX_COUNT:
            raise ValueError(f"--{name} must be 1 to {MAX_COUNT}, got {value}")
    names = [name.strip() for name in options.methods.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"--methods takes names with commas between, each once, got {options.methods!r}")
    return names


def _replay_all(
    benchmark: Benchmark, tables: Sequence[GridTable], names: Sequence[str], options: argparse.Namespace
) -> pd.DataFrame:
    """Replay all methods on all tables, once every table is known to answer every method."""
    import pandas as pd

    from bench.cli.console import console
    from bench.exceptions import ConfigError
    from bench.replay.settings import DEFAULT_REPETITIONS, REPETITIONS, is_off_grid, replay_settings
    from bench.replay.simulation import replay_method

    settings = [replay_settings(benchmark, table, names, options.set) for table in tables]
    parts = []
    with console.status("reading the grids' series") as status:
        for table, methods in zip(tables, settings, strict=True):
            for name, method in methods.items():
                table.check(name, method)
        for name in names:
            if is_off_grid(benchmark, name):
                console.print(f"{name} is replayed on the grid: the benchmark's own (grid: false) may leave it")
        for i, (table, methods) in enumerate(zip(tables, settings, strict=True), start=1):
            for name, method in methods.items():
                repetitions = options.repetitions or REPETITIONS.get(method.method, DEFAULT_REPETITIONS)
                status.update(f"replaying cell {i} of {len(tables)}: {name}, {repetitions} times")
                parts.append(replay_method(benchmark, table, name, method, repetitions, options.slots))
    if not parts:
        raise ConfigError(f"{', '.join(names)}: none runs on a prior of the finished grids: choose others by --methods")
    return pd.concat(parts, ignore_index=True)


def compute_means(replayed: pd.DataFrame, numbers: Sequence[int] = SHOWN_NUMBERS) -> pd.DataFrame:
    """Compute means over seeds and repetitions after some numbers of configurations (0: all); NaN if any value is."""
    import pandas as pd

    from bench.results.frame import sort_rows

    place = ["source", "dataset", "backbone", "n", "prior", "method"]
    last = replayed.groupby([*place, "seed", "repetition"], sort=False, dropna=False)["number"].transform("max")
    parts = [replayed[replayed["number"] == number].assign(after=number) for number in numbers]
    parts.append(replayed[replayed["number"] == last].assign(after=0))
    grouped = pd.concat(parts, ignore_index=True).groupby([*place, "after"], sort=False, dropna=False)
    columns = ["hours", "test_acc", "wall_hours"]
    table = grouped[columns].mean().mask(grouped[columns].count().ne(grouped.size(), axis=0))
    table["repetitions"] = grouped["repetition"].nunique()
    return sort_rows(table.reset_index(), "after")


def _means_tables(means: pd.DataFrame, slots: int, checkpoint_seconds: Mapping[str, float | None]) -> Iterator[Table]:
    """Build a table per dataset, N and backbone, with a row per prior and method, and what is not counted below."""
    import pandas as pd
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from bench.labels import PRIOR_NAMES, dataset_name, method_name
    from bench.results.frame import iterate_groups
    from bench.utils.text import format_duration

    what, column = ("compute", "hours") if slots == 1 else (f"wall-clock time on {slots} slots", "wall_hours")
    for place, block in iterate_groups(means, ["dataset", "backbone", "n"]):
        dataset, backbone, n = place.values()
        seconds = checkpoint_seconds[backbone]
        checkpoints = (
            "; checkpoints between segments, as the storage has no segment of a tuning run."
            if seconds is None
            else f". The checkpoint of a segment counts {seconds:.2g} s, the storage's median."
        )
        table = Table(
            title=f"{dataset_name(dataset)}, N = {n}, {backbone}: mean test accuracy and {what}, after configurations",
            title_justify="left",
            caption=f"Not counted: choosing what to try next{checkpoints}",
            caption_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for name in ("", "method"):
            table.add_column(name, no_wrap=True)
        for number in (*SHOWN_NUMBERS, 0):
            table.add_column(str(number or "all"), justify="right", no_wrap=True)
        for entry, rows in iterate_groups(block, ["prior", "method"]):
            cells = {}
            for row in rows.to_dict("records"):
                accuracy = "-" if pd.isna(row["test_acc"]) else f"{row['test_acc']:.1%}"
                cells[row["after"]] = f"{accuracy} {format_duration(row[column] * 3600)}"
            texts = [cells.get(number, "") for number in (*SHOWN_NUMBERS, 0)]
            table.add_row(PRIOR_NAMES[entry["prior"]], method_name(entry["method"]), *texts)
        yield table
