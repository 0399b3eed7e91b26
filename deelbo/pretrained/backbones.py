"""The benchmark's networks: built by name, with pretrained weights and a new head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deelbo._random import seeded
from deelbo.groups import find_module
from deelbo.plugins import describe
from deelbo.pretrained.registry import NETWORKS, PATCH_SIZE, find_backbone, imported_package, vit_image_size

MAX_SHOWN = 8
EMBEDDING = "encoder.pos_embedding"  # the one weight whose shape depends on the image size, vit_b_16's


def find_head(model: nn.Module, num_classes: int) -> str:
    """Return the dotted name of a network's head.

    That is its own ``get_classifier()``, as timm's networks have it; else the last linear layer with ``num_classes``
    outputs; else the last linear layer.

    Raises:
        ValueError: it has no linear layer.
    """
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    get_classifier: Any = getattr(model, "get_classifier", lambda: None)
    classifier = get_classifier()
    own = [name for name, layer in linear.items() if layer is classifier]
    fitting = [name for name, layer in linear.items() if layer.out_features == num_classes]
    found: list[str] = own or fitting or list(linear)
    if found:
        return found[-1]
    raise ValueError(f"{type(model).__name__} has no Linear layer, expected one that gives the logits: add it")


def replace_head(model: nn.Module, head: str, num_classes: int) -> None:
    """Replace the head by a new linear layer with torch's default initialization.

    Raises:
        ValueError: it is not there, or not a linear layer; the message lists those that there are.
    """
    modules = dict(model.named_modules())
    old = modules.get(head)
    if not isinstance(old, nn.Linear):
        found = f"{type(model).__name__} has none by that name" if old is None else f"got {type(old).__name__}"
        linear = [name for name, layer in modules.items() if isinstance(layer, nn.Linear)]
        known = ", ".join([*["..."] * (len(linear) > MAX_SHOWN), *linear[-MAX_SHOWN:]]) or "none"
        raise ValueError(f"the head {head!r} must be a Linear layer, {found}: name the last layer; it has {known}")
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
        name: as for `deelbo.pretrained.registry.find_backbone`.
        num_classes: outputs of the new head.
        weights: the pretrained network's state dict, which is copied; None: random initialization. Except for
            digits-resnet, the head's weights may be absent or have any number of classes.
        seed: of the random initialization.
        head: dotted name of the linear layer that is the head; None: the network's own.
        image_size: side of the images in pixels, which only some networks need. The positional embedding of vit_b_16
            is resized by bicubic interpolation (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section
            3.2). None: the size of the weights, or 224 without weights.

    Raises:
        ValueError: an unknown name, no such head, weights of another network, or an impossible image size.
    """
    entry = find_backbone(name, image_size)
    head = head or entry.head
    with seeded(seed):
        if weights is not None and entry.meta and name != "digits-resnet":
            model, head = _load(name, weights, head, image_size)
        else:
            model = _build(name, num_classes, image_size)
            head = head or find_head(model, num_classes)
            if weights is not None:
                _load_state(name, model, weights, None if name == "digits-resnet" else head)
        replace_head(model, head, num_classes)
    return model, head


def shapes_only(name: str, image_size: int | None = None) -> tuple[nn.Module, str]:
    """Return the named network, on the device "meta" if it can be built there, and the name of its own head."""
    entry, num_classes = find_backbone(name, image_size), 1000
    with torch.device("meta" if entry.meta else "cpu"):
        model = _build(name, num_classes, image_size)
    return model, entry.head or find_head(model, num_classes)


def check_head(name: str, head: str) -> None:
    """Raise ValueError where the named network has no linear layer called ``head``."""
    replace_head(shapes_only(name)[0], head, num_classes=2)


def check_network(
    name: str, num_classes: int, batch: Tensor, head: str | None = None, image_size: int | None = None
) -> None:
    """Raise ValueError unless the network, built as for a trial, turns a batch (B, ...) into logits (B, num_classes).

    It is tried in training and in evaluation, on the CPU, with random weights. Its logits must come from its head, and
    from nothing but its state dict, with which it is kept.
    """
    model, head = build_backbone(name, num_classes, head=head, image_size=image_size)
    if others := [key for key, value in model.state_dict().items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{name} has the state {others[0]}, expected tensors alone: store it as buffers")
    expected = (len(batch), num_classes)
    for is_training in (True, False):
        model.train(is_training)
        try:
            with torch.no_grad():
                output = model(batch)
        except Exception as error:  # whatever the network's own code does
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{name} fails on a batch of shape {tuple(batch.shape)} ({reason}): correct it") from error
        found = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        if found != expected:
            mode = "training" if is_training else "evaluation"
            remedy = "return the logits alone, and name the layer that gives them as `head`"
            raise ValueError(f"{name} returns {found} in {mode}, expected logits of shape {expected}: {remedy}")
    _check_head_is_used(name, model, head, batch)
    if imported_package(name) is not None or name in NETWORKS:
        twin, _ = build_backbone(name, num_classes, seed=1, head=head, image_size=image_size)
        _check_state(name, model, twin, batch)


def _check_head_is_used(name: str, model: nn.Module, head: str, batch: Tensor) -> None:
    """Raise ValueError where the logits do not depend on the head, as another name leads to the layer before."""
    weight = find_module(model, head).get_parameter("weight")
    with torch.enable_grad():
        total = model(batch).sum()
        gradient = torch.autograd.grad(total, weight, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        raise ValueError(f"{name} does not use {head!r}, its head, once that is replaced: let one name lead to it")


@torch.no_grad()
def _check_state(name: str, model: nn.Module, twin: nn.Module, batch: Tensor) -> None:
    """Raise ValueError where a network built with another seed gives other logits, although it has the same state."""
    _load_state(name, twin, model.state_dict(), None)
    if not torch.allclose(model(batch), twin.eval()(batch), equal_nan=True):
        remedy = "make it a buffer (register_buffer), so that a kept model has it"
        raise ValueError(f"{name} depends on random numbers that are not in its state dict: {remedy}")


def _build(name: str, num_classes: int, image_size: int | None) -> nn.Module:
    """Return a new network; raise ValueError, in one line, for whatever goes wrong in its own code."""
    try:
        model: object = find_backbone(name, image_size).build(num_classes, image_size)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # such as SystemExit
        reason = str(error).partition("\n")[0]
        if isinstance(error, ValueError) and reason:
            raise ValueError(reason if reason.startswith(name) else f"{name}: {reason}") from error
        raise ValueError(f"{name} cannot be built ({describe(error)}): correct it") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} returns a {type(model).__name__}, expected a torch.nn.Module: return the network")
    return model


def _load(name: str, weights: Mapping[str, Tensor], head: str | None, image_size: int | None) -> tuple[nn.Module, str]:
    """Return the network with copies of the weights, built on "meta" to save initialization, with an empty head."""
    if image_size is None and EMBEDDING in weights:
        image_size = vit_image_size(weights[EMBEDDING].shape[1] - 1)
    model, own_head = shapes_only(name, image_size)
    head = head or own_head
    state = {}
    for key, tensor in weights.items():
        if not key.startswith(f"{head}."):
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            state[key] = tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
    if image_size is not None and EMBEDDING in state:
        from torchvision.models.vision_transformer import interpolate_embeddings

        state = interpolate_embeddings(image_size, PATCH_SIZE, state)  # changes nothing if the size is the same
    find_module(model, head).to_empty(device="cpu")
    _load_state(name, model, state, head, assign=True)
    return model, head


def _load_state(
    name: str, model: nn.Module, weights: Mapping[str, Tensor], head: str | None, assign: bool = False
) -> None:
    """Load weights, which must be all those outside the head, and no others; None: those of the head, too."""
    in_head = "" if head is None else f"{head}."
    state = {key: tensor for key, tensor in weights.items() if head is None or not key.startswith(in_head)}
    try:
        missing, unknown = model.load_state_dict(state, strict=False, assign=assign)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit {name}: {str(error).splitlines()[-1].strip()}") from error
    problems = [f"{key} is missing" for key in missing if head is None or not key.startswith(in_head)]
    if problems := [*problems, *(f"{key} is unknown" for key in unknown)]:
        raise ValueError(f"the weights do not fit {name}: {problems[0]}")
