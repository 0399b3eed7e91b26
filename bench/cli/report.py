"""`report`: draw figures, tables and a page from storages and from the authors' result files."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.arguments import add_command, to_path

if TYPE_CHECKING:
    from bench.cli.arguments import Subparsers

MAX_LINES = 20


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "report", _report, "draw figures 1 and 2, the tables and one page from the records"
    )
    parser.add_argument("storage", nargs="*", help="storage of a benchmark; several are shown side by side")
    parser.add_argument(
        "--published",
        nargs="+",
        type=to_path,
        action="append",
        default=[],
        metavar="FILE.csv",
        help="the authors' results, alone or beside storages: tuned_*.csv and retrained_*.csv of one dataset, "
        "or a *_BO.csv; may be given several times",
    )
    parser.add_argument("--out", type=to_path, help="folder for the files (default: STORAGE/report, else ./report)")
    parser.add_argument(
        "--subsamples", type=int, metavar="S", help="draw figure 2 also from S random subsets (paper: 500)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random subsets")
    parser.add_argument(
        "--what-if", metavar="concurrency=G", help="add how long each method takes with G trials at once"
    )
    parser.add_argument("--tracking-uri", help="log the report to the benchmark's run on this MLflow server")


def _report(options: argparse.Namespace) -> int:
    """Draw the report and print its files. Returns 1 if some input could not be used, which is listed on stderr."""
    slots = _check_options(options)
    from bench.cli.console import console
    from bench.cli.mlflow import send
    from bench.report.build import write_report
    from bench.results.sources import load_results
    from bench.storage.records import RecordStore, open_benchmark
    from bench.tracking.client import tracking_uri
    from bench.tracking.sync import log_report
    from bench.utils.text import short

    storages: list[str] = options.storage
    uri = tracking_uri(RecordStore(storages[0]), options.tracking_uri) if options.tracking_uri is not None else None
    results, left_out = load_results(storages, options.published)
    single = RecordStore(storages[0]) if len(storages) == 1 and not options.published else None
    folder = options.out or Path(single.path("report") if single and single.local else "report")
    files = write_report(results, folder, options.subsamples, options.seed, slots, left_out)
    for name, path in sorted(files.items()):
        console.print(f"{name:22} {short(path)}")
    left_out += [line for one in results for line in one.left_out]
    for line in left_out[:MAX_LINES]:
        print(f"left out: {line}", file=sys.stderr)
    if len(left_out) > MAX_LINES:
        print(f"left out: {len(left_out) - MAX_LINES} more, see {short(files['report.html'])}", file=sys.stderr)
    if uri is not None:
        store, benchmark = open_benchmark(storages[0])
        send(lambda uri: log_report(store, benchmark, uri, files.values()), uri)
    return 1 if left_out else 0


def _check_options(options: argparse.Namespace) -> int | None:
    """Check the options and return the slots of ``--what-if``."""
    if not options.storage and not options.published:
        raise ValueError("report takes a storage, or --published with files of the authors: give one at least")
    if wrong := [files for files in options.published if len(files) > 2]:
        raise ValueError(f"--published takes one file or two, got {len(wrong[0])}: give storages before it")
    if options.tracking_uri is not None and len(options.storage) != 1:
        raise ValueError(f"--tracking-uri needs one storage, whose run takes the report; got {len(options.storage)}")
    for name, least in (("subsamples", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and not least <= value <= 100_000:
            raise ValueError(f"--{name} must be {least} to 100000, got {value}")
    if options.what_if is None:
        return None
    match = re.fullmatch(r"concurrency=([1-9][0-9]{0,5})", options.what_if)
    if match is None:
        raise ValueError(f"--what-if takes concurrency=G with G from 1 to 999999, got {options.what_if!r}")
    return int(match[1])
