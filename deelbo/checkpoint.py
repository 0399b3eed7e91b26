"""A training run kept as bytes while it trains, so that after its process has died it goes on to the same end."""

from __future__ import annotations

import hashlib
import io
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deelbo.clock import PhaseClock
from deelbo.run import Run

__all__ = ["Checkpoint"]

DIGEST = 32  # bytes of a SHA-256, the last ones of a checkpoint: torch's own format does not notice a flipped bit
HASHED_AT_ONCE = 512  # images


@dataclass
class Checkpoint:
    """Where a run is kept on the way. The run that goes on from there ends as if nothing had happened, on a CPU to the
    bit; but for its seconds, as it warms up again.

    A checkpoint is taken up only by the run that wrote it: the same start (weights, buffers, random numbers), images,
    schedule, objective, numerics, kind of device and torch. One of another run, one that is damaged and one that
    cannot be read are passed over with a warning, and training starts from its start. Reading it runs no code.

    Checkpoints are a help and not the result. So an OSError of ``write``, of a full disk say, costs the run that
    checkpoint and not its life: it warns, goes on, and tries again when ``every`` seconds have passed. Any other error
    of ``write`` or ``read`` is the caller's own and is raised.

    Attributes:
        every: seconds from the start of training, or from the checkpoint before, after which the next end of an epoch
            writes one; at every end of an epoch where 0.
        write: is given the bytes, which replace those before. It should leave them whole or not at all, as a file
            renamed into place is.
        read: gives back the bytes last written, or None where there are none.
        now: reads the time in seconds; another one is for tests.
        resumed_at_step: the step that the last `deelbo.fit` went on from; None where it started from its start.
        resumed_seconds: the seconds that the clock took over from the checkpoint, all phases together.

    Raises:
        ValueError: ``every`` is negative or not a number.
    """

    every: float
    write: Callable[[bytes], None]
    read: Callable[[], bytes | None]
    now: Callable[[], float] = time.monotonic
    resumed_at_step: int | None = field(default=None, init=False)
    resumed_seconds: float = field(default=0.0, init=False)
    _whose: str = field(default="", init=False, repr=False)
    _last: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.every >= 0:
            raise ValueError(f"every must be a number of seconds >= 0, got {self.every}")

    def resume(self, run: Run, clock: PhaseClock) -> None:
        """Puts a run that is at its start where the checkpoint has it; leaves it there where there is none of it."""
        self.resumed_at_step, self.resumed_seconds = None, 0.0
        with clock.phase("checkpoint"):
            self._whose = fingerprint(run)
            if (data := self._read()) is not None:
                seconds = _take_up(data, self._whose, run, clock)
                if seconds is None:
                    _warn("the checkpoint is damaged or another run's: training starts from its start")
                else:
                    self.resumed_at_step, self.resumed_seconds = run.steps_done, seconds
        self._last = self.now()

    def due(self) -> bool:
        """Whether the next end of an epoch should write one. Does not wait for the device."""
        return self.now() - self._last >= self.every

    def keep(self, run: Run, clock: PhaseClock) -> None:
        """Writes the run as it is between two epochs. The device's tensors are copied to the host one at a time."""
        with clock.phase("checkpoint"):
            data = _sealed({"whose": self._whose, "seconds": clock.seconds, "run": run.state()})
            try:
                self.write(data)
            except OSError as error:
                _warn(f"the checkpoint could not be written ({error}): the run goes on without it")
            self._last = self.now()

    def _read(self) -> bytes | None:
        try:
            return self.read()
        except OSError as error:
            _warn(f"the checkpoint could not be read ({error}): training starts from its start")
            return None


def fingerprint(run: Run) -> str:
    """A hash of everything that the end of a run at its start depends on."""
    digest = hashlib.sha256()
    objective, split = run.objective, run.split
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    facts: list[Any] = [torch.__version__, run.device.type, type(run.model).__qualname__, run.schedule, run.numerics]
    facts += [split.geometry, len(split.train), type(objective).__qualname__, _numbers(vars(objective))]
    for group in objective.groups:
        facts += [group.name, [names.get(weight) for weight in group.weights]]
        facts += [type(group.prior).__qualname__, _numbers(vars(group.prior))]
    digest.update(repr(facts).encode())
    _hash(digest, [run.state(), [group.prior.mean for group in objective.groups]])
    _hash(digest, [split.normalisation.mean, split.normalisation.std])
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


def _sealed(content: dict[str, Any]) -> bytes:
    """The content as bytes, and a hash of them at the end."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with buffer.getbuffer() as body:
        digest = hashlib.sha256(body).digest()
    buffer.write(digest)
    return buffer.getvalue()


def _opened(data: bytes) -> dict[str, Any]:
    """What `_sealed` was given, its tensors on the CPU. Raises one error or another where the bytes are not whole."""
    body = memoryview(data)[:-DIGEST]
    if hashlib.sha256(body).digest() != data[-DIGEST:]:
        raise ValueError("damaged")
    content: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    return content


def _take_up(data: bytes, whose: str, run: Run, clock: PhaseClock) -> float | None:
    """Puts the run where ``data`` has it, and gives the seconds that it took to get there. None, and nothing changed,
    where that cannot be done."""
    start = None
    try:
        content = _opened(data)
        if content["whose"] != whose:
            return None
        start = _sealed(run.state())
        _check(content["run"], run)
        run.load(content["run"])
        clock.carry(content["seconds"])
    except Exception:  # torch.load lets through whatever the bytes led to, and these may be anybody's
        if start is not None:
            run.load(_opened(start))
        return None
    return float(sum(content["seconds"].values()))


def _check(given: Any, run: Run) -> None:
    """Raises ValueError where a state has not the form of the run's own: it would fail only later, in training."""
    own = run.state()
    momenta = {i: {"momentum_buffer": weight} for i, weight in enumerate(run.trained)}
    buffers = given["optimiser"]["state"]
    fits = _alike(buffers, {i: momenta[i] for i in buffers})
    numbers: Iterable[Any] = [value for row in given["series"] for value in row.values()]
    fits = fits and all(isinstance(value, int | float) for value in numbers)
    rest = {name: value for name, value in given.items() if name != "series"}
    rest["optimiser"] = given["optimiser"] | {"state": {}}
    fits = fits and _alike(rest, {name: value for name, value in own.items() if name != "series"})
    epochs, left = divmod(given["steps_done"], run.steps_an_epoch)
    if not fits or left or not 1 <= epochs <= run.epochs:
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


def _warn(words: str) -> None:
    warnings.warn(words, RuntimeWarning, stacklevel=4)
