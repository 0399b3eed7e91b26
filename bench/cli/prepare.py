"""`prepare`: download what a benchmark reads, once, so that no trial needs a network."""

import argparse

from bench.cli.arguments import Subparsers, add_allow_import, add_command, add_config, add_set


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "prepare", _prepare, "download what a benchmark reads, once, and check that it is whole"
    )
    add_config(parser)
    add_set(parser)
    add_allow_import(parser)


def _prepare(options: argparse.Namespace) -> int:
    """Download the datasets and ImageNet weights of a benchmark that are missing, and read everything once."""
    from bench.cli.console import console
    from bench.config.benchmark import make_methods
    from bench.config.loading import load_benchmark
    from bench.config.validation import check
    from bench.exceptions import ConfigError
    from bench.execution.pretrained import download_missing_weights, load_pretrained_backbones
    from bench.utils.text import short
    from deelbo.data import check_task, download_task, find_task, load_task

    benchmark = load_benchmark(options.config, options.set)
    benchmark = check(benchmark, console.print, allow_import=options.allow_import)
    for name in benchmark.datasets:
        source = benchmark.source(name)
        try:
            check_task(name, benchmark.data, benchmark.verify_data, source)
        except ValueError as missing:
            if source is not None or not benchmark.verify_data or find_task(name).files is None:  # nothing to download
                raise
            console.print(f"{name}: {missing}")
            console.print(f"{name}: downloaded to {short(download_task(name, benchmark.data))}")
        task = load_task(name, benchmark.data, benchmark.training.image_size, benchmark.verify_data, source)
        for n in benchmark.sizes[name]:
            task.check_size(n)
        kind = find_task(name, source, benchmark.data).inputs
        console.print(
            f"{name}: {len(task.pool):,} training and {len(task.test):,} test {kind}, data {task.fingerprint}"
        )
    download_missing_weights(benchmark, console.print)
    try:
        pretrained = load_pretrained_backbones(benchmark, make_methods(benchmark), say=console.print)
    except ConfigError as error:
        raise ConfigError(f"{error}; the datasets are ready") from error
    for name, weights in pretrained.items():
        console.print(f"{name}: pretrained weights {weights.fingerprint}")
    return 0
