"""Fits SWAG to an ImageNet backbone on its source images: the posterior that PTYL's prior is made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo.groups import split_at_head
from deelbo.pretrained.backbones import build_backbone
from deelbo.pretrained.source_images import SourceImages
from deelbo.pretrained.swag import SWAG, recompute_batchnorm
from deelbo.pretrained.swag_files import RANK, check_target, write_swag
from deelbo.pretrained.weights import read_weights

__all__ = ["fit_swag"]


def fit_swag(
    backbone: str,
    folder: str | Path,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 0.001,
    weight_decay: float = 1e-4,
    rank: int = RANK,
    collect_every: int | None = None,
    image_size: int = 224,
    statistics_images: int = 10_000,
    workers: int = 0,
    device: torch.device | str | None = None,
    seed: int = 0,
    say: Callable[[str], object] | None = None,
) -> Path:
    """Runs SGD from the pretrained weights, collects its iterates, and writes their SWAG posterior to ``out``.

    SGD has momentum 0.9 and a constant learning rate; the defaults are those with which Maddox et al. 2019 ("A Simple
    Baseline for Bayesian Uncertainty in Deep Learning") ran SWAG on ImageNet, but for the batch size. The pretrained
    head is kept where it has as many classes as ``folder``, else a new one is trained along; the posterior is without
    it. At the mean BatchNorm's statistics are recomputed. On one kind of machine the same seed gives the same file.

    Args:
        backbone: resnet50, vit_b_16 or convnext_tiny.
        folder: source images as for `SourceImages`.
        out: a .pt or .safetensors file, as `deelbo.pretrained.swag_files.read_swag` reads it; replaced where it exists.
        weights: where SGD starts, as for `deelbo.pretrained.weights.read_weights`.
        epochs: passes over the source images.
        batch_size: images a step; all of them where there are fewer.
        learning_rate: constant.
        weight_decay: the optimizer's.
        rank: K, how many deviations are kept; at least 5, PTYL's rank.
        collect_every: steps from one iterate to the next; an epoch where None.
        image_size: side of the crops. A vit_b_16 posterior is for this size alone.
        statistics_images: how many images, at most, BatchNorm's statistics are recomputed from.
        workers: processes that decode images; 0 for none but this one.
        device: where to train; the GPU where None and there is one.
        seed: of the new head, the order of the images and their crops.
        say: told what is done, a line at a time.

    Returns:
        ``out``.

    Raises:
        ValueError: no such weights, images that cannot be used, a file that cannot be written, too few iterates for
            the rank, another number that cannot be, or a run that diverged.
    """
    say = (lambda _: None) if say is None else say
    out = check_target(out)
    _check_numbers(backbone, epochs, batch_size, learning_rate, rank, statistics_images, collect_every)
    images = SourceImages(folder, image_size)
    steps = len(images) // min(batch_size, len(images))
    every = steps if collect_every is None else collect_every
    if epochs * steps // every < rank:
        raise ValueError(
            f"SWAG of rank {rank} needs as many iterates, {epochs} epochs of {steps} steps give "
            f"{epochs * steps // every}: raise epochs or lower collect_every"
        )
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pretrained = read_weights(backbone, weights)
    model, head = build_backbone(backbone, images.num_classes, pretrained, seed, image_size=image_size)
    kept = _keep_head(model.get_submodule(head), pretrained, head)
    say(
        f"{len(images):,} images of {images.num_classes:,} classes, {steps:,} steps an epoch; "
        f"the head is {'the pretrained one' if kept else 'new'}"
    )
    swag = SWAG(split_at_head(model.to(place), head)[0], rank)
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9, weight_decay=weight_decay)
    random = torch.Generator().manual_seed(seed)
    pin = place.type == "cuda"
    with torch.random.fork_rng(devices=[place] if pin else []):
        torch.manual_seed(seed)  # of dropped layers (convnext_tiny)
        done = 0
        for epoch in range(1, epochs + 1):
            model.train()
            total = torch.zeros((), device=place)
            for x, y in images.batches(batch_size, random, workers, pin=pin):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x.to(place, non_blocking=True)), y.to(place, non_blocking=True))
                loss.backward()
                optimizer.step()
                total += loss.detach()
                done += 1
                if done % every == 0:
                    swag.collect()
            mean_loss = float(total) / steps
            say(f"epoch {epoch} of {epochs}: mean loss {mean_loss:.4f}, {swag.count} iterates")
            if not torch.isfinite(total):
                raise ValueError(f"SGD diverged in epoch {epoch}: lower learning_rate, which is {learning_rate:g}")
        swag.load_mean()
        passed = images.batches(batch_size, random, workers, statistics_images, pin)
        recompute_batchnorm(model, (x.to(place, non_blocking=True) for x, _ in passed))
    parts = {"mean": swag.mean, "variance": swag.variance, "factor": swag.factor}
    buffers: dict[str, Tensor] = dict(model.named_buffers())
    if not all(bool(part.isfinite().all()) for part in [*parts.values(), *buffers.values()]):
        raise ValueError(f"SGD diverged: lower learning_rate, which is {learning_rate:g}")
    return write_swag(out, **parts, buffers=buffers)


def _check_numbers(
    backbone: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    rank: int,
    statistics_images: int,
    collect_every: int | None,
) -> None:
    if backbone == "digits-resnet":
        raise ValueError("digits-resnet has its SWAG posterior from deelbo itself: fit SWAG to another backbone")
    if rank < RANK:
        raise ValueError(f"rank must be at least {RANK}, which PTYL's prior needs, got {rank}")
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, which BatchNorm needs, got {batch_size}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be above 0, got {learning_rate}")
    counts = {"epochs": epochs, "statistics_images": statistics_images, "collect_every": collect_every}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


@torch.no_grad()
def _keep_head(module: nn.Module, pretrained: dict[str, Tensor], head: str) -> bool:
    """Puts the pretrained head into the new one where their shapes agree; whether they do."""
    own = dict(module.named_parameters())
    if any(f"{head}.{n}" not in pretrained or pretrained[f"{head}.{n}"].shape != p.shape for n, p in own.items()):
        return False
    for name, parameter in own.items():
        parameter.copy_(pretrained[f"{head}.{name}"])
    return True
