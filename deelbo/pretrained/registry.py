"""Backbones by name. This module needs no torch, so that a configuration can be checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

IMAGENET_VERSIONS = ("IMAGENET1K_V1", "IMAGENET1K_V2")
"""Weights of torchvision that may be named. vit_b_16 has others, whose license excludes commercial use."""
PATCH_SIZE = 16  # pixels; of vit_b_16


@dataclass(frozen=True)
class BackboneEntry:
    """A network that can be built by name."""

    build: Callable[[int | None], nn.Module]  # given the side of its images in pixels (None: the usual one)
    head: str  # dotted name of its last linear layer
    channels: int = 3  # of its images
    patch_size: int | None = None  # pixels; the image size must be a positive multiple of it. None: any image size


def _digits_resnet(_image_size: int | None) -> nn.Module:
    from deelbo.pretrained.digits_resnet import DigitsResNet

    return DigitsResNet()


def _torchvision(name: str, head: str, patch_size: int | None = None) -> BackboneEntry:
    def build(image_size: int | None) -> nn.Module:
        from torchvision import models  # takes a second or more

        network: nn.Module = models.get_model(name, **({} if patch_size is None else {"image_size": image_size or 224}))
        return network

    return BackboneEntry(build, head, patch_size=patch_size)


BACKBONES = {
    "convnext_tiny": _torchvision("convnext_tiny", "classifier.2"),
    "digits-resnet": BackboneEntry(_digits_resnet, "fc", channels=1),
    "resnet18": _torchvision("resnet18", "fc"),
    "resnet50": _torchvision("resnet50", "fc"),
    "vit_b_16": _torchvision("vit_b_16", "heads.head", PATCH_SIZE),
}


def find_backbone(name: str, image_size: int | None = None) -> BackboneEntry:
    """Return the entry of ``name``, if it takes images of ``image_size`` pixels; else raise ValueError."""
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(sorted(BACKBONES))}, got {name!r}")
    patch = BACKBONES[name].patch_size
    if image_size is not None and patch is not None and (image_size < 1 or image_size % patch):
        raise ValueError(f"{name} needs an image size that is a multiple of {patch}, got {image_size}")
    return BACKBONES[name]


def vit_image_size(patches: int) -> int:
    """Return the side in pixels of the images that vit_b_16 cuts into ``patches`` patches, a square number."""
    side = isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise ValueError(f"vit_b_16 cuts images into a square of patches, and {patches:,} is not a square number")
    return side * PATCH_SIZE
