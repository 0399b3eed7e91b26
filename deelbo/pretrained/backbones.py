"""The benchmark's networks: built by name, with pretrained weights and a new head."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deelbo._random import seeded
from deelbo.groups import find_module
from deelbo.pretrained.registry import PATCH_SIZE, find_backbone, vit_image_size

EMBEDDING = "encoder.pos_embedding"  # the one weight whose shape depends on the image size, vit_b_16's


def replace_head(model: nn.Module, head: str, num_classes: int) -> None:
    """Replace the head, which must be a linear layer, by a new one with torch's default initialization."""
    old = find_module(model, head)
    if not isinstance(old, nn.Linear):
        raise ValueError(f"the head {head!r} must be a Linear layer, got {type(old).__name__}: name the last layer")
    new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    parent, _, leaf = head.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new.to(old.weight.device, old.weight.dtype))


def build_backbone(
    name: str,
    num_classes: int,
    weights: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    head: str | None = None,
    image_size: int | None = None,
) -> tuple[nn.Module, str]:
    """Return the named network with pretrained ``weights`` and a newly initialized head, and the head's name.

    Args:
        name: a key of `deelbo.pretrained.registry.BACKBONES`.
        num_classes: outputs of the new head.
        weights: the pretrained network's state dict, which is copied; None: random initialization. Except for
            digits-resnet, the head's weights may be absent or have any number of classes.
        seed: of the random initialization.
        head: dotted name of the linear layer that is the head; None: the network's own.
        image_size: side of the images in pixels, which only vit_b_16 needs. Its positional embedding is resized by
            bicubic interpolation (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.2). None: the
            size of the weights, or 224 without weights.

    Raises:
        ValueError: an unknown name, no such head, weights of another network, or an impossible image size.
    """
    entry = find_backbone(name, image_size)
    head = entry.head if head is None else head
    with seeded(seed):
        if weights is not None and name != "digits-resnet":
            model = _load(name, weights, head, image_size)
        else:
            model = entry.build(image_size)
            if weights is not None:
                model.load_state_dict(weights)
        replace_head(model, head, num_classes)
    return model, head


def shapes_only(name: str, image_size: int | None = None) -> tuple[nn.Module, str]:
    """Return the named network on the device "meta" (names and shapes without numbers), and its head's name."""
    entry = find_backbone(name, image_size)
    with torch.device("meta"):
        return entry.build(image_size), entry.head


def check_head(name: str, head: str) -> None:
    """Raise ValueError where the named network has no linear layer called ``head``."""
    replace_head(shapes_only(name)[0], head, num_classes=2)


def _load(name: str, weights: Mapping[str, Tensor], head: str, image_size: int | None) -> nn.Module:
    """Return the network with copies of the weights, built on "meta" to save initialization, and an empty head."""
    state = {}
    for key, tensor in weights.items():
        if not key.startswith(f"{head}."):
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            state[key] = tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
    if image_size is None and EMBEDDING in state:
        image_size = vit_image_size(state[EMBEDDING].shape[1] - 1)
    model, _ = shapes_only(name, image_size)
    if image_size is not None and EMBEDDING in state:
        from torchvision.models.vision_transformer import interpolate_embeddings

        state = interpolate_embeddings(image_size, PATCH_SIZE, state)  # changes nothing if the size is the same
    find_module(model, head).to_empty(device="cpu")
    try:
        missing, unknown = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit {name}: {str(error).splitlines()[-1].strip()}") from error
    problems = [f"{key} is missing" for key in missing if not key.startswith(f"{head}.")]
    if problems := [*problems, *(f"{key} is unknown" for key in unknown)]:
        raise ValueError(f"the weights do not fit {name}: {problems[0]}")
    return model
