"""Check before anything starts that a configuration fits the datasets, backbones and packages that exist."""

import re
from collections.abc import Callable, Iterable

from bench.config.benchmark import EMBEDDED, Benchmark
from bench.config.sections import OwnSettings, TextSettings
from bench.exceptions import ConfigError
from bench.methods.base import Method
from bench.types import NAME_PATTERN
from deelbo.data import DATASETS, TASKS, TaskEntry, crop_size, find_task, is_embedded, load_task
from deelbo.data.listing import show
from deelbo.data.splits import check_size
from deelbo.pretrained.registry import BACKBONES, IMAGENET_VERSIONS, find_backbone

Say = Callable[[str], object]


def check(benchmark: Benchmark, say: Say | None = None, images_here: bool = True) -> Benchmark:
    """Check that datasets, backbones, heads, sizes and methods exist and fit together.

    No image is opened, but the user's own are listed, and own texts are read, if they are on this machine; ``say`` gets
    a line on files beside them.

    Returns:
        the benchmark with the number of training images in place of "all", if they are listed.
    """
    _check_datasets(benchmark, images_here)
    _check_backbones(benchmark)
    _check_methods(benchmark)
    try:
        tasks = find_tasks(benchmark, images_here)
        benchmark = benchmark.with_pools({name: task.pool_size for name, task in tasks.items()})
        for name, task in tasks.items():
            for n in benchmark.sizes[name] if images_here else ():
                _check_size(name, n, task)
            if say is not None and task.others:
                say(f"{name}: files that are left out: {len(task.others)}, such as {show(task.others[0])}")
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
    return benchmark


def find_tasks(benchmark: Benchmark, images_here: bool = True) -> dict[str, TaskEntry]:
    """Return the sizes of the datasets, the user's own only if they are on this machine; raises as `find_task`."""
    sources = {name: benchmark.source(name) for name in benchmark.datasets}
    return {
        name: find_task(name, source, benchmark.data, crop_size(name, benchmark.training.image_size, source))
        for name, source in sources.items()
        if source is None or images_here
    }


def _check_datasets(benchmark: Benchmark, images_here: bool) -> None:
    """Check the names of datasets, and the paths of the user's own images."""
    for name, setting in benchmark.datasets.items():
        own = isinstance(setting, OwnSettings)
        if not own and name not in DATASETS:
            known = DATASETS.describe()
            raise ConfigError(f"dataset = {name!r}: expected one of {known}, or {{folder: ..., n: [...]}} of your own")
        if own and (name in TASKS or not re.match(NAME_PATTERN, name)):
            expected = "expected letters, digits, dots, dashes, underscores, and no name of a published dataset"
            raise ConfigError(f"datasets.{name} is no name for data of your own, {expected}: choose another")
        if isinstance(setting, OwnSettings) and not images_here and not setting.path.startswith(("/", "~")):
            raise ConfigError(
                f"datasets.{name}: {setting.path!r} is relative to this machine, not to the nodes: give the absolute "
                "path on the nodes"
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
        for dataset, setting in benchmark.datasets.items():
            if isinstance(setting, TextSettings):
                raise ValueError(f"{name} takes images, {dataset} has texts: choose another backbone or dataset")
            given = DATASETS.find(dataset).channels if benchmark.source(dataset) is None else 3
            if given != channels:
                raise ValueError(
                    f"{name} takes images of {channels} channel{'s' * (channels > 1)}, those of {dataset} have "
                    f"{given}: choose another backbone or dataset"
                )


def _check_size(name: str, n: int, task: TaskEntry) -> None:
    try:
        check_size(n, task.pool_size, task.num_classes, task.smallest_class)
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
        source, size = benchmark.source(name), benchmark.training.image_size
        if is_embedded(name, source):
            continue
        task = load_task(name, benchmark.data, size, benchmark.verify_data, source, fresh=True)
        for n in benchmark.sizes[name]:
            try:
                task.check_size(n)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from error
        fingerprints[name] = task.fingerprint
    return fingerprints
