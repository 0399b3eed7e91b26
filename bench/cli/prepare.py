"""`prepare` and `swag`: what a benchmark reads is fetched or made here, once, and never by a trial."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cli.console import console, short
from bench.config.benchmark import EMBEDDED, make_methods
from bench.config.loading import load_benchmark
from bench.config.validation import check
from bench.exceptions import ConfigError
from bench.execution.pretrained import load_pretrained_backbones
from deelbo.data import check_task, download_task, load_task
from deelbo.data.splits import check_size
from deelbo.pretrained.weights import VERSIONS, download_weights, imagenet_file

__all__ = ["prepare"]


def prepare(config: str, overrides: Sequence[str] = ()) -> int:
    """Downloads the datasets and ImageNet weights of a benchmark that are missing, and reads everything once.

    Run it on every node whose disk is its own; where everything is there, it needs no network.

    Raises:
        ConfigError: something cannot be downloaded, or what is there is not what it should be.
    """
    benchmark = load_benchmark(config, overrides)
    check(benchmark)
    for name in benchmark.datasets:
        try:
            check_task(name, benchmark.data, benchmark.verify_data)
        except ValueError as missing:
            if not benchmark.verify_data:  # what is there was chosen to be another
                raise
            console.print(f"{name}: {missing}")
            where = download_task(name, benchmark.data)
            console.print(f"{name}: downloaded to {short(str(where))}")
        task = load_task(name, benchmark.data, benchmark.training.image_size, benchmark.verify_data)
        for n in benchmark.datasets[name]:
            check_size(n, task.pool_size, task.pool.num_classes)
        console.print(
            f"{name}: {len(task.pool):,} training and {len(task.test):,} test images, data {task.fingerprint}"
        )
    for name, settings in benchmark.backbones.items():
        version = settings.weights or VERSIONS[0]
        if name == EMBEDDED or version not in VERSIONS:
            continue
        try:
            imagenet_file(name, version)
        except ValueError as missing:
            console.print(f"{name}: {missing}")
            console.print(f"{name}: downloaded to {short(str(download_weights(name, version)))}")
    try:
        starts = load_pretrained_backbones(benchmark, make_methods(benchmark), say=console.print)
    except ConfigError as error:
        raise ConfigError(f"{error}; the datasets are ready") from error
    for name, start in starts.items():
        console.print(f"{name}: pretrained weights {start.fingerprint}")
    return 0
