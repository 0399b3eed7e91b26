"""`finetune`: train one network on a person's own data, with learned regularization, and keep it."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from bench.cli.arguments import Subparsers, add_allow_import, add_command, add_set, nonempty, to_path
from bench.cli.run import STARTED, print_failures
from bench.utils.text import format_duration, redact_url, short

if TYPE_CHECKING:
    from bench.config.benchmark import Benchmark
    from bench.finetune.configuration import FinetuneOptions

OPTIONS = {
    "weights": "IMAGENET1K_V1, a local file, or none (default: the network's own)",
    "head": "dotted name of the layer that is replaced (default: the network's own)",
    "label": "column of the class, of texts (default: label)",
}
NUMBERS = {
    "steps": "training steps (default: 6000 on a GPU, 600 on a CPU)",
    "batch-size": "examples in a batch (default: 128 on a GPU, 32 on a CPU)",
    "image-size": "side in pixels of what the network sees (default: 224)",
    "max-length": "tokens to which texts are cut (default: as many as the network takes)",
    "seed": "of the new head and of the order of examples (default: 0)",
}


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "finetune", _finetune, "train a network on your own data with learned regularization, and keep it"
    )
    parser.add_argument("data", help="a folder with a folder for each class, or a CSV file")
    parser.add_argument("--out", type=to_path, required=True, help="new folder for the model")
    parser.add_argument(
        "--backbone",
        type=nonempty,
        default="resnet18",
        help="a network's name, torchvision:NAME, timm:NAME, transformers:FOLDER for texts, or PACKAGE.MODULE:FUNCTION "
        "(default: resnet18)",
    )
    for name, text in OPTIONS.items():
        parser.add_argument(f"--{name}", type=nonempty, help=text)
    for name, text in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, help=text)
    parser.add_argument(
        "--batchnorm",
        choices=("train", "frozen"),
        help="BatchNorm's statistics: trained, or as pretrained (default: train)",
    )
    parser.add_argument("--train", choices=("all", "head"), help="all weights, or the head alone (default: all)")
    parser.add_argument(
        "--test-share", type=float, help="share held out to measure accuracy where there is no test set (default: 0)"
    )
    parser.add_argument("--unreadable", choices=("refuse", "skip"), help="damaged files (default: refuse)")
    parser.add_argument("--text", action="append", metavar="COLUMN", help="column of texts; may be given often")
    parser.add_argument("--storage", type=nonempty, help="of the records (default: ./deelbo-runs/finetune-OUT)")
    parser.add_argument("--address", type=nonempty, help="a Ray cluster (default: this machine)")
    add_set(parser, "as for `run`")
    add_allow_import(parser)


def _finetune(options: argparse.Namespace) -> int:
    """Train, copy the model to its folder, and print what was learned."""
    from bench.cli.console import command, console, quoted
    from bench.finetune.configuration import check_out, make_configuration
    from bench.finetune.finetune import deliver, prepare_weights
    from bench.session.run import RunOptions, run

    request = _to_options(options)
    check_out(request.out)
    on_cluster = options.address is not None
    configuration = make_configuration(request, on_cluster or _has_gpu(), on_cluster)
    benchmark = prepare_weights(configuration, options.set, options.allow_import, console.print)
    console.print(_describe(benchmark))
    outcome = run(
        RunOptions(
            configuration, options.storage, None, options.address, None, options.set, allow_import=options.allow_import
        ),
        console,
        STARTED,
    )
    if outcome.summary.stop_reason is not None or outcome.summary.failed:
        print_failures(outcome, console)
        return outcome.exit_code
    allowed = "".join(f" --allow-import {package}" for package in options.allow_import)
    try:
        made = deliver(outcome.store, outcome.benchmark, request.out, options.allow_import)
    except KeyboardInterrupt:
        console.print("stopped before the model was copied: the same command continues")
        raise
    all_seconds, grid = time.time() - STARTED, format_duration(made.grid_seconds)
    console.print(f"learned   {made.describe_learned()}")
    console.print(f"chosen    learning rate {made.record.spec.learning_rate:g} of {made.learning_rates}")
    console.print(f"accuracy  {made.describe_test()}")
    console.print(f"time      {format_duration(made.train_seconds)} of training, {format_duration(all_seconds)} in all")
    console.print(f"grid      a grid search of {made.grid_size} configurations would train for about {grid}")
    console.print(f"records   {short(redact_url(outcome.store.url))}")
    console.print(f"model     {short(request.out)}")
    console.print(f"predict   {command()} predict {quoted(request.out)} FILES{allowed}")
    return 0


def _describe(benchmark: Benchmark) -> str:
    """Describe what is about to be trained."""
    training, resources = benchmark.training, benchmark.resources
    ((dataset, (n,)),), (backbone,) = benchmark.sizes.items(), benchmark.backbones
    size = "" if training.image_size is None else f" at {training.image_size} px"
    cpus = resources.cpus_per_trial
    device = "a GPU" if resources.gpus_per_trial else f"{cpus} CPU{'s' * (cpus > 1)}"
    return (
        f"{dataset}: {n:,} training examples; {backbone}, {training.steps:,} steps of {training.batch_size}{size}, on "
        f"{device}"
    )


def _to_options(options: argparse.Namespace) -> FinetuneOptions:
    from dataclasses import fields

    from bench.finetune.configuration import FinetuneOptions

    given = {field.name: getattr(options, field.name) for field in fields(FinetuneOptions)}
    given["text"] = tuple(options.text or ())
    return FinetuneOptions(**{name: value for name, value in given.items() if value is not None})


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
