"""Arguments of `report`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.arguments import add_command

if TYPE_CHECKING:
    from bench.cli.arguments import Subparsers

__all__ = ["add_parser"]


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    report = add_command(
        subparsers, "report", _report, "draw figures 1 and 2, the tables and one page from the records"
    )
    report.add_argument("storage", nargs="*", help="of a benchmark; several are shown side by side")
    report.add_argument(
        "--published",
        nargs=2,
        type=Path,
        action="append",
        default=[],
        metavar=("TUNED.csv", "RETRAINED.csv"),
        help="the authors' result files of a dataset, alone or beside storages; may be given for several datasets",
    )
    report.add_argument("--out", type=Path, help="folder for the files (default: STORAGE/report, else ./report)")
    report.add_argument(
        "--subsamples", type=int, metavar="S", help="draw figure 2 also from S random subsets (paper: 500)"
    )
    report.add_argument("--seed", type=int, default=0, help="of the random subsets")
    report.add_argument(
        "--what-if", metavar="concurrency=G", help="add how long each method takes with G trials at once"
    )
    report.add_argument("--tracking-uri", help="log the report to the benchmark's run on this MLflow server")


def _report(options: argparse.Namespace) -> int:
    from bench.cli.report import report

    if not options.storage and not options.published:
        raise ValueError("report takes a storage, or --published with two files: give one at least")
    for name in ("subsamples", "seed"):
        value, least = getattr(options, name), int(name == "subsamples")
        if value is not None and not least <= value <= 100_000:
            raise ValueError(f"--{name} must be {least} to 100000, got {value}")
    slots = None
    if options.what_if is not None:
        found = re.fullmatch(r"concurrency=([1-9][0-9]{0,5})", options.what_if)
        slots = int(found[1]) if found else None
        if slots is None:
            raise ValueError(f"--what-if takes concurrency=G with G from 1 to 999999, got {options.what_if!r}")
    mlflow = options.tracking_uri
    return report(options.storage, options.published, options.out, mlflow, options.subsamples, options.seed, slots)
