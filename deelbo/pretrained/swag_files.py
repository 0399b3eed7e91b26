"""SWAG posteriors in files: what PTYL's prior is read from, and what fitting SWAG writes.

One .pt or .safetensors file holds the tensors ``mean`` (D_w,), ``variance`` (D_w,), ``factor`` (D_w, K) and, if any,
the network's buffers at the mean as ``buffers.NAME``; or three .pt files hold one tensor each. D_w counts the weights
of the backbone without its head, in the order of ``split_at_head(model, head)[0]``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deelbo._vectors import views
from deelbo.groups import split_at_head
from deelbo.pretrained.backbones import EMBEDDING, shapes_only
from deelbo.pretrained.registry import vit_image_size
from deelbo.pretrained.tensor_files import read_file, read_tensors

__all__ = ["RANK", "SwagPosterior", "SwagSource", "check_target", "read_swag", "weights_at_mean", "write_swag"]


RANK = 5  # K of PTYL's prior
PARTS = ("mean", "variance", "factor")
BUFFERS = "buffers."
SwagSource = str | Path | Mapping[str, str | Path]
"""The path of one file, or the paths of three by the names mean, variance and factor."""


@dataclass(frozen=True)
class SwagPosterior:
    """N(mean, 1/2 diag(variance) + Q Q^T / (2K - 2)) over a backbone's weights, K = 5.

    Attributes:
        mean: shape (D_w,).
        variance: s; shape (D_w,).
        factor: Q, newest column last; shape (D_w, K).
        buffers: BatchNorm's statistics at the mean by name; empty where the file has none.
        image_size: of the images it was fitted at, where D_w depends on it (vit_b_16).
    """

    mean: Tensor
    variance: Tensor
    factor: Tensor
    buffers: dict[str, Tensor]
    image_size: int | None


def read_swag(source: SwagSource, backbone: str) -> SwagPosterior:
    """The posterior in those files, checked; float32, nothing shared.

    Mean and variance may also be of shape (D_w, 1) or (1, D_w), the factor of (K, D_w); of its columns the last
    5 are taken.

    Raises:
        ValueError: a file is missing or damaged, a part is missing, has another length or rank than this backbone
            needs, or holds a number that cannot be.
    """
    found, where = _found(source)
    mean, variance = (_vector(found[part], f"{where[part]}: {part}") for part in PARTS[:2])
    image_size = _image_size(mean.numel()) if backbone == "vit_b_16" else None
    model, head = shapes_only(backbone, image_size)
    size = sum(p.numel() for p in split_at_head(model, head)[0])
    for part, vector in (("mean", mean), ("variance", variance)):
        if vector.numel() != size:
            raise ValueError(
                f"{where[part]}: {part} has {vector.numel():,} numbers, expected {size:,}, the weights of a {backbone} "
                f"without its head: give the SWAG files of a {backbone}"
            )
    factor = _columns(found["factor"], size, f"{where['factor']}: factor")
    mean, variance = (vector.to(torch.float32, copy=True) for vector in (mean, variance))
    if bool((variance < 0).any()):
        raise ValueError(f"{where['variance']}: variance is negative in places, which no variance is: fit SWAG again")
    buffers = {name.removeprefix(BUFFERS): tensor for name, tensor in found.items() if name.startswith(BUFFERS)}
    _check_buffers(buffers, model, where["mean"])
    for name, tensor in (("mean", mean), ("variance", variance), ("factor", factor), *buffers.items()):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{where.get(name, where['mean'])}: {name} holds NaN or infinity: fit SWAG again")
    return SwagPosterior(mean, variance, factor, {name: t.clone() for name, t in buffers.items()}, image_size)


def _found(source: SwagSource) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, and the file that each part is from."""
    if isinstance(source, Mapping):
        if set(source) != set(PARTS):
            raise ValueError(
                f"SWAG in several files is {', '.join(PARTS)}, got {', '.join(map(str, source)) or 'none'}"
            )
        return {part: _only_tensor(source[part], part) for part in PARTS}, {p: str(source[p]) for p in PARTS}
    found = read_tensors(source)
    if missing := [part for part in PARTS if part not in found]:
        raise ValueError(f"{source} has no {' and no '.join(missing)}: give a file with {', '.join(PARTS)}")
    if unknown := [name for name in found if name not in PARTS and not name.startswith(BUFFERS)]:
        raise ValueError(f"{source}: {unknown[0]} is unknown, expected {', '.join(PARTS)} and {BUFFERS}NAME")
    return found, dict.fromkeys(PARTS, str(source))


def _only_tensor(path: str | Path, part: str) -> Tensor:
    held = read_file(path)
    if isinstance(held, dict) and len(held) == 1:
        (held,) = held.values()  # a .safetensors file has a name for its only tensor
    if not isinstance(held, Tensor):
        raise ValueError(f"{path} holds a {type(held).__name__}, expected one tensor, SWAG's {part}")
    return held.detach()


def _vector(tensor: Tensor, what: str) -> Tensor:
    if not tensor.is_floating_point() or tensor.ndim not in (1, 2) or tensor.numel() != max(tensor.shape):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(
            f"{what} has shape {tuple(tensor.shape)} of {kind}, expected (D,), (D, 1) or (1, D) of float32"
        )
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
    """The image size at which vit_b_16 has so many weights; None (so that the usual one is expected) at none."""
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
    """The state dict ``weights`` with the backbone's weights at the posterior's mean, and its buffers where it has any.

    Nothing is shared with the posterior.
    """
    model, head = shapes_only(backbone, posterior.image_size)
    parameters = split_at_head(model, head)[0]
    names = {parameter: name for name, parameter in model.named_parameters()}
    pieces = zip(parameters, views(posterior.mean, parameters), strict=True)
    # one storage each: a piece of a long vector is pickled with the whole vector
    at_mean = {names[parameter]: piece.clone() for parameter, piece in pieces}
    return {**weights, **at_mean, **{name: buffer.clone() for name, buffer in posterior.buffers.items()}}


def check_target(out: str | Path) -> Path:
    """The path, if `write_swag` can write there. Raises ValueError where it cannot."""
    out = Path(out)
    if out.suffix not in (".pt", ".safetensors"):
        raise ValueError(f"{out}: SWAG is written to a .pt or .safetensors file, got the suffix {out.suffix!r}")
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give the path of a file")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        why = "may not be written to" if out.parent.is_dir() else "is no folder"
        raise ValueError(f"{out} cannot be written, as {out.parent} {why}: make it, or choose another")
    if out.suffix == ".safetensors":
        try:
            import safetensors.torch  # noqa: F401
        except ModuleNotFoundError as error:
            raise ValueError(f"{out} needs safetensors: pip install safetensors, or write a .pt file") from error
    return out


def write_swag(out: str | Path, mean: Tensor, variance: Tensor, factor: Tensor, buffers: Mapping[str, Tensor]) -> Path:
    """Writes what `read_swag` reads, whole or not at all. Raises ValueError as `check_target`."""
    out = check_target(out)
    parts = {"mean": mean, "variance": variance, "factor": factor}
    parts |= {BUFFERS + name: buffer for name, buffer in buffers.items()}
    parts = {name: tensor.detach().cpu().contiguous() for name, tensor in parts.items()}
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    temporary.touch()
    usual = stat.S_IMODE(temporary.stat().st_mode)
    try:
        if out.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(parts, temporary)  # which nobody else could read
            temporary.chmod(usual)
        else:
            torch.save(parts, temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return out
