"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import re
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

    report = command("report", _report, "draw figures 1 and 2, the tables and one page from the records")
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
    from bench.viewing import report

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


def _sync(options: argparse.Namespace) -> int:
    from bench.viewing import sync

    return sync(options.storage, options.tracking_uri)


def _ui(options: argparse.Namespace) -> int:
    from bench.viewing import ui

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
