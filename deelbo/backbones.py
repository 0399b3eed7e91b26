"""Which weights are backbone and which are head, and the networks that the benchmark trains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["BACKBONES", "DigitsResNet", "build_backbone", "replace_head", "split_at_head"]


def split_at_head(model: nn.Module, head: str | None) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained weights of ``model`` as (backbone, head); each weight once, frozen ones in neither.

    A weight that the head shares with the backbone counts as head.

    Raises:
        ValueError: the model has no submodule called ``head``.
    """
    head_weights = [] if head is None else [p for p in find_module(model, head).parameters() if p.requires_grad]
    of_head = set(head_weights)
    backbone = [p for p in model.parameters() if p.requires_grad and p not in of_head]
    return backbone, head_weights


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The submodule with that dotted name. Raises ValueError, naming those that exist, where there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in model.named_children()) or "no submodules"
        raise ValueError(
            f"{type(model).__name__} has no submodule {name!r}: give head= the dotted name of one; it has {children}"
        ) from None


def replace_head(model: nn.Module, head: str, num_classes: int) -> None:
    """Puts a new linear layer with torch's default initialisation where the old head was.

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


BACKBONES: dict[str, tuple[Callable[[], nn.Module], str]] = {"digits-resnet": (DigitsResNet, "fc")}
"""Name -> (constructor, dotted name of the head)."""


def build_backbone(
    name: str,
    num_classes: int,
    weights: dict[str, Tensor] | None = None,
    seed: int = 0,
    head: str | None = None,
) -> tuple[nn.Module, str]:
    """The named network with pretrained ``weights`` and a freshly initialised head, and the head's name.

    Args:
        name: one of `BACKBONES`.
        num_classes: outputs of the new head.
        weights: a state dict for the whole network as it was pretrained; None leaves the random initialisation.
        seed: of all random initialisation.
        head: dotted name of the linear layer that is the head; the network's own where None.

    Raises:
        ValueError: an unknown name, or no such head.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(sorted(BACKBONES))}, got {name!r}")
    constructor, own_head = BACKBONES[name]
    head = own_head if head is None else head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = constructor()
        if weights is not None:
            model.load_state_dict(weights)
        replace_head(model, head, num_classes)
    return model, head
