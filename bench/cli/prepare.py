"""`prepare`: download what a benchmark reads, once, so that no trial needs a network."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.arguments import Subparsers, add_allow_import, add_command, add_config, add_set

if TYPE_CHECKING:
    from bench.config.benchmark import Benchmark


def add_parser(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "prepare", _prepare, "download what a benchmark reads, once, and check that it is whole"
    )
    add_config(parser)
    add_set(parser)
    add_allow_import(parser)


def _prepare(options: argparse.Namespace) -> int:
    """Download the datasets and pretrained networks of a benchmark that are missing, and read everything once."""
    from bench.cli.console import console
    from bench.config.benchmark import make_methods
    from bench.config.loading import load_benchmark
    from bench.config.validation import check
    from bench.exceptions import ConfigError
    from bench.execution.pretrained import download_missing_weights, load_pretrained_backbones

    benchmark = load_benchmark(options.config, options.set)
    benchmark = check(benchmark, console.print, allow_import=options.allow_import)
    for name in benchmark.backbones:
        _prepare_text_network(benchmark, name)
    for name in benchmark.datasets:
        _prepare_dataset(benchmark, name)
    download_missing_weights(benchmark, console.print)
    try:
        pretrained = load_pretrained_backbones(benchmark, make_methods(benchmark), say=console.print)
    except ConfigError as error:
        raise ConfigError(f"{error}; the datasets are ready") from error
    for name, weights in pretrained.items():
        console.print(f"{name}: pretrained weights {weights.fingerprint}")
    return 0


def _prepare_text_network(benchmark: Benchmark, name: str) -> None:
    """Download a network of Hugging Face, whose tokenizer the texts need, unless it is in the cache or a folder."""
    from bench.cli.console import console
    from bench.utils.text import short
    from deelbo.data.texts import load_tokenizer

    network = benchmark.backbone_source(name)
    if network.text_model is None:
        return
    from deelbo.pretrained.text import download, read_weights

    try:
        load_tokenizer(network.text_model, network.max_length)
        if benchmark.backbones[name].weights is None:
            with warnings.catch_warnings(action="ignore"):  # which `load_pretrained_backbones` will give
                read_weights(network.text_model)
    except ValueError as missing:
        if Path(network.text_model).is_absolute():
            raise
        console.print(f"{name}: {missing}")
        console.print(f"{name}: downloaded to {short(download(network.text_model))}")


def _prepare_dataset(benchmark: Benchmark, name: str) -> None:
    """Download a dataset if it is missing, and read it."""
    from bench.cli.console import console
    from bench.config.validation import tokenized_sources
    from bench.utils.text import short
    from deelbo.data import check_task, download_task, find_task, load_task

    for source in tokenized_sources(benchmark, name):
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
    kind = "texts" if kind == "text" else kind
    console.print(f"{name}: {len(task.pool):,} training and {len(task.test):,} test {kind}, data {task.fingerprint}")
