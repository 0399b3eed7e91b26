"""A training run as bytes: what it is told by, how it is sealed, and how it is put back where the bytes have it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from deelbo.training.run import TrainingRun

__all__ = ["fingerprint", "opened", "put_back", "sealed"]


DIGEST = 32  # bytes of a SHA-256, the last ones: torch's own format does not notice a flipped bit
HASHED_AT_ONCE = 512  # images


def fingerprint(run: TrainingRun) -> str:
    """A hash of everything that the end of a run at its start depends on."""
    digest = hashlib.sha256()
    objective, split = run.objective, run.split
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    facts: list[Any] = [torch.__version__, run.device.type, type(run.model).__qualname__, run.schedule, run.numerics]
    facts += [type(run.optimizer).__module__, type(run.optimizer).__qualname__]
    facts += [split.geometry, len(split.train), type(objective).__qualname__, _numbers(vars(objective))]
    for group in objective.groups:
        facts += [group.name, [names.get(weight) for weight in group.weights]]
        facts += [type(group.prior).__qualname__, _numbers(vars(group.prior))]
    digest.update(repr(facts).encode())
    _hash(digest, [run.state(), [group.prior.mean for group in objective.groups]])
    _hash(digest, [split.normalization.mean, split.normalization.std])
    for images in filter(None, (split.train, split.validation)):
        _hash(digest, [images.labels, *images.pixels.split(HASHED_AT_ONCE)])
    return digest.hexdigest()


def _numbers(values: dict[str, Any]) -> list[str]:
    """An object's own settings; to 9 digits, as a sum over many weights depends on the number of threads."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += [f"{name}.{inner}" for inner in _numbers(value)]
        elif isinstance(value, int | float):
            found.append(f"{name}={value:.9g}")
    return found


def _hash(digest: Any, value: Any) -> None:
    """Adds all that a nested structure holds. Tensors count with their type, shape and every byte."""
    if isinstance(value, Tensor):
        digest.update(repr((str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        for name, inner in value.items():
            digest.update(repr(name).encode())
            _hash(digest, inner)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)}".encode())
        for inner in value:
            _hash(digest, inner)
    else:
        digest.update(repr(value).encode())


def sealed(content: dict[str, Any]) -> bytes:
    """The content as bytes, and a hash of them at the end."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with buffer.getbuffer() as body:
        digest = hashlib.sha256(body).digest()
    buffer.write(digest)
    return buffer.getvalue()


def opened(data: bytes) -> dict[str, Any]:
    """What `sealed` was given, its tensors on the CPU. Raises one error or another where the bytes are not whole."""
    body = memoryview(data)[:-DIGEST]
    if hashlib.sha256(body).digest() != data[-DIGEST:]:
        raise ValueError("damaged")
    content: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    return content


def put_back(data: bytes, whose: str, run: TrainingRun, take: Callable[[dict[str, Any]], None]) -> bool:
    """Puts the run where ``data`` has it. ``take`` is given the content, ``run`` being the state in it, once the run is
    there; what it raises counts as damage. False, and nothing changed, where that cannot be done."""
    start = None
    try:
        content = opened(data)
        if content["whose"] != whose:
            return False
        start = sealed(run.state())
        _check(content["run"], run)
        run.load(content["run"])
        take(content)
    except Exception:  # torch.load lets through whatever the bytes led to, and these may be anybody's
        if start is not None:
            run.load(opened(start))
        return False
    return True


def _check(given: Any, run: TrainingRun) -> None:
    """Raises ValueError where a state has not the form of the run's own: it would fail only later, in training."""
    own = run.state()
    buffers = given["optimizer"]["state"]
    fits = _alike(buffers, {i: run.optimizer_form["state"][i] for i in buffers})
    fits = fits and _alike(given["optimizer"]["param_groups"], run.optimizer_form["param_groups"])
    fits = fits and given["optimizer"].keys() == own["optimizer"].keys()
    numbers: Iterable[Any] = [value for row in given["series"] for value in row.values()]
    fits = fits and all(isinstance(value, int | float) for value in numbers)
    apart = {"series", "optimizer"}
    rest = {name: value for name, value in given.items() if name not in apart}
    fits = fits and _alike(rest, {name: value for name, value in own.items() if name not in apart})
    epochs, left = divmod(given["steps_done"], run.steps_an_epoch)
    if not fits or left or not 1 <= epochs <= run.stop:
        raise ValueError("not this run's")


def _alike(given: Any, own: Any) -> bool:
    """Whether two nested structures are of one form: names, lengths, shapes and types; values may differ."""
    if isinstance(own, Tensor):
        return isinstance(given, Tensor) and (given.shape, given.dtype) == (own.shape, own.dtype)
    if isinstance(own, dict):
        same = isinstance(given, dict) and given.keys() == own.keys()
        return same and all(_alike(given[name], value) for name, value in own.items())
    if isinstance(own, list | tuple):
        same = isinstance(given, list | tuple) and len(given) == len(own)
        return same and all(map(_alike, given, own))
    return isinstance(given, int | float) if isinstance(own, int | float) else bool(given == own)
