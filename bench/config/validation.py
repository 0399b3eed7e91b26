"""Check before anything starts that a configuration fits the datasets, backbones and packages that exist."""

from collections.abc import Iterable

from bench.config.benchmark import EMBEDDED, Benchmark
from bench.exceptions import ConfigError
from bench.methods.base import Method
from deelbo.data import TASKS, crop_size, load_task
from deelbo.data.splits import check_size
from deelbo.pretrained.registry import BACKBONES, IMAGENET_VERSIONS, find_backbone


def check(benchmark: Benchmark) -> None:
    """Check that datasets, backbones, heads, sizes and methods exist and fit together; reads no files."""
    for name in benchmark.datasets:
        if name not in TASKS:
            raise ConfigError(f"dataset = {name!r}: expected one of {', '.join(sorted(TASKS))}")
    _check_backbones(benchmark)
    _check_methods(benchmark)
    try:
        for name, sizes in benchmark.datasets.items():
            for n in sizes:
                _check_size(name, n, TASKS[name].pool_size)
            crop_size(name, benchmark.training.image_size)
        _check_networks(benchmark)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    gpus = benchmark.resources.gpus_per_trial
    if gpus > 1:
        raise ConfigError(f"resources.gpus_per_trial = {gpus:g}: a trial uses 1 at most")
    if benchmark.timed and 0 < gpus < 1:
        raise ConfigError(
            f"resources.gpus_per_trial = {gpus:g} with timed: true, expected 1 or 0, as trials that share a GPU slow "
            "each other down: set it to 1, or timed: false"
        )


def _check_backbones(benchmark: Benchmark) -> None:
    for name, settings in benchmark.backbones.items():
        if name not in BACKBONES:
            raise ConfigError(f"backbone = {name!r}: expected one of {', '.join(sorted(BACKBONES))}")
        if (settings.weights or "").startswith("IMAGENET") and settings.weights not in IMAGENET_VERSIONS:
            raise ConfigError(
                f"backbones.{name}.weights = {settings.weights!r}: expected {' or '.join(IMAGENET_VERSIONS)}, "
                "or a local file"
            )
        if "ptyl" in benchmark.priors and settings.ptyl is None and name != EMBEDDED:
            raise ConfigError(
                f"prior ptyl needs backbones.{name}.ptyl, a file of mean, variance and factor: "
                "`deelbo-bench swag` makes one, or take ptyl out of priors"
            )


def _check_methods(benchmark: Benchmark) -> None:
    for name, settings in benchmark.methods.items():
        if not any(map(settings.runs_on, benchmark.priors)):
            raise ConfigError(
                f"methods.{name}.priors = {', '.join(settings.priors or ())}, none of which is among the benchmark's "
                f"({', '.join(benchmark.priors)}): name one of those, or take {name} out of methods"
            )
        for prior in filter(settings.runs_on, benchmark.priors):
            if (problem := settings.find_problem(prior)) is not None:
                raise ConfigError(f"methods.{name}: {problem}")


def _check_networks(benchmark: Benchmark) -> None:
    """Raise ValueError if a head does not exist, or a network does not take the size or channels of the images."""
    for name, settings in benchmark.backbones.items():
        find_backbone(name, benchmark.training.image_size)
        if settings.head is not None:
            from deelbo.pretrained.backbones import check_head  # torch takes seconds to import

            check_head(name, settings.head)
        channels = BACKBONES[name].channels
        for dataset in benchmark.datasets:
            if TASKS[dataset].channels != channels:
                raise ValueError(
                    f"{name} takes images of {channels} channel{'s' * (channels > 1)}, those of {dataset} have "
                    f"{TASKS[dataset].channels}: choose another backbone or dataset"
                )


def _check_size(name: str, n: int, pool: int) -> None:
    try:
        check_size(n, pool, TASKS[name].num_classes)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def check_packages(methods: Iterable[Method]) -> None:
    """Raise ConfigError if one of these methods needs a package that is not installed."""
    for method in methods:
        if (missing := method.settings.missing_package()) is not None:
            raise ConfigError(
                f"methods.{method.name} needs the package {missing}, which is not installed: "
                f"pip install 'deelbo[methods]', or take {method.name} out of methods"
            )


def check_data(benchmark: Benchmark, datasets: Iterable[str]) -> dict[str, str]:
    """Read datasets as the trials will, check that every N fits, and return a hash of the images of each."""
    fingerprints = {}
    for name in datasets:
        if TASKS[name].files is not None:  # others come with an installed package
            task = load_task(name, benchmark.data, benchmark.training.image_size, benchmark.verify_data)
            for n in benchmark.datasets[name]:
                _check_size(name, n, task.pool_size)
            fingerprints[name] = task.fingerprint
    return fingerprints
