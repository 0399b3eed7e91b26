"""The benchmark that `finetune` runs: one method in one cell, made from a person's data and a network's name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.exceptions import ConfigError
from deelbo.data import DATASETS
from deelbo.pretrained.registry import BACKBONES, NETWORKS, NO_WEIGHTS

METHOD = "deelbo-halving"
GPU_TRAINING = {"steps": 6000, "batch_size": 128}  # as in the paper
CPU_TRAINING = {"steps": 600, "batch_size": 32}  # 40 times less work, which a CPU does in minutes to an hour or two


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of `finetune`.

    Attributes:
        data: a folder with a folder for each class, or a CSV file.
        backbone: a network's name, see `deelbo.pretrained.registry.find_backbone`.
        out: new folder for the model.
        weights, head: as in the configuration; None: the network's own.
        steps, batch_size, image_size: of training; None: chosen by the device, or the data.
        seed: of the initial head and of the order of the examples.
        batchnorm: whether BatchNorm's statistics are trained or stay.
        train: whether all weights are trained, or the head alone.
        test_share: share of each class that is held out where there is no test set.
        unreadable: what happens to images that cannot be decoded.
        text: columns of a CSV file that hold texts; empty: the data are images.
        label: column of the class, of texts.
        max_length: tokens to which texts are cut; None: as many as the network takes.
    """

    data: str
    backbone: str
    out: Path
    weights: str | None = None
    head: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    image_size: int | None = None
    seed: int = 0
    batchnorm: Literal["train", "frozen"] = "train"
    train: Literal["all", "head"] = "all"
    test_share: float = 0.0
    unreadable: Literal["refuse", "skip"] = "refuse"
    text: tuple[str, ...] = ()
    label: str = "label"
    max_length: int | None = None


def make_configuration(options: FinetuneOptions, gpu: bool, on_cluster: bool) -> dict[str, Any]:
    """Return the benchmark as its YAML file would be read.

    Args:
        options: what is asked for.
        gpu: whether trials take a GPU.
        on_cluster: whether trials run elsewhere. Here the one trial at a time gets all CPUs of this machine.
    """
    backbone, settings = _backbone(options)
    training = GPU_TRAINING if gpu else CPU_TRAINING
    given = {name: getattr(options, name) for name in ("steps", "batch_size", "image_size")}
    training = training | {name: value for name, value in given.items() if value is not None}
    resources: dict[str, Any] = {"gpus_per_trial": 1 if gpu else 0}
    if not on_cluster:
        resources |= {"slots": 1, "cpus_per_trial": 1 if gpu else len(os.sched_getaffinity(0))}
    return {
        "name": f"finetune-{_to_name(options.out.resolve().name, 'model')}",
        "datasets": {dataset_name(options.data): _dataset(options)},
        "backbones": {backbone: settings},
        # without pretrained weights there is nothing to stay close to
        "priors": ["l2-zero" if options.weights == NO_WEIGHTS else "l2-sp"],
        "seeds": [options.seed],
        "methods": {METHOD: {}},
        # the objective of training batches chooses the learning rate, so that draws at the end would be wasted
        "training": training | {"batchnorm": options.batchnorm, "train": options.train, "posterior_passes": 1},
        "resources": resources,
        "keep": "chosen",
    }


def dataset_name(data: str) -> str:
    """Return the name that the data get in the benchmark: that of the folder or file, as far as it can be one."""
    path = Path(data).resolve()
    name = _to_name(path.stem if path.suffix.lower() == ".csv" else path.name, "data")
    return f"{name}-own" if name in DATASETS else name


def check_out(folder: Path) -> None:
    """Raise ConfigError if a folder for a model has something in it, or cannot be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out {folder} exists and is not an empty folder: give another --out")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ConfigError(f"--out {folder} cannot be made, as nothing can be written to {parent}: give another --out")


def _dataset(options: FinetuneOptions) -> dict[str, Any]:
    is_csv = Path(options.data).suffix.lower() == ".csv"
    common = {"n": ["all"], "test_share": options.test_share}
    if options.text:
        return {"csv": options.data, "text": list(options.text), "label": options.label} | common
    return {"csv" if is_csv else "folder": options.data, "unreadable": options.unreadable} | common


def _backbone(options: FinetuneOptions) -> tuple[str, dict[str, Any]]:
    """Return the name of the network in the benchmark, and its settings."""
    given = {"weights": options.weights, "head": options.head, "max_length": options.max_length}
    settings = {name: value for name, value in given.items() if value is not None}
    library, _, model = options.backbone.partition(":")
    if library == "torchvision" and model in BACKBONES:
        return model, settings
    if not model:  # a name of this package or of a plug-in
        return options.backbone, settings
    name = _to_name(Path(model).name, "network")
    return f"{name}-own" if name in NETWORKS else name, {"model": options.backbone} | settings


def _to_name(text: str, default: str) -> str:
    """Return a text with only letters, digits, dots, dashes and underscores; ``default`` if nothing is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:60] or default
