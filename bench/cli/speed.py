"""`speed`: time a training step of each method and prior."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from bench.cli.arguments import Subparsers, add_command, to_path

if TYPE_CHECKING:
    from bench.speed.workloads import Setting

PRIORS = ("l2-zero", "l2-sp", "ptyl")
NOT_OF_PEERS = ("priors", "naive_steps", "workers", "profile")
COUNTS = ("batch", "size", "channels", "rounds", "steps", "threads", "stored", "naive_steps", "workers")


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "speed", _speed, "time a training step of each method and prior, as JSON")
    parser.add_argument("--backbone", help="default: digits-resnet, with --peers resnet18")
    parser.add_argument("--batch", type=int, help="default: 50, with --peers 32")
    parser.add_argument(
        "--size", type=int, help="side of what the network sees, in pixels; default: 16, with --peers 64"
    )
    parser.add_argument("--channels", type=int, help="of the images (default: what the backbone takes)")
    parser.add_argument(
        "--stored", type=int, help="side of the images in memory, resized on the device and flipped (CIFAR-10: 32)"
    )
    parser.add_argument("--priors", nargs="+", choices=PRIORS, help="default: all three")
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16"), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--rounds", type=int, help="default: 20")
    parser.add_argument("--steps", type=int, help="steps of each variant in a round; default: 20, with --peers 5")
    parser.add_argument("--naive-steps", type=int, help="steps of the plain PyTorch baseline in a round; default: 0")
    parser.add_argument("--workers", type=int, help="of the baseline's loader; default: 0")
    parser.add_argument("--threads", type=int, help="default: 1, with --peers 2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="measure where the device spends its time")
    parser.add_argument(
        "--peers", action="store_true", help="instead, time LearnedL2 beside SGD, AdamW and IVON, each in a plain loop"
    )
    parser.add_argument(
        "--out",
        type=to_path,
        help=".json file or folder for the result, made where missing (default: the terminal)",
    )


def _speed(options: argparse.Namespace) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # on a CPU the profiler warns that there is no GPU
    from bench.speed.measure import measure
    from bench.speed.peers import measure_peers
    from bench.speed.result_file import Result, make_folder, to_json, write
    from deelbo.devices import usable_device

    _check(options)
    if options.out is not None:
        make_folder(options.out)  # before minutes of work
    device = usable_device(options.device)
    setting = _setting(options)

    def save(result: Result) -> None:
        if options.out is not None:
            write(result, options.out)

    try:
        result = measure_peers(setting, device) if options.peers else measure(setting, device, save)
    except (RuntimeError, AssertionError, MemoryError) as error:  # such as images that do not fit
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{setting.backbone} does not run so on {device} ({why})") from error
    print(to_json(result) if options.out is None else write(result, options.out))
    return 0


def _check(options: argparse.Namespace) -> None:
    for name in COUNTS:
        value, minimum = getattr(options, name), int(name not in ("naive_steps", "workers"))
        if value is not None and value < minimum:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {minimum}, got {value}")
    if options.peers and (unused := [name for name in NOT_OF_PEERS if getattr(options, name)]):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ValueError(f"{names} beside --peers, which has one prior and no baseline: leave it out")


def _setting(options: argparse.Namespace) -> Setting:
    """Return the command's settings, with the defaults of what is measured where it gives none."""
    from bench.speed.peers import DEFAULTS
    from bench.speed.workloads import Setting
    from deelbo.training.numerics import Numerics

    given = {f.name: getattr(options, f.name) for f in fields(Setting) if f.name != "numerics"}
    values: dict[str, Any] = DEFAULTS if options.peers else {}
    values = values | {name: value for name, value in given.items() if value is not None}
    if "priors" in values:
        values["priors"] = tuple(values["priors"])
    return Setting(**values, numerics=Numerics(options.precision, options.channels_last, options.compile))
