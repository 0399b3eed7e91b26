"""What is looked at before anything starts: does the configuration fit what exists, and the storage fit it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bench.benchmark import Benchmark
from bench.config import ConfigError, parse_benchmark
from bench.execute import start_fingerprint
from bench.records import RecordError, RecordStore
from deelbo.backbones import BACKBONES, replace_head, shapes_only
from deelbo.pretraining import Pretrained
from deelbo.tasks import TASKS, crop_size, load_task
from deelbo.tasks.splits import check_size
from deelbo.weights import VERSIONS

__all__ = ["check", "check_data", "check_start", "check_storage", "claim"]

EMBEDDED = "digits-resnet"  # its weights and SWAG posterior are made here


def check(benchmark: Benchmark) -> None:
    """What the configuration's types cannot say: that dataset, backbone, head and sizes exist and fit together.

    Raises:
        ConfigError: they do not.
    """
    for name in benchmark.datasets:
        if name not in TASKS:
            raise ConfigError(f"dataset = {name!r}: expected one of {', '.join(sorted(TASKS))}")
    for name, settings in benchmark.backbones.items():
        if name not in BACKBONES:
            raise ConfigError(f"backbone = {name!r}: expected one of {', '.join(sorted(BACKBONES))}")
        if (settings.weights or "").startswith("IMAGENET") and settings.weights not in VERSIONS:
            raise ConfigError(
                f"backbones.{name}.weights = {settings.weights!r}: expected {' or '.join(VERSIONS)}, or a local file"
            )
        if "ptyl" in benchmark.priors and settings.ptyl is None and name != EMBEDDED:
            raise ConfigError(
                f"prior ptyl needs backbones.{name}.ptyl, a file of mean, variance and factor: "
                "`deelbo-bench swag` makes one, or take ptyl out of priors"
            )
    try:
        for name, sizes in benchmark.datasets.items():
            for n in sizes:
                _check_size(name, n, TASKS[name].pool_size)
            crop_size(name, benchmark.training.image_size)
        for name, settings in benchmark.backbones.items():
            model, head = shapes_only(name, benchmark.training.image_size)
            replace_head(model, settings.head or head, 10)
        _check_channels(benchmark)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if benchmark.resources.gpus_per_trial and not benchmark.resources.gpus_per_trial <= 1:
        raise ConfigError(f"resources.gpus_per_trial = {benchmark.resources.gpus_per_trial:g}: a trial uses 1 at most")


def _check_size(name: str, n: int, pool: int) -> None:
    try:
        check_size(n, pool, TASKS[name].num_classes)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def check_data(store: RecordStore, benchmark: Benchmark, datasets: Iterable[str]) -> None:
    """Reads the datasets as the trials will: all is there, every N fits, and it is what earlier trials saw.

    Raises:
        ConfigError, RecordError, deelbo.tasks.DataError: it is not; one line.
    """
    tasks = {}
    for name in datasets:
        if TASKS[name].folder is not None:  # others come with an installed package
            tasks[name] = load_task(name, benchmark.data, benchmark.training.image_size, benchmark.verify_data)
            for n in benchmark.datasets[name]:
                _check_size(name, n, tasks[name].pool_size)
    for record in store.records() if tasks else ():
        task, found = tasks.get(record.spec.dataset), record.versions.get("data")
        if task is not None and found not in (None, task.fingerprint):
            raise RecordError(
                f"{store.url} holds trials that saw other images of {task.name} ({found}, here {task.fingerprint}): "
                "set `data` back, or choose another --storage"
            )


def _check_channels(benchmark: Benchmark) -> None:
    """Raises ValueError where a network takes images of another number of channels than a dataset has."""
    for name in benchmark.backbones:
        taken = 1 if name == EMBEDDED else 3
        for dataset in benchmark.datasets:
            if TASKS[dataset].channels != taken:
                raise ValueError(
                    f"{name} takes images of {taken} channel{'s' * (taken > 1)}, those of {dataset} have "
                    f"{TASKS[dataset].channels}: choose another backbone or dataset"
                )


def check_storage(store: RecordStore, benchmark: Benchmark) -> None:
    """Raises RecordError where the storage holds another benchmark, or something else."""
    there = store.read_benchmark()
    if there is not None:
        before = parse_benchmark(there, store.path("benchmark.json")).settings_that_bind()
        now = benchmark.settings_that_bind()
        changed = [f"{name} was {before[name]!r} and is now {now[name]!r}" for name in now if now[name] != before[name]]
        if changed:
            raise RecordError(f"{store.url} holds another benchmark ({changed[0]}): choose another --storage")


def claim(store: RecordStore, benchmark: Benchmark) -> None:
    """Makes the storage this benchmark's, or takes up what changed in it. Raises as `check_storage` does."""
    check_storage(store, benchmark)
    store.write_benchmark(benchmark.content())


def check_start(store: RecordStore, pretrained: Mapping[str, Pretrained]) -> None:
    """Raises RecordError where trials of this storage started from other pretrained weights than those at hand."""
    for record in store.records():
        start = pretrained.get(record.spec.backbone)
        if start is None or (record.spec.prior == "ptyl" and start.factor is None):
            continue  # not read in this call, which runs a part without it
        fingerprint = start_fingerprint(record.spec.prior, start)
        # a record of version 0.1 names all that its network has, whatever its prior needs
        if record.versions.get("pretrained", fingerprint) not in (fingerprint, start.fingerprint):
            found = record.versions["pretrained"]
            raise RecordError(
                f"{store.url} holds trials that started from pretrained weights {found}, here they are {fingerprint} "
                f"(another file in backbones.{record.spec.backbone}, another torch, or another machine): set it back, "
                "or choose another --storage"
            )
