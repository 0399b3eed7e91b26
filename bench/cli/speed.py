"""`speed`: time a training step of each method and prior."""

import argparse
import os
from dataclasses import fields
from pathlib import Path

from bench.cli.arguments import Subparsers, add_command

PRIORS = ("l2-zero", "l2-sp", "ptyl")
COUNTS = ("batch", "size", "channels", "rounds", "steps", "threads", "stored", "naive_steps", "workers")


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "speed", _speed, "time a training step of each method and prior, as JSON")
    parser.add_argument("--backbone", default="digits-resnet")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--size", type=int, default=16, help="side of what the network sees, in pixels")
    parser.add_argument("--channels", type=int, help="of the images (default: what the backbone takes)")
    parser.add_argument(
        "--stored", type=int, help="side of the images in memory, resized on the device and flipped (CIFAR-10: 32)"
    )
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16"), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="steps of each variant in a round")
    parser.add_argument("--naive-steps", type=int, default=0, help="steps of the plain PyTorch baseline in a round")
    parser.add_argument("--workers", type=int, default=0, help="of the baseline's loader")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="measure where the device spends its time")
    parser.add_argument(
        "--out", type=Path, help=".json file or folder for the result, made where missing (default: the terminal)"
    )


def _speed(options: argparse.Namespace) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # on a CPU the profiler warns that there is no GPU
    import torch

    from bench.speed.measure import measure, write
    from bench.speed.workloads import Setting
    from deelbo.training.numerics import Numerics

    for name in COUNTS:
        value, minimum = getattr(options, name), int(name not in ("naive_steps", "workers"))
        if value is not None and value < minimum:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {minimum}, got {value}")
    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise ValueError(f"--device must be cpu or cuda, got {options.device!r}") from None
    numerics = Numerics(options.precision, options.channels_last, options.compile)
    settings = {f.name: getattr(options, f.name) for f in fields(Setting) if f.name != "numerics"}
    try:
        result = measure(Setting(**settings | {"priors": tuple(options.priors)}, numerics=numerics), device)
    except (RuntimeError, AssertionError) as error:  # torch found no such device, or the images do not fit
        raise ValueError(f"{options.backbone} does not run so on {device} ({str(error).splitlines()[0]})") from error
    write(result, options.out)
    return 0
