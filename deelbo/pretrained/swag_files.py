"""Files of SWAG posteriors: fitting SWAG writes them, and PTYL's prior is read from them.

One .pt or .safetensors file holds the tensors ``mean`` (D_w,), ``variance`` (D_w,), ``factor`` (D_w, K) and optionally
the network's buffers at the mean as ``buffers.NAME``; or three files hold one tensor each. D_w is the number of weights
of the backbone without its head, in the order of ``split_at_head(model, head)[0]``.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deelbo._vectors import views
from deelbo.groups import split_at_head
from deelbo.paths import expand_user
from deelbo.pretrained.backbones import EMBEDDING, shapes_only
from deelbo.pretrained.registry import vit_image_size
from deelbo.pretrained.tensor_files import read_file, read_tensors

RANK = 5  # K of PTYL's prior
PARTS = ("mean", "variance", "factor")
BUFFERS = "buffers."
SwagSource = str | Path | Mapping[str, str | Path]
"""The path of one file, or a mapping from mean, variance and factor to the paths of three."""


@dataclass(frozen=True)
class SwagPosterior:
    """N(mean, 1/2 diag(variance) + Q Q^T / (2K - 2)) over a backbone's weights, K = 5."""

    mean: Tensor  # (D_w,)
    variance: Tensor  # s; (D_w,)
    factor: Tensor  # Q, newest column last; (D_w, K)
    buffers: dict[str, Tensor]  # BatchNorm's statistics at the mean by name; empty if the file has none
    image_size: int | None  # side in pixels of the images that it was fitted to, where D_w depends on it (vit_b_16)


def read_swag(source: SwagSource, backbone: str) -> SwagPosterior:
    """Read and check a posterior; its tensors are float32 and share no memory.

    Mean and variance may also have the shape (D_w, 1) or (1, D_w), the factor (K, D_w); its last 5 columns are used.
    A missing or damaged file, and a part that does not fit the backbone or is not finite, raise ValueError.
    """
    tensors, where = _read_parts(source)
    mean, variance = (_vector(tensors[part], f"{where[part]}: {part}") for part in PARTS[:2])
    image_size = _image_size(mean.numel()) if backbone == "vit_b_16" else None
    model, head = shapes_only(backbone, image_size)
    size = sum(p.numel() for p in split_at_head(model, head)[0])
    for part, vector in (("mean", mean), ("variance", variance)):
        if vector.numel() != size:
            found, expected = f"{part} has {vector.numel():,} numbers", f"the weights of a {backbone} without its head"
            remedy = f"give the SWAG files of a {backbone}"
            raise ValueError(f"{where[part]}: {found}, expected {size:,}, {expected}: {remedy}")
    factor = _columns(tensors["factor"], size, f"{where['factor']}: factor")
    mean, variance = (vector.to(torch.float32, copy=True) for vector in (mean, variance))
    if bool((variance < 0).any()):
        raise ValueError(f"{where['variance']}: variance has negative elements: fit SWAG again")
    buffers = {name.removeprefix(BUFFERS): tensor for name, tensor in tensors.items() if name.startswith(BUFFERS)}
    _check_buffers(buffers, model, where["mean"])
    for name, tensor in (("mean", mean), ("variance", variance), ("factor", factor), *buffers.items()):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{where.get(name, where['mean'])}: {name} holds NaN or infinity: fit SWAG again")
    return SwagPosterior(mean, variance, factor, {name: t.clone() for name, t in buffers.items()}, image_size)


def _read_parts(source: SwagSource) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by name, and the file of each part."""
    if isinstance(source, Mapping):
        if set(source) != set(PARTS):
            names = ", ".join(map(str, source)) or "none"
            raise ValueError(f"SWAG in several files is {', '.join(PARTS)}, got {names}")
        return {part: _only_tensor(source[part], part) for part in PARTS}, {p: str(source[p]) for p in PARTS}
    tensors = read_tensors(source)
    if missing := [part for part in PARTS if part not in tensors]:
        raise ValueError(f"{source} has no {' and no '.join(missing)}: give a file with {', '.join(PARTS)}")
    if unknown := [name for name in tensors if name not in PARTS and not name.startswith(BUFFERS)]:
        raise ValueError(f"{source}: {unknown[0]} is unknown, expected {', '.join(PARTS)} and {BUFFERS}NAME")
    return tensors, dict.fromkeys(PARTS, str(source))


def _only_tensor(path: str | Path, part: str) -> Tensor:
    held = read_file(path)
    if isinstance(held, dict) and len(held) == 1:
        (held,) = held.values()  # a .safetensors file has a name for its only tensor
    if not isinstance(held, Tensor):
        raise ValueError(f"{path} holds a {type(held).__name__}, expected one tensor, SWAG's {part}")
    return held.detach()


def _vector(tensor: Tensor, what: str) -> Tensor:
    if not tensor.is_floating_point() or tensor.ndim not in (1, 2) or tensor.numel() != max(tensor.shape):
        found = f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
        raise ValueError(f"{what} has shape {found}, expected (D,), (D, 1) or (1, D) of float32")
    return tensor.reshape(-1)


def _columns(tensor: Tensor, size: int, what: str) -> Tensor:
    shape = tuple(tensor.shape)
    if tensor.ndim != 2 or size not in shape or not tensor.is_floating_point():
        raise ValueError(f"{what} has shape {shape}, expected ({size:,}, K) or (K, {size:,}), K at least {RANK}")
    columns = tensor if shape[0] == size else tensor.T
    if columns.shape[1] < RANK:
        raise ValueError(f"{what} has rank {columns.shape[1]}, PTYL's prior needs {RANK}: fit SWAG with rank {RANK}")
    return columns[:, -RANK:].to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _image_size(size: int) -> int | None:
    """Return the image size at which vit_b_16's backbone has ``size`` weights; None if there is none."""
    model, head = shapes_only("vit_b_16")
    embedding = model.get_parameter(EMBEDDING)
    others = sum(p.numel() for p in split_at_head(model, head)[0]) - embedding.numel()
    tokens, rest = divmod(size - others, embedding.shape[2])
    try:
        return None if rest else vit_image_size(tokens - 1)
    except ValueError:
        return None


def _check_buffers(buffers: dict[str, Tensor], model: nn.Module, where: str) -> None:
    own = dict(model.named_buffers())
    for name, buffer in buffers.items():
        if name not in own or buffer.shape != own[name].shape:
            expected = tuple(own[name].shape) if name in own else "no such buffer"
            raise ValueError(f"{where}: {BUFFERS}{name} has shape {tuple(buffer.shape)}, expected {expected}")
    missing = [name for name in own if name not in buffers and not name.endswith("num_batches_tracked")]
    if buffers and missing:
        raise ValueError(f"{where}: {BUFFERS}{missing[0]} is missing: give all of the network's buffers, or none")


def weights_at_mean(weights: Mapping[str, Tensor], posterior: SwagPosterior, backbone: str) -> dict[str, Tensor]:
    """Return ``weights`` with copies of the posterior's mean and buffers in place of the backbone's."""
    model, head = shapes_only(backbone, posterior.image_size)
    parameters = split_at_head(model, head)[0]
    names = {parameter: name for name, parameter in model.named_parameters()}
    pieces = zip([names[parameter] for parameter in parameters], views(posterior.mean, parameters), strict=True)
    # copies, as a view of a long vector is pickled with the whole vector
    return {**weights, **{name: piece.clone() for name, piece in [*pieces, *posterior.buffers.items()]}}


def check_target(out: str | Path) -> Path:
    """Return ``out`` as a path; raise ValueError if `write_swag` cannot write there."""
    out = expand_user(out)
    if out.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"{out}: SWAG is written to a .pt or .safetensors file, got the suffix {out.suffix!r}")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give the path of a file")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        why = "is not writable" if out.parent.is_dir() else "is not a folder"
        raise ValueError(f"{out} cannot be written, as {out.parent} {why}: create it, or choose another path")
    if out.suffix == ".safetensors":
        try:
            import safetensors.torch  # noqa: F401
        except ModuleNotFoundError as error:
            raise ValueError(f"{out} needs safetensors: pip install safetensors, or write a .pt file") from error
    return out


def write_swag(out: str | Path, mean: Tensor, variance: Tensor, factor: Tensor, buffers: Mapping[str, Tensor]) -> Path:
    """Write a posterior for `read_swag`, as a whole or not at all. Raises as `check_target`."""
    out = check_target(out)
    parts = {"mean": mean, "variance": variance, "factor": factor}
    parts |= {BUFFERS + name: buffer for name, buffer in buffers.items()}
    parts = {name: tensor.detach().cpu().contiguous() for name, tensor in parts.items()}
    with tempfile.TemporaryDirectory(dir=out.parent, suffix=".part") as folder:
        temporary = Path(folder) / out.name
        if out.suffix == ".safetensors":
            from safetensors.torch import save  # save_file makes files that only their owner can read

            temporary.write_bytes(save(parts))
        else:
            try:
                torch.save(parts, temporary)
            except RuntimeError as error:  # of a full disk
                raise ValueError(f"{out} cannot be written ({error}): free space, or choose another path") from error
        temporary.replace(out)
    return out
