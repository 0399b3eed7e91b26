"""Fit SWAG to an ImageNet backbone on its source images: the posterior from which PTYL's prior is made."""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from deelbo._random import seeded
from deelbo.devices import usable_device
from deelbo.groups import split_at_head
from deelbo.pretrained.backbones import build_backbone
from deelbo.pretrained.registry import find_backbone
from deelbo.pretrained.source_images import SourceImages
from deelbo.pretrained.swag import SWAG
from deelbo.pretrained.swag_files import RANK, check_target, write_swag
from deelbo.pretrained.weights import read_weights

MAX_IMAGE_SIZE = 10_000


@dataclass(frozen=True)
class SwagConfig:
    """Settings of `fit_swag`.

    The defaults are those with which Maddox et al. 2019 ("A Simple Baseline for Bayesian Uncertainty in Deep Learning")
    ran SWAG on ImageNet, except for the batch size.
    """

    epochs: int = 10  # passes over the source images
    batch_size: int = 128  # images per step; all of them where there are fewer
    learning_rate: float = 0.001  # constant learning rate of SGD, whose momentum is 0.9
    weight_decay: float = 1e-4
    rank: int = RANK  # K, number of deviations that are kept; at least 5, PTYL's rank
    collect_every: int | None = None  # steps from one iterate to the next; None: one epoch
    image_size: int = 224  # side of the crops in pixels; a vit_b_16 posterior is for this size only
    statistics_images: int = 10_000  # maximum number of images from which BatchNorm's statistics are recomputed
    workers: int = 0  # processes that decode images; 0: this process does. They do not change the result
    seed: int = 0  # of the new head, the order of the images and their crops

    def __post_init__(self) -> None:
        if self.rank < RANK:
            raise ValueError(f"rank must be at least {RANK}, which PTYL's prior needs, got {self.rank}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, which BatchNorm needs, got {self.batch_size}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be finite and above 0, got {self.learning_rate}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 to 2^63 - 1, got {self.seed}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        if not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be 1 to {MAX_IMAGE_SIZE}, got {self.image_size}")
        for name in ("epochs", "statistics_images", "collect_every"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")


def fit_swag(
    backbone: str,
    folder: str | Path,
    out: str | Path,
    config: SwagConfig | None = None,
    *,
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
    say: Callable[[str], object] | None = None,
) -> Path:
    """Run SGD from the pretrained weights, write the SWAG posterior of its iterates to ``out``, and return ``out``.

    The pretrained head is kept where it has as many classes as ``folder``, else a new one is trained; the posterior
    does not include it. BatchNorm's statistics are recomputed at the mean. On one kind of machine the same seed gives
    the same file.

    Args:
        backbone: resnet50, vit_b_16 or convnext_tiny.
        folder: source images, see `SourceImages`.
        out: a .pt or .safetensors file for `deelbo.pretrained.swag_files.read_swag`; an existing one is replaced.
        config: settings; None: the defaults.
        weights: initial weights, see `deelbo.pretrained.weights.read_weights`.
        device: device to train on; None: the GPU if there is one.
        say: called with one line of progress at a time.

    Raises:
        ValueError: an unusable device, weights, images or ``out``, too few iterates for the rank, a run that diverged,
            or one for which the memory does not suffice.
    """
    device = usable_device(device)
    say, config, out = say or (lambda _: None), config or SwagConfig(), check_target(out)
    if backbone == "digits-resnet":
        raise ValueError("digits-resnet has its SWAG posterior from deelbo itself: fit SWAG to another backbone")
    entry = find_backbone(backbone)
    images = SourceImages(folder, config.image_size, entry.mean, entry.std)
    steps = len(images) // min(config.batch_size, len(images))
    iterates = config.epochs * steps // (config.collect_every or steps)
    if iterates < config.rank:
        found = f"{config.epochs} epochs of {steps} steps give {iterates}: raise epochs or lower collect_every"
        raise ValueError(f"SWAG of rank {config.rank} needs as many iterates, {found}")
    pretrained = read_weights(backbone, weights)
    say(f"checking the headers of {len(images):,} images")  # three minutes for ImageNet's
    images.check_headers()
    model, head = build_backbone(
        backbone, images.num_classes, pretrained or None, config.seed, image_size=config.image_size
    )
    kept = _keep_head(model.get_submodule(head), pretrained, head)
    say(
        f"{len(images):,} images of {images.num_classes:,} classes, {steps:,} steps an epoch; "
        f"the head is {'the pretrained one' if kept else 'new'}"
    )
    generator = torch.Generator().manual_seed(config.seed)
    with _one_line_errors(backbone, device), seeded(config.seed, device):  # for dropped layers (convnext_tiny)
        swag = SWAG(split_at_head(model.to(device), head)[0], config.rank)
        _check_space(out, swag)
        _collect_iterates(model, swag, images, generator, config, say)
        posterior = _posterior_at_mean(model, swag, images, generator, config)
    return write_swag(out, **posterior)


@contextmanager
def _one_line_errors(backbone: str, device: torch.device) -> Iterator[None]:
    """Describe errors of memory, of images too small for the network, and of killed workers in one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        remedy = "change batch_size, image_size or workers"
        raise ValueError(f"{backbone} cannot be trained so on {device} ({why}): {remedy}") from error


def _check_space(out: Path, swag: SWAG) -> None:
    """Refuse a file for which there is no room, before hours are spent on its content."""
    needed, free = 4 * swag.mean.numel() * (2 + swag.rank), shutil.disk_usage(out.parent).free
    if needed > free:
        raise ValueError(f"{out} takes {needed / 1e9:.2g} GB, {free / 1e9:.2g} GB are free: give another path")


def _collect_iterates(
    model: nn.Module,
    swag: SWAG,
    images: SourceImages,
    generator: torch.Generator,
    config: SwagConfig,
    say: Callable[[str], object],
) -> None:
    rate, device = config.learning_rate, swag.weights[0].device
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=config.weight_decay)
    steps = len(images) // min(config.batch_size, len(images))
    every, steps_done = config.collect_every or steps, 0
    for epoch in range(1, config.epochs + 1):
        model.train()
        total = torch.zeros((), device=device)
        for x, y in images.batches(config.batch_size, generator, config.workers, pin=device.type == "cuda"):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.to(device, non_blocking=True)), y.to(device, non_blocking=True))
            loss.backward()
            optimizer.step()
            total += loss.detach()
            steps_done += 1
            if steps_done % every == 0:
                swag.collect()
        say(f"epoch {epoch} of {config.epochs}: mean loss {float(total) / steps:.4f}, {swag.count} iterates")
        if not torch.isfinite(total):
            raise ValueError(f"SGD diverged in epoch {epoch}: lower learning_rate, which is {rate:g}")


def _posterior_at_mean(
    model: nn.Module, swag: SWAG, images: SourceImages, generator: torch.Generator, config: SwagConfig
) -> dict[str, Any]:
    """Move the model to SWAG's mean and return the posterior with the network's buffers there."""
    device, size = swag.weights[0].device, config.batch_size
    swag.load_mean()
    batches = images.batches(size, generator, config.workers, config.statistics_images, pin=device.type == "cuda")
    update_bn(batches, model, device)
    parts = {"mean": swag.mean, "variance": swag.variance, "factor": swag.factor}
    buffers: dict[str, Tensor] = dict(model.named_buffers())
    if not all(bool(part.isfinite().all()) for part in [*parts.values(), *buffers.values()]):
        raise ValueError(f"SGD diverged: lower learning_rate, which is {config.learning_rate:g}")
    return {**parts, "buffers": buffers}


@torch.no_grad()
def _keep_head(module: nn.Module, pretrained: dict[str, Tensor], head: str) -> bool:
    """Copy the pretrained head into the new one where their shapes agree; return whether they do."""
    own = dict(module.named_parameters())
    if any(f"{head}.{n}" not in pretrained or pretrained[f"{head}.{n}"].shape != p.shape for n, p in own.items()):
        return False
    for name, parameter in own.items():
        parameter.copy_(pretrained[f"{head}.{name}"])
    return True
