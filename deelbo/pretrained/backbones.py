"""Which weights are backbone and which are head, and the networks that the benchmark trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt

import torch
from torch import Tensor, nn

from deelbo.groups import find_module

__all__ = ["BACKBONES", "DigitsResNet", "build_backbone", "replace_head", "shapes_only", "vit_image_size"]


EMBEDDING = "encoder.pos_embedding"  # the one weight whose shape depends on the image size, vit_b_16's
PATCH = 16


def replace_head(model: nn.Module, head: str, num_classes: int) -> None:
    """Puts a new linear layer with torch's default initialization where the old head was.

    Raises:
        ValueError: no such submodule, or it is not a linear layer.
    """
    old = find_module(model, head)
    if not isinstance(old, nn.Linear):
        raise ValueError(f"the head {head!r} must be a Linear layer, got {type(old).__name__}: name the last layer")
    new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    parent, _, leaf = head.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new.to(old.weight.device, old.weight.dtype))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a skip connection (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.downsample(x)
        return torch.relu_(out)


class DigitsResNet(nn.Module):
    """A small ResNet for grey 16x16 digits, with BatchNorm; widths 8, 16, 32; 18,626 weights at 10 classes.

    Input (B, 1, H, W), output (B, num_classes). The head is ``fc``.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = ResidualBlock(8, 16, 2)
        self.layer2 = ResidualBlock(16, 32, 2)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _imagenet_network(name: str, image_size: int | None = None) -> nn.Module:
    from torchvision import models  # a second or more, which `import deelbo` need not wait for

    if name != "vit_b_16":
        network: nn.Module = models.get_model(name)
        return network
    if image_size is not None and (image_size < PATCH or image_size % PATCH):
        raise ValueError(f"vit_b_16 needs an image size that is a multiple of {PATCH}, got {image_size}")
    network = models.get_model(name, image_size=image_size or 224)
    return network


BACKBONES: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "convnext_tiny": (partial(_imagenet_network, "convnext_tiny"), "classifier.2"),
    "digits-resnet": (DigitsResNet, "fc"),
    "resnet50": (partial(_imagenet_network, "resnet50"), "fc"),
    "vit_b_16": (partial(_imagenet_network, "vit_b_16"), "heads.head"),
}
"""Name -> (constructor, dotted name of the head). All but digits-resnet take ``image_size`` and are torchvision's."""


def build_backbone(
    name: str,
    num_classes: int,
    weights: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    head: str | None = None,
    image_size: int | None = None,
) -> tuple[nn.Module, str]:
    """The named network with pretrained ``weights`` and a freshly initialized head, and the head's name.

    Args:
        name: one of `BACKBONES`.
        num_classes: outputs of the new head.
        weights: a state dict for the whole network as it was pretrained, which is copied; None leaves the random
            initialization. But for digits-resnet the head's weights may be absent or of any number of classes.
        seed: of all random initialization.
        head: dotted name of the linear layer that is the head; the network's own where None.
        image_size: side of the images, which only vit_b_16 needs to know. Positional embeddings of another size are
            interpolated, bicubic (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", 3.2). None: the size that
            the weights are for, 224 without weights.

    Raises:
        ValueError: an unknown name, no such head, weights of another network, or an image size that cannot be.
    """
    constructor, own_head = _entry(name)
    head = own_head if head is None else head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "digits-resnet":
            model = constructor()
            if weights is not None:
                model.load_state_dict(weights)
        elif weights is None:
            model = constructor(image_size=image_size)
        else:
            model = _loaded(name, weights, head, image_size)
        replace_head(model, head, num_classes)
    return model, head


def shapes_only(name: str, image_size: int | None = None) -> tuple[nn.Module, str]:
    """The named network on the device "meta", which has names and shapes but no numbers; and its head's name.

    Raises:
        ValueError: an unknown name, or an image size that cannot be.
    """
    constructor, head = _entry(name)
    with torch.device("meta"):
        return (constructor() if name == "digits-resnet" else constructor(image_size=image_size)), head


def vit_image_size(patches: int) -> int:
    """The side in pixels of the images that vit_b_16 cuts into so many patches. ValueError: not a square number."""
    side = isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise ValueError(f"vit_b_16 sees a square of patches, {patches:,} are none")
    return side * PATCH


def _entry(name: str) -> tuple[Callable[..., nn.Module], str]:
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(sorted(BACKBONES))}, got {name!r}")
    return BACKBONES[name]


def _loaded(name: str, weights: Mapping[str, Tensor], head: str, image_size: int | None) -> nn.Module:
    """The network with copies of the weights, its head left with whatever was in memory.

    It is made without numbers first, as the random ones of a large network take a second and would be overwritten.
    """
    state = {key: _copy(tensor) for key, tensor in weights.items() if not key.startswith(f"{head}.")}
    if image_size is None and EMBEDDING in state:
        image_size = vit_image_size(state[EMBEDDING].shape[1] - 1)
    model, _ = shapes_only(name, image_size)
    if image_size is not None and EMBEDDING in state:
        from torchvision.models.vision_transformer import interpolate_embeddings

        state = interpolate_embeddings(image_size, PATCH, state)  # leaves those of the right size as they are
    find_module(model, head).to_empty(device="cpu")
    try:
        missing, unknown = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit {name}: {str(error).splitlines()[-1].strip()}") from error
    missing = [key for key in missing if not key.startswith(f"{head}.")]
    if missing or unknown:
        first = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise ValueError(f"the weights do not fit {name}: {first}")
    return model


def _copy(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
