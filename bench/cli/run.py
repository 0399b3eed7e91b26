"""`run`: run or continue a benchmark."""

import argparse
import time

from bench.cli.arguments import Subparsers, add_command, add_config, add_only, add_set, add_tracking_uri, nonempty

STARTED = time.time()  # of the process, about: the command line imports this module early


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "run", _run, "run or continue a benchmark, then draw its report")
    add_config(parser)
    parser.add_argument(
        "--storage", type=nonempty, help="folder or fsspec URL for the records (default: ./deelbo-runs/NAME)"
    )
    add_tracking_uri(
        parser, "MLflow server or database (default: $DEELBO_TRACKING_URI, or a sqlite file in the storage)"
    )
    parser.add_argument("--address", type=nonempty, help="a Ray cluster (default: one on this machine, for this run)")
    add_set(parser)
    add_only(parser)


def _run(options: argparse.Namespace) -> int:
    from bench.cli.session import run

    return run(options, STARTED)
