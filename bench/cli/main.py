"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from bench.cli._cluster_arguments import add_commands
from bench.cli._replay_arguments import add_replay
from bench.utils.signals import ignore_signals, stopped_by_signals
from bench.utils.text import single_line

__all__ = ["main"]


STARTED = time.time()
LONGEST = 1000
PRIORS = ("l2-zero", "l2-sp", "ptyl")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every other complaint."""
        raise SystemExit(_complain(f"{message}: see {self.prog} --help"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. 0: done; 1: some trials failed; 2: bad input, said in one line."""
    options = _parser().parse_args(arguments)
    try:
        with stopped_by_signals():
            return int(options.call(options))
    except (ValueError, ImportError, OSError) as error:
        if options.traceback:
            raise
        return _complain(single_line(error, LONGEST) or type(error).__name__)
    except KeyboardInterrupt:
        return 130
    finally:
        if arguments is None:  # the process ends
            ignore_signals()


def _complain(message: str) -> int:
    print(f"deelbo-bench: {single_line(message, LONGEST)}", file=sys.stderr)
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
    tracking = os.environ.get("DEELBO_TRACKING_URI")
    run.add_argument(
        "--tracking-uri",
        default=tracking,
        help="MLflow server or database (default: $DEELBO_TRACKING_URI, or a sqlite file in the storage)",
    )
    run.add_argument("--address", help="a Ray cluster (default: one on this machine, for this run)")

    plan = command("plan", _plan, "say what would run, method by method, and how long it takes; runs nothing")
    plan.add_argument("config", help="a preset's name, or a YAML file")
    plan.add_argument("--trials", action="store_true", help="list every trial")
    plan.add_argument("--images-per-second", type=float, metavar="R", help="training images a second, for the hours")
    plan.add_argument(
        "--speed", type=Path, nargs="+", default=[], metavar="FILE", help="results of `speed --out FILE`, for the hours"
    )
    prepare = command("prepare", _prepare, "download what a benchmark reads, once, and check that it is whole")
    prepare.add_argument("config", help="a preset's name, or a YAML file")
    for part in (run, plan, prepare):
        part.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change the configuration, e.g. training.steps=100; may be given often",
        )
    for part in (run, plan):
        part.add_argument(
            "--only", metavar="KEY=VALUE,...", help="a part of it: method=, dataset=, backbone=, prior=, n=, seed="
        )

    swag = command("swag", _swag, "fit PTYL's prior on a folder of source images, one folder in it for each class")
    swag.add_argument("folder", type=Path)
    swag.add_argument("out", type=Path, help="a .safetensors or .pt file: what backbones.NAME.ptyl takes")
    swag.add_argument("--backbone", default="resnet50")
    swag.add_argument("--weights", help="IMAGENET1K_V1 (default), IMAGENET1K_V2, or a local file")
    swag.add_argument("--epochs", type=int, default=10)
    swag.add_argument("--collect-every", type=int, metavar="STEPS", help="from one iterate to the next (an epoch)")
    swag.add_argument("--batch-size", type=int, default=128)
    swag.add_argument("--learning-rate", type=float, default=0.001)
    swag.add_argument("--rank", type=int, default=5)
    swag.add_argument("--image-size", type=int, default=224)
    swag.add_argument("--workers", type=int, default=0, help="processes that decode images")
    swag.add_argument("--device", help="cpu or cuda (default: the GPU where there is one)")
    swag.add_argument("--seed", type=int, default=0)

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

    add_replay(command)
    add_commands(command, tracking)

    speed = command("speed", _speed, "time a training step of each method and prior, as JSON")
    speed.add_argument("--backbone", default="digits-resnet")
    speed.add_argument("--batch", type=int, default=50)
    speed.add_argument("--size", type=int, default=16, help="side of what the network sees, in pixels")
    speed.add_argument("--channels", type=int, help="of the images (default: what the backbone takes)")
    speed.add_argument(
        "--stored", type=int, help="side of the images in memory, resized on the device and flipped (CIFAR-10: 32)"
    )
    speed.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    speed.add_argument("--precision", choices=("float32", "tf32", "bf16"), default="float32")
    speed.add_argument("--channels-last", action="store_true")
    speed.add_argument("--compile", action="store_true", help="train through torch.compile")
    speed.add_argument("--rounds", type=int, default=20)
    speed.add_argument("--steps", type=int, default=20, help="steps of each variant in a round")
    speed.add_argument("--naive-steps", type=int, default=0, help="steps of the plain PyTorch baseline in a round")
    speed.add_argument("--workers", type=int, default=0, help="of the baseline's loader")
    speed.add_argument("--threads", type=int, default=1)
    speed.add_argument("--device", default="cpu")
    speed.add_argument("--profile", action="store_true", help="say where the device's time goes")
    speed.add_argument(
        "--out", type=Path, help=".json file or folder for the result, made where missing (default: the terminal)"
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    from bench.cli.run import run

    where = (options.storage, options.tracking_uri, options.address)
    return run(options.config, *where, STARTED, options.set, options.only)


def _plan(options: argparse.Namespace) -> int:
    from bench.cli.plan import plan

    rates = (options.images_per_second, options.speed)
    return plan(options.config, options.set, options.only, *rates, options.trials)


def _prepare(options: argparse.Namespace) -> int:
    from bench.cli.prepare import prepare

    return prepare(options.config, options.set)


def _swag(options: argparse.Namespace) -> int:
    from bench.cli.console import console
    from deelbo.pretrained.swag_fitting import fit_swag

    asked = {name: value for name, value in vars(options).items() if name not in ("call", "traceback")}
    backbone, folder, out = (asked.pop(name) for name in ("backbone", "folder", "out"))
    console.print(f"PTYL's prior in {fit_swag(backbone, folder, out, say=console.print, **asked)}")
    return 0


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


def _sync(options: argparse.Namespace) -> int:
    from bench.cli.mlflow import sync

    return sync(options.storage, options.tracking_uri)


def _ui(options: argparse.Namespace) -> int:
    from bench.cli.mlflow import ui

    return ui(options.storage, options.host, options.port)


def _speed(options: argparse.Namespace) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler has no GPU to complain of on a CPU
    import torch

    from bench.speed.measure import measure, write
    from bench.speed.workloads import Setting
    from deelbo.training.numerics import Numerics

    least = dict.fromkeys(("batch", "size", "channels", "rounds", "steps", "threads", "stored"), 1)
    for name, smallest in (least | {"naive_steps": 0, "workers": 0}).items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}")
    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise ValueError(f"--device must be cpu or cuda, got {options.device!r}") from None
    numerics = Numerics(options.precision, options.channels_last, options.compile)
    asked = {f.name: getattr(options, f.name) for f in fields(Setting) if f.name != "numerics"}
    try:
        result = measure(Setting(**asked | {"priors": tuple(options.priors)}, numerics=numerics), device)
    except (RuntimeError, AssertionError) as error:  # torch's words for no such device, or images that do not fit
        raise ValueError(f"{options.backbone} does not run so on {device} ({str(error).splitlines()[0]})") from error
    write(result, options.out)
    return 0
