"""The part of the command line that is about replaying: `replay`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.arguments import add_command

if TYPE_CHECKING:
    from bench.cli.arguments import Subparsers

__all__ = ["add_parser"]


METHODS = "random,bo,asha"
MOST = 100_000


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    replay = add_command(
        subparsers, "replay", _replay, "race other methods on a grid that has been run; trains nothing"
    )
    replay.add_argument("storage", help="of a benchmark whose map-gs is finished, every configuration trained again")
    replay.add_argument("--methods", default=METHODS, metavar="NAME,...", help=f"which (default: {METHODS})")
    replay.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a method, e.g. asha.rungs=[0.2] or bo.sampler=tpe; may be given often",
    )
    replay.add_argument("--repetitions", type=int, metavar="R", help="of each method (default: 200; of bo 20)")
    replay.add_argument("--slots", type=int, default=1, help="how many trials run at once, for wall_hours (default: 1)")
    replay.add_argument("--out", type=Path, help="folder for the files (default: STORAGE/replay, else ./replay)")


def _replay(options: argparse.Namespace) -> int:
    from bench.cli.replay import run_replay

    for name in ("repetitions", "slots"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= MOST:
            raise ValueError(f"--{name} must be 1 to {MOST}, got {value}")
    names = [name.strip() for name in options.methods.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"--methods takes names with commas between, each once, got {options.methods!r}")
    return run_replay(options.storage, names, options.set, options.repetitions, options.slots, options.out)
