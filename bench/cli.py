"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["main"]

STARTED = time.time()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every other complaint."""
        raise SystemExit(_complain(f"{message}: see {self.prog} --help"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. 0: done; 1: some trials failed; 2: bad input, said in one line."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.call(options))
    except (ValueError, ImportError, OSError) as error:
        if options.traceback:
            raise
        return _complain(" ".join(str(error).split()) or type(error).__name__)
    except KeyboardInterrupt:
        return 130


def _complain(message: str) -> int:
    print(f"deelbo-bench: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="deelbo-bench", description="Race MAP + grid search against the DE ELBo.")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, call: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(call=call)
        return made

    run = command("run", _run, "run or continue a benchmark, then draw its report")
    run.add_argument("config", help="a preset's name, or a YAML file")
    run.add_argument("--storage", help="folder or fsspec URL for the records (default: ./deelbo-runs/NAME)")
    run.add_argument("--tracking-uri", help="MLflow server or database (default: a sqlite file in the storage)")
    run.add_argument("--address", help="a Ray cluster (default: one on this machine, for this run)")

    plan = command("plan", _plan, "say what would run, method by method; runs nothing")
    plan.add_argument("config", help="a preset's name, or a YAML file")
    plan.add_argument("--seconds-per-step", type=float, help="as `speed` measures it: adds the hours")

    report = command("report", _report, "draw figure 2, tables 2 and 3 and one page from the records")
    report.add_argument("storage", nargs="?", help="of a benchmark")
    report.add_argument(
        "--published",
        nargs=2,
        type=Path,
        action="append",
        metavar=("TUNED.csv", "RETRAINED.csv"),
        help="instead of a storage: the authors' result files of a dataset; may be given for several",
    )
    report.add_argument("--out", type=Path, help="folder for the files (default: STORAGE/report, else ./report)")

    sync = command("sync", _sync, "rebuild the runs in MLflow from the records, without duplicates")
    sync.add_argument("storage")
    sync.add_argument("--tracking-uri", help="MLflow server or database (default: a sqlite file in the storage)")

    ui = command("ui", _ui, "open the MLflow page on a storage")
    ui.add_argument("storage")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--host", default="127.0.0.1", help="loopback unless told otherwise")

    speed = command("speed", _speed, "time a training step of each method and prior, as JSON")
    speed.add_argument("--backbone", default="digits-resnet")
    speed.add_argument("--batch", type=int, default=50)
    speed.add_argument("--size", type=int, default=16, help="side of the images, in pixels")
    speed.add_argument("--channels", type=int, default=1)
    speed.add_argument("--rounds", type=int, default=20)
    speed.add_argument("--steps", type=int, default=20, help="steps of each variant in a round")
    speed.add_argument("--threads", type=int, default=1)
    speed.add_argument("--device", default="cpu")
    return parser


def _run(options: argparse.Namespace) -> int:
    from bench.commands import run

    return run(options.config, options.storage, options.tracking_uri, options.address, STARTED)


def _plan(options: argparse.Namespace) -> int:
    from bench.commands import plan

    return plan(options.config, options.seconds_per_step)


def _report(options: argparse.Namespace) -> int:
    from bench.commands import report

    if (options.storage is None) == (options.published is None):
        raise ValueError("report takes a storage, or --published with two files: give one of them")
    return report(options.storage, options.published, options.out)


def _sync(options: argparse.Namespace) -> int:
    from bench.commands import sync

    return sync(options.storage, options.tracking_uri)


def _ui(options: argparse.Namespace) -> int:
    from bench.commands import ui

    return ui(options.storage, options.host, options.port)


def _speed(options: argparse.Namespace) -> int:
    import json

    import torch

    from bench.speed import measure

    for name in ("batch", "size", "channels", "rounds", "steps", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")
    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise ValueError(f"--device must be cpu or cuda, got {options.device!r}") from None
    shape = (options.batch, options.size, options.channels)
    try:
        result = measure(options.backbone, *shape, options.rounds, options.steps, device, options.threads)
    except (RuntimeError, AssertionError) as error:  # torch's words for no such device, or images that do not fit
        raise ValueError(f"{options.backbone} does not run so on {device} ({str(error).splitlines()[0]})") from error
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
