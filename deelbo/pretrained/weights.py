"""Read a backbone's pretrained weights: torchvision's ImageNet weights or a local state dict, and PTYL's posterior."""

import hashlib
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from deelbo.plugins import describe
from deelbo.pretrained.backbones import EMBEDDING, build_backbone, shapes_only
from deelbo.pretrained.embedded import Pretrained, load_pretrained
from deelbo.pretrained.registry import (
    BACKBONES,
    IMAGENET_VERSIONS,
    NETWORKS,
    NO_WEIGHTS,
    BackboneSource,
    find_backbone,
    vit_image_size,
)
from deelbo.pretrained.swag_files import SwagSource, read_swag, weights_at_mean
from deelbo.pretrained.tensor_files import one_line, read_tensors

RENAMED = {"mlp.linear_1.": "mlp.0.", "mlp.linear_2.": "mlp.3."}  # names in the published vit_b_16 file


def load_backbone(
    name: str,
    weights: str | Path | None = None,
    ptyl: SwagSource | None = None,
    say: Callable[[str], object] | None = None,
    image_size: int | None = None,
    head: str | None = None,
    max_length: int | None = None,
) -> Pretrained:
    """Return the named backbone's pretrained weights and, with ``ptyl``, its SWAG posterior. Never downloads.

    Args:
        name: as for `deelbo.pretrained.registry.find_backbone`.
        weights: as for `read_weights`.
        ptyl: files as for `deelbo.pretrained.swag_files.read_swag`; None: no SWAG posterior.
        say: called with one line if digits-resnet has to be pretrained now.
        image_size: side of the training images, if known; a vit_b_16 posterior must be of that size.
        head: dotted name of the head, whose weights are not used; None: the network's own.
        max_length: tokens to which texts are cut, if the network takes texts.

    Raises:
        ValueError: an unknown name, or a file that is missing, damaged or of another network.
    """
    if name == "digits-resnet":
        if weights is not None or ptyl is not None:
            setting = "weights" if weights is not None else "ptyl"
            raise ValueError(f"digits-resnet is pretrained by deelbo itself: leave out `{setting}`")
        return load_pretrained(say=say)
    state = read_weights(name, weights, head)
    architecture = describe_architecture(name, image_size, max_length) if name not in BACKBONES else ""
    if ptyl is None:
        return Pretrained(state, architecture=architecture)
    posterior = read_swag(ptyl, name)
    if image_size is not None and posterior.image_size not in (None, image_size):
        found = f"the PTYL files of {name} are for images of {posterior.image_size} px, this task has {image_size} px"
        raise ValueError(f"{found}: fit SWAG again with image_size {image_size}")
    initial = state or build_backbone(name, 2, image_size=image_size)[0].state_dict()
    at_mean = weights_at_mean(initial, posterior, name)
    return Pretrained(state, at_mean, posterior.variance, posterior.factor, architecture)


def describe_architecture(name: str, image_size: int | None = None, max_length: int | None = None) -> str:
    """Return a text that differs between networks of another name, or with weights of other names or shapes.

    The name of a text network, which may be any folder, is replaced by its settings, vocabulary and ``max_length``.
    """
    model, head = shapes_only(name, image_size)
    if (text_model := BackboneSource(name).text_model) is not None:
        from deelbo.pretrained.text import describe

        name = describe(text_model, max_length)
    return repr([name, head, [(key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()]])


def imagenet_file(backbone: str, version: str) -> Path:
    """Return the path at which torchvision caches these weights, after a check of the file. Never downloads.

    Raises:
        ValueError: no such weights, or the file is missing or does not have the SHA-256 hash that its name ends with.
    """
    path, _, prefix = _published(backbone, version)
    if not path.is_file():
        remedy = "run `deelbo-bench prepare CONFIG` where there is a network, or set `weights` to a local file"
        raise ValueError(f"the {version} weights of {backbone} are not at {path}: {remedy}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(prefix):
        raise ValueError(f"{path} is half-downloaded or changed: delete it and run `deelbo-bench prepare CONFIG`")
    return path


def download_weights(backbone: str, version: str) -> Path:
    """Download the file of `imagenet_file` from torchvision's server if it is missing, and return its path."""
    path, url, prefix = _published(backbone, version)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), prefix)
        except (OSError, RuntimeError, HTTPException) as error:
            remedy = "try again with a network and a $TORCH_HOME that can be written, or set `weights` to a local file"
            raise ValueError(f"{url} could not be downloaded to {path} ({one_line(error)}): {remedy}") from error
    return imagenet_file(backbone, version)


def _published(backbone: str, version: str) -> tuple[Path, str, str]:
    """Return torchvision's path and URL of these weights, and the first digits of their SHA-256 hash."""
    if backbone == "digits-resnet":
        raise ValueError("digits-resnet has no published weights: deelbo pretrains it itself")
    published = find_backbone(backbone).torchvision
    if published is None:
        raise ValueError(f"{backbone} has no weights {version}: set `weights` to a local file, or to {NO_WEIGHTS}")
    from torchvision.models import get_model_weights

    known = {entry.name: entry.url for entry in get_model_weights(published) if entry.name in IMAGENET_VERSIONS}
    if version not in known:
        raise ValueError(f"{backbone} has the weights {', '.join(known)}, or those of a local file; got {version!r}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / known[version].rpartition("/")[2]
    return path, known[version], path.stem.rpartition("-")[2]


def read_weights(backbone: str, source: str | Path | None = None, head: str | None = None) -> dict[str, Tensor]:
    """Return pretrained weights of a backbone as a float32 state dict in the network's order; empty if it has none.

    Args:
        backbone: as for `deelbo.pretrained.registry.find_backbone`.
        source: IMAGENET1K_V1 or IMAGENET1K_V2 of torchvision, see `imagenet_file`; "none"; or the path of a state
            dict, bare or under "state_dict" or "model", with or without the prefix "module.". The head may be absent
            or have any number of classes, BatchNorm's num_batches_tracked may be absent, and vit_b_16's positional
            embedding may have any square number of patches. None: the backbone's own weights, which of torchvision's
            networks are IMAGENET1K_V1.
        head: dotted name of the head; None: the network's own.

    Raises:
        ValueError: no such file, damage, names or shapes of another network, or a number that is not finite.
    """
    found = own_weights(backbone) if source is None else source
    if found == NO_WEIGHTS:
        return {}
    model, own_head = shapes_only(backbone)
    head = head or own_head
    tensors, where = _read_state(backbone, found)
    own, differences, weights = model.state_dict(), [], {}
    for name, expected in own.items():
        in_head = name.startswith(f"{head}.")
        if name not in tensors:
            if name.endswith(".num_batches_tracked"):
                weights[name] = torch.zeros_like(expected, device="cpu")
            elif not in_head or f"{head}.weight" in tensors:
                differences.append(f"{name} is missing")
        elif difference := _difference(name, tensors[name], expected, in_head):
            differences.append(difference)
        else:
            weights[name] = tensors[name].to(expected.dtype, copy=True, memory_format=torch.contiguous_format)
    differences += [f"{name} is unknown" for name in tensors if name not in own]
    _check_weights(where, backbone, differences, weights)
    return weights


def _read_state(backbone: str, source: str | Path | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a source of weights by the network's names, and what to call the source in messages."""
    if isinstance(source, Mapping):
        tensors, where = {name: tensor.detach() for name, tensor in source.items()}, f"the state dict of {backbone}"
    else:
        if str(source).startswith("IMAGENET1K_") and not Path(source).suffix:
            source = imagenet_file(backbone, str(source))
        tensors, where = read_tensors(source), str(source)
    for old, new in RENAMED.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors, where


def own_weights(backbone: str) -> str | Path | Mapping[str, Tensor]:
    """Return the weights that a backbone has by default.

    Raises:
        ValueError: it has none.
    """
    entry = find_backbone(backbone)
    if entry.weights is not None:
        try:
            return entry.weights()
        except (Exception, SystemExit) as error:
            if NETWORKS.plugin(backbone) is None:
                raise
            raise ValueError(f"the weights of {backbone} cannot be loaded ({describe(error)}): repair it") from error
    if entry.torchvision is None:
        raise ValueError(f"{backbone} has no weights of its own: set `weights` to a file, or to {NO_WEIGHTS}")
    return IMAGENET_VERSIONS[0]


def _check_weights(source: str, backbone: str, differences: list[str], weights: Mapping[str, Tensor]) -> None:
    if differences:
        more = len(differences) - 1
        also = f" (and {more} more difference{'s' if more > 1 else ''})" if more else ""
        raise ValueError(f"{source} is not a {backbone}: {differences[0]}{also}: give the weights of a {backbone}")
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{source}: {name} holds NaN or infinity: give weights that are finite")


def _difference(name: str, tensor: Tensor, expected: Tensor, in_head: bool) -> str | None:
    if tensor.is_floating_point() != expected.is_floating_point():
        return f"{name} holds {str(tensor.dtype).removeprefix('torch.')}"
    shape, needed = tuple(tensor.shape), tuple(expected.shape)
    if in_head and len(shape) == len(needed) and shape[1:] == needed[1:]:
        return None  # the head is replaced, whatever its number of classes
    if name == EMBEDDING and len(shape) == 3 and (shape[0], shape[2]) == (needed[0], needed[2]):
        try:
            vit_image_size(shape[1] - 1)
        except ValueError:
            return f"{name} has shape {shape}, expected a square number of patches and one more as its length"
        return None
    return None if shape == needed else f"{name} has shape {shape}, expected {needed}"
