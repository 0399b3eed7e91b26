"""Backbones by name. This module needs no torch, so that a configuration can be checked before torch is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deelbo.data import Source, TextSource
from deelbo.plugins import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGENET_VERSIONS = ("IMAGENET1K_V1", "IMAGENET1K_V2")
"""Weights of torchvision that may be named. vit_b_16 has others, whose license excludes commercial use."""
NO_WEIGHTS = "none"
"""In place of weights: random initialization."""
PATCH_SIZE = 16  # pixels; of vit_b_16
LIBRARIES = ("torchvision", "timm", "transformers")
TEXT_PREFIX = "transformers:"


@dataclass(frozen=True)
class BackboneEntry:
    """A network that can be built by name.

    Attributes:
        build: returns the network, given the number of classes and the side of its images in pixels (None: the usual
            one). Its head is replaced afterwards, so it may have any number of outputs.
        head: dotted name of its last linear layer; None: it is found, see `deelbo.pretrained.backbones.find_head`.
        channels: of its images; None: any.
        patch_size: in pixels; the image size must be a positive multiple of it. None: any image size.
        inputs: kind of data that it takes, see `deelbo.data.TaskEntry`.
        weights: returns its pretrained weights, a state dict or the path of one; None: it has none of its own.
        mean, std: channel means and standard deviations, of pixels from 0 to 1, by which its images are normalized;
            None: those of the training images.
        torchvision: name of torchvision's model whose published weights fit; None: there are none.
        meta: whether it can be built on torch's device "meta", which saves its initialization: all of its tensors are
            in its state dict.
    """

    build: Callable[[int, int | None], nn.Module]
    head: str | None = None
    channels: int | None = 3
    patch_size: int | None = None
    inputs: str = "images"
    weights: Callable[[], Mapping[str, Tensor] | str | Path] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    torchvision: str | None = None
    meta: bool = False


@dataclass(frozen=True)
class BackboneSource:
    """A network under a name of the user's own.

    Attributes:
        model: as for `find_backbone`.
        mean, std: as those of `BackboneEntry`, which they replace.
        max_length: tokens to which texts are cut; None: as many as the network takes.
    """

    model: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    max_length: int | None = None

    @property
    def text_model(self) -> str | None:
        """The folder or name of a network of transformers; None for another network."""
        return self.model.removeprefix(TEXT_PREFIX) if self.model.startswith(TEXT_PREFIX) else None

    def tokenize(self, source: Source | None) -> Source | None:
        """Return where a dataset is; if it has texts, with the network's tokenizer."""
        if isinstance(source, TextSource) and self.text_model is not None:
            return source.tokenized_by(self.text_model, self.max_length)
        return source


def _digits_resnet(_num_classes: int, _image_size: int | None) -> nn.Module:
    from deelbo.pretrained.digits_resnet import DigitsResNet

    return DigitsResNet()


def _torchvision(name: str, head: str | None = None, patch_size: int | None = None) -> BackboneEntry:
    def build(_num_classes: int, image_size: int | None) -> nn.Module:
        from torchvision import models  # takes a second or more

        if name not in models.list_models(module=models):  # those for other tasks download weights of a part
            raise ValueError(f"Unknown model {name}: expected a classifier of torchvision.models")
        options = {"image_size": image_size or 224} if name.startswith("vit_") else {}
        network: nn.Module = models.get_model(name, **options)
        return network

    return BackboneEntry(build, head, patch_size=patch_size, torchvision=name, meta=head is not None)


def _timm(name: str) -> BackboneEntry:
    def build(num_classes: int, image_size: int | None) -> nn.Module:
        timm = _import("timm", f"timm:{name}", "pip install 'deelbo[recipes]'")
        if not timm.is_model(name):  # such as hf-hub:..., which would be downloaded
            raise ValueError(f"Unknown model {name}: expected a name of timm.list_models()")
        fixed = getattr(timm.get_pretrained_cfg(name, allow_unregistered=True), "fixed_input_size", False)
        options = {"img_size": image_size} if fixed and image_size is not None else {}
        network: nn.Module = timm.create_model(name, num_classes=num_classes, **options)
        return network

    return BackboneEntry(build)


def _transformers(model: str) -> BackboneEntry:
    def build(num_classes: int, _image_size: int | None) -> nn.Module:
        from deelbo.pretrained.text import build_classifier  # takes seconds

        return build_classifier(model, num_classes)

    def weights() -> Mapping[str, Tensor]:
        from deelbo.pretrained.text import read_weights

        return read_weights(model)

    return BackboneEntry(build, channels=None, inputs="text", weights=weights)


def _imported(path: str) -> BackboneEntry:
    def build(num_classes: int, _image_size: int | None) -> nn.Module:
        module_name, _, function = path.partition(":")
        found: Any = _import(module_name, path, "correct the path, or install the package")
        try:
            for part in function.split("."):
                found = getattr(found, part)
        except AttributeError:
            raise ValueError(f"{path}: the module {module_name} has no {function}: correct the path") from None
        network: nn.Module = found(num_classes)
        return network

    return BackboneEntry(build, channels=None)


def _import(module: str, model: str, remedy: str) -> Any:
    try:
        return import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the module does when it is imported, such as SystemExit
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{model} cannot be imported ({reason}): {remedy}") from error


BACKBONES = {
    "convnext_tiny": _torchvision("convnext_tiny", "classifier.2"),
    "digits-resnet": BackboneEntry(_digits_resnet, "fc", channels=1, meta=True),
    "resnet18": _torchvision("resnet18", "fc"),
    "resnet50": _torchvision("resnet50", "fc"),
    "vit_b_16": _torchvision("vit_b_16", "heads.head", PATCH_SIZE),
}


def _find_fault(_name: str, entry: object) -> str | None:
    """Return what is wrong with the entry that a plug-in gives."""
    if not isinstance(entry, BackboneEntry):
        return f"it is of the type {type(entry).__name__}, expected deelbo.pretrained.registry.BackboneEntry"
    return None if callable(entry.build) else f"its build is {entry.build!r}, expected a function"


NETWORKS = Registry("backbone", BACKBONES, _find_fault)
"""The networks of `BACKBONES`, and those of plug-ins."""


def find_backbone(name: str, image_size: int | None = None) -> BackboneEntry:
    """Return the entry of a network, if it takes images of ``image_size`` pixels.

    Args:
        name: a name of `NETWORKS`; "torchvision:NAME", "timm:NAME" or "transformers:FOLDER_OR_NAME"; or
            "PACKAGE.MODULE:FUNCTION", a function that returns a network, given the number of classes. Nothing is
            imported before the network is built.
        image_size: side of the images in pixels; None: not known.

    Raises:
        ValueError: no such name, or images of a size that it does not take.
    """
    entry = _find(name)
    patch = entry.patch_size
    if image_size is not None and patch is not None and (image_size < 1 or image_size % patch):
        raise ValueError(f"{name} needs an image size that is a multiple of {patch}, got {image_size}")
    return entry


def _find(name: str) -> BackboneEntry:
    library, _, model = name.partition(":")
    if library == "torchvision" and model:
        return BACKBONES.get(model) or _torchvision(model)
    if library == "timm" and model:
        return _timm(model)
    if name.startswith(TEXT_PREFIX) and model:
        return _transformers(model)
    if imported_package(name) is not None:
        return _imported(name)
    return NETWORKS.find(name)


def imported_package(name: str) -> str | None:
    """Return the top-level package of "PACKAGE.MODULE:FUNCTION"; None for another name of a network."""
    match = re.fullmatch(r"([A-Za-z_]\w*)(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name)
    return None if match is None or match[1] in LIBRARIES else match[1]


def vit_image_size(patches: int) -> int:
    """Return the side in pixels of the images that vit_b_16 cuts into ``patches`` patches, a square number."""
    side = isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise ValueError(f"vit_b_16 cuts images into a square of patches, and {patches:,} is not a square number")
    return side * PATCH_SIZE
