"""Arguments that several commands share. Imported for `--help`, so it imports only the standard library."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from bench.utils.urls import TRACKING_URI_VARIABLE
from deelbo.paths import expand_user

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    subparsers: Subparsers, name: str, call: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a command that is run by ``call``, and return its parser."""
    parser = subparsers.add_parser(name, help=text, description=text)
    parser.set_defaults(call=call)
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a preset's name, or a YAML file")


def add_set(parser: argparse.ArgumentParser, text: str = "e.g. training.steps=100; may be given often") -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"change the configuration, {text}"
    )


def add_allow_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-import",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a Python package from which the configuration may import networks; may be given often",
    )


def add_only(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", metavar="KEY=VALUE,...", help="a subset of it: method=, dataset=, backbone=, prior=, n=, seed="
    )


def add_json(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document (docs/api.md lists its keys)")


def add_tracking_uri(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--tracking-uri`` with ``$DEELBO_TRACKING_URI`` as its default."""
    parser.add_argument("--tracking-uri", default=os.environ.get(TRACKING_URI_VARIABLE), help=text)


def to_path(text: str) -> Path:
    """Convert an argument to a path: shells leave the tilde of ``--out=~/x`` as it is."""
    try:
        return expand_user(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def nonempty(text: str) -> str:
    """Refuse an empty argument, as a script gives it for a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("is empty, expected a value")
    return text


def add_address(parser: argparse.ArgumentParser, text: str = "") -> None:
    parser.add_argument(
        "--address", type=nonempty, help=f"http://HOST:8265 of the cluster (default: $RAY_API_SERVER_ADDRESS){text}"
    )


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what a job reads, and how the nodes get its code."""
    add_tracking_uri(parser, "MLflow server (default: $DEELBO_TRACKING_URI)")
    add_set(parser, "as for `run`")
    add_allow_import(parser)
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="a variable of this terminal that the job gets, e.g. AWS_SECRET_ACCESS_KEY; may be given often",
    )
    code = parser.add_mutually_exclusive_group()
    code.add_argument("--from-source", action="store_true", help="take the code of this checkout along")
    code.add_argument(
        "--install",
        nargs="?",
        const="",
        metavar="REQUIREMENT",
        help="have pip install it on the nodes first (default: this version of deelbo[bench,methods])",
    )
