"""Check before anything starts that a configuration fits the datasets, backbones and packages that exist."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from bench.config.benchmark import EMBEDDED, Benchmark
from bench.config.sections import BackboneSettings, ChannelNormalization, OwnSettings, TextSettings
from bench.exceptions import ConfigError
from bench.methods.base import Method
from bench.types import NAME_PATTERN
from bench.utils.imports import add_current_folder
from deelbo.data import DATASETS, TASKS, Source, TaskEntry, crop_size, find_task, is_embedded, load_task
from deelbo.data.listing import show
from deelbo.data.splits import check_size
from deelbo.data.texts import find_model
from deelbo.pretrained.registry import (
    BACKBONES,
    IMAGENET_VERSIONS,
    NETWORKS,
    NO_WEIGHTS,
    BackboneSource,
    find_backbone,
    imported_package,
)

Say = Callable[[str], object]
EXAMPLES = {"efficientnet_lite0": "./examples/efficientnet_lite"}
"""Backbones of this repository's own plug-ins, which are installed apart."""
ASSUMED_CLASSES = 10  # of a dataset that is not on this machine


def check(
    benchmark: Benchmark, say: Say | None = None, images_here: bool = True, allow_import: Sequence[str] = ()
) -> Benchmark:
    """Check that datasets, backbones, heads, sizes and methods exist and fit together.

    No image is opened, but the user's own are listed, and own texts are read, if they are on this machine; ``say`` gets
    a line on files beside them. Networks of the user's own are built and tried on two random images; code is imported
    from the packages in ``allow_import`` alone.

    Returns:
        the benchmark with the number of training images in place of "all", if they are listed.
    """
    _check_datasets(benchmark, images_here)
    try:
        _check_backbones(benchmark, allow_import)
        _check_text_networks(benchmark, images_here)
        _check_methods(benchmark)
        tasks = find_tasks(benchmark, images_here)
        benchmark = benchmark.with_pools({name: task.pool_size for name, task in tasks.items()})
        for name, task in tasks.items():
            for n in benchmark.sizes[name] if images_here else ():
                _check_size(name, n, task)
            if say is not None and task.others:
                say(f"{name}: files that are left out: {len(task.others)}, such as {show(task.others[0])}")
        _check_networks(benchmark, tasks)
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


def _check_backbones(benchmark: Benchmark, allow_import: Sequence[str]) -> None:
    for name, settings in benchmark.backbones.items():
        if settings.model is not None:
            _check_model(name, settings, allow_import)
        elif name not in NETWORKS and name in EXAMPLES:
            missing = f"backbones.{name} is a plug-in of deelbo's repository that is not installed"
            raise ConfigError(f"{missing}: run `pip install {EXAMPLES[name]}` in a copy of the repository")
        elif name not in NETWORKS:
            own = f"or give your own network under that name: backbones.{name}.model, such as torchvision:resnet34"
            raise ConfigError(f"backbone = {name!r}: expected one of {NETWORKS.describe()}; {own}")
        model = benchmark.backbone_source(name).model
        entry = find_backbone(model)
        if settings.weights is None and entry.weights is None and entry.torchvision is None and model != EMBEDDED:
            raise ConfigError(f"backbones.{name}.weights is missing: give a file of weights, or {NO_WEIGHTS}")
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


def _check_model(name: str, settings: BackboneSettings, allow_import: Sequence[str]) -> None:
    """Check a network of the user's own: its name here, and the text that says what it is."""
    model = settings.model or ""
    if name in BACKBONES or not re.match(NAME_PATTERN, name):
        expected = "expected letters, digits, dots, dashes, underscores, and no name of a built-in network"
        raise ConfigError(f"backbones.{name} is not a name for a network of your own, {expected}: choose another")
    try:
        find_backbone(model)
    except ValueError as error:
        if model in NETWORKS:
            raise ConfigError(f"backbones.{name}: {error}") from error
        expected = (
            "expected torchvision:NAME, timm:NAME, transformers:FOLDER_OR_NAME, PACKAGE.MODULE:FUNCTION, or a built-in "
            "network's name"
        )
        raise ConfigError(f"backbones.{name}.model = {model!r}: {expected}") from None
    package = imported_package(model)
    if package is not None and package not in allow_import:
        raise ConfigError(
            f"backbones.{name}.model = {model!r} runs code of the package {package}, which a configuration alone may "
            f"not: if you trust it, add --allow-import {package}"
        )
    if package is not None:
        add_current_folder(package)


def _check_text_networks(benchmark: Benchmark, images_here: bool) -> None:
    """Check what text networks alone have or lack, and for a cluster that the path of a folder is absolute."""
    laplace = next((name for name, settings in benchmark.methods.items() if settings.method == "laplace"), None)
    for name, settings in benchmark.backbones.items():
        model = BackboneSource(settings.model or name).text_model
        if model is None and settings.max_length is not None:
            raise ConfigError(f"backbones.{name}.max_length = {settings.max_length}: only texts have it: leave it out")
        if model is not None and laplace is not None:
            reason = "its gradients of single examples (torch.func.vmap) do not work through transformers"
            raise ConfigError(f"methods.{laplace} with backbones.{name}: {reason}: take {laplace} out of methods")
        if model is not None and settings.normalization is not None:
            raise ConfigError(f"backbones.{name}.normalization: texts are not normalized: leave it out")
        if model is None or images_here or model.startswith(("/", "~")):
            continue
        if model.startswith(".") or Path(model).is_dir():
            found = f"{model!r} is relative to this machine, not to the nodes"
            raise ConfigError(f"backbones.{name}: {found}: give the absolute path on the nodes")


def _check_methods(benchmark: Benchmark) -> None:
    if benchmark.training.train == "head" and "ptyl" in benchmark.priors:
        raise ConfigError(
            "priors = ptyl with training.train = head: its prior is over the backbone, which is not trained: take ptyl "
            "out of priors"
        )
    for name, settings in benchmark.methods.items():
        if not any(map(settings.runs_on, benchmark.priors)):
            raise ConfigError(
                f"methods.{name}.priors = {', '.join(settings.priors or ())}, none of which is among the benchmark's "
                f"({', '.join(benchmark.priors)}): name one of those, or take {name} out of methods"
            )
        for prior in filter(settings.runs_on, benchmark.priors):
            if (problem := settings.find_problem(prior)) is not None:
                raise ConfigError(f"methods.{name}: {problem}")
        if (problem := settings.find_training_problem(benchmark.training.model_dump())) is not None:
            raise ConfigError(f"methods.{name}: {problem}")


def _check_networks(benchmark: Benchmark, tasks: Mapping[str, TaskEntry]) -> None:
    """Raise ValueError if a head does not exist, or a network does not take the kind, size or channels of the data."""
    size = benchmark.training.image_size
    for name, settings in benchmark.backbones.items():
        entry = find_backbone(benchmark.backbone_source(name).model, size)
        if settings.head is not None and settings.model is None:
            from deelbo.pretrained.backbones import check_head  # torch takes seconds to import

            check_head(name, settings.head)
        for dataset, setting in benchmark.datasets.items():
            source = benchmark.source(dataset)
            given = (
                "text" if isinstance(setting, TextSettings) else "images" if source else DATASETS.find(dataset).inputs
            )
            if entry.inputs != given:
                found = f"{name} takes {entry.inputs}, {dataset} has {given}"
                raise ValueError(f"{found}: choose another backbone or dataset")
            if given == "images":
                _check_images(benchmark, name, dataset, tasks)
            if given == "text":
                _check_text(benchmark, name, dataset, tasks)


def _check_images(benchmark: Benchmark, name: str, dataset: str, tasks: Mapping[str, TaskEntry]) -> None:
    """Raise ValueError if a network does not take the images of a dataset; one of the user's own is tried."""
    settings, size, source = benchmark.backbones[name], benchmark.training.image_size, benchmark.source(dataset)
    model = benchmark.backbone_source(name).model
    channels, given = find_backbone(model).channels, DATASETS.find(dataset).channels if source is None else 3
    if channels is not None and given != channels:
        raise ValueError(
            f"{name} takes images of {channels} channel{'s' * (channels > 1)}, those of {dataset} have "
            f"{given}: choose another backbone or dataset"
        )
    if pixels := settings.normalization:
        _check_channels(name, pixels, given)
    if model not in BACKBONES or settings.model is not None:
        classes = tasks[dataset].num_classes if dataset in tasks else ASSUMED_CLASSES
        try:
            _try_network(model, classes, (given, crop_size(dataset, size, source)), settings.head, size)
        except ValueError as error:
            raise ValueError(f"backbones.{name}: {error}") from error


def _check_text(benchmark: Benchmark, name: str, dataset: str, tasks: Mapping[str, TaskEntry]) -> None:
    """Raise ValueError if a text network cannot be used; one that is not on this machine is not tried."""
    settings, network = benchmark.backbones[name], benchmark.backbone_source(name)
    if network.text_model is None or dataset not in tasks:
        return
    try:
        if Path(find_model(network.text_model)).is_absolute():
            _try_text(network, tasks[dataset].num_classes, settings.head)
    except ValueError as error:
        raise ValueError(f"backbones.{name}: {error}") from error


def _check_channels(name: str, pixels: ChannelNormalization, channels: int) -> None:
    for key, values in pixels:
        if len(values) != channels:
            raise ValueError(
                f"backbones.{name}.normalization.{key} = {list(values)}: expected a number for each of the {channels} "
                "channels of its images"
            )


@cache
def _try_network(model: str, classes: int, shape: tuple[int, int], head: str | None, size: int | None) -> None:
    """Try a network on two random images of ``shape`` (channels, side); raise ValueError if it cannot be trained."""
    import torch

    from deelbo.pretrained.backbones import check_network

    channels, side = shape
    batch = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    check_network(model, classes, batch, head, size)


@cache
def _try_text(network: BackboneSource, classes: int, head: str | None) -> None:
    """Try a text network on two short texts; raise ValueError if it, or its tokenizer, cannot be used."""
    import torch

    from deelbo.data.texts import load_tokenizer
    from deelbo.pretrained.backbones import check_network

    tokenizer, pad_id, longest = load_tokenizer(str(network.text_model), network.max_length)
    ids = tokenizer("a b", truncation=True, max_length=longest)["input_ids"]
    check_network(network.model, classes, torch.tensor([ids, [*ids[:-1], pad_id]], dtype=torch.int32), head)


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


def tokenized_sources(benchmark: Benchmark, dataset: str) -> list[Source | None]:
    """Return where a dataset is, once for each tokenizer with which it is read if it has texts."""
    source, networks = benchmark.source(dataset), map(benchmark.backbone_source, benchmark.backbones)
    return list(dict.fromkeys(network.tokenize(source) for network in networks))


def check_data(benchmark: Benchmark, datasets: Iterable[str]) -> dict[str, str]:
    """Read datasets as the trials will, check that every N fits, and return a hash of the images of each."""
    fingerprints = {}
    for name in datasets:
        source, size = benchmark.source(name), benchmark.training.image_size
        if is_embedded(name, source):
            continue
        for own in tokenized_sources(benchmark, name):
            task = load_task(name, benchmark.data, size, benchmark.verify_data, own, fresh=True)
            for n in benchmark.sizes[name]:
                try:
                    task.check_size(n)
                except ValueError as error:
                    raise ConfigError(f"{name}: {error}") from error
            fingerprints[name] = task.fingerprint
    return fingerprints
