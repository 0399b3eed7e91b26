"""Save a training run and continue it in another process: after a crash (`Checkpoint`) or a planned stop (`Handover`).

Both continue a run exactly: on a CPU it ends with the same bits as a run in one go. A snapshot is used only by the run
that it is of: same initial state (weights, buffers, random numbers), images, schedule, objective, optimizer, numerics,
kind of device and version of torch. Another run's, a damaged and an unreadable one are ignored with a RuntimeWarning,
and training starts from the beginning. An OSError of ``write``, such as a full disk, is a RuntimeWarning, too; any
other exception of ``write`` or ``read`` is raised.
"""

import hashlib
import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from deelbo.training.clock import PhaseClock
from deelbo.training.run import TrainingRun, form_of

DIGEST_BYTES = 32  # a SHA-256 at the end, as torch's own format does not notice a flipped bit
HASHED_EXAMPLES = 512  # copied to the host at one time


class _Snapshot:
    """Saves and restores a run, under the clock's phase "checkpoint"."""

    read: Callable[[], bytes | None]
    write: Callable[[bytes], None]
    resumed_at_step: int | None
    _name: str
    _fingerprint = ""

    def _restore(self, run: TrainingRun, clock: PhaseClock) -> dict[str, float]:
        """Bring a run that is at its start to the saved state; return the saved seconds by phase, {} without one."""
        self.resumed_at_step, seconds = None, None
        with clock.phase("checkpoint"):
            self._fingerprint = fingerprint(run)
            try:
                data = self.read()
            except OSError as error:
                _warn(f"{self._name} could not be read ({error}): training starts from the beginning")
                return {}
            if data is not None and (seconds := restore(data, self._fingerprint, run)) is None:
                problem = "is damaged, belongs to another run or is past the end of this one"
                _warn(f"{self._name} {problem}: training starts from the beginning")
        if seconds is not None:
            self.resumed_at_step = run.steps_done
        return seconds or {}

    def save(self, run: TrainingRun, clock: PhaseClock) -> None:
        """Write the run as it is between two epochs."""
        with clock.phase("checkpoint"):
            data = serialize({"fingerprint": self._fingerprint, "seconds": clock.seconds, "run": run.state()})
            try:
                self.write(data)
            except OSError as error:
                _warn(f"{self._name} could not be written ({error}): the run continues without it")


@dataclass
class Checkpoint(_Snapshot):
    """A place where a run is saved on the way, so that it continues after its process has died.

    The clock's seconds continue from the checkpoint's; only warm-up is paid for again.

    Attributes:
        every: seconds from the start of training, or from the last checkpoint, to the next end of an epoch that writes.
        write: stores the bytes in place of the earlier ones, as a whole or not at all.
        read: returns the bytes that were stored last; None: there are none.
        now: returns the time in seconds; tests replace it.
        resumed_at_step: the step from which the last `deelbo.fit` continued; None: it started from the beginning.
        resumed_seconds: seconds of all phases that the clock took over from the checkpoint.

    Raises:
        ValueError: ``every`` is negative or NaN.
    """

    every: float
    write: Callable[[bytes], None]
    read: Callable[[], bytes | None]
    now: Callable[[], float] = time.monotonic
    resumed_at_step: int | None = field(default=None, init=False)
    resumed_seconds: float = field(default=0.0, init=False)
    _last: float = field(default=0.0, init=False, repr=False)
    _name = "the checkpoint"

    def __post_init__(self) -> None:
        if not self.every >= 0:
            raise ValueError(f"every must be a number of seconds >= 0, got {self.every}")

    def resume(self, run: TrainingRun, clock: PhaseClock) -> None:
        """Continue from the saved state, if there is one of this run."""
        seconds = self._restore(run, clock)
        clock.carry(seconds)
        self.resumed_seconds = float(sum(seconds.values()))
        self._last = self.now()

    def is_due(self) -> bool:
        """Return whether the next end of an epoch should write a checkpoint. Does not wait for the device."""
        return self.now() - self._last >= self.every

    def save(self, run: TrainingRun, clock: PhaseClock) -> None:
        super().save(run, clock)
        self._last = self.now()


@dataclass
class Handover(_Snapshot):
    """A place where the segments of one run pass it on; each is a `deelbo.fit` that trains ``until`` a fraction of it.

    The segments end with the weights, metrics and series of a run in one go. The clock's seconds are each segment's
    own; the series' ``train_seconds`` count all segments so far.

    Attributes:
        read: returns the bytes that the previous segment stored; None: there are none.
        write: stores the bytes of a run that stops before its end, as a whole or not at all.
        resumed_at_step: the step from which the last `deelbo.fit` continued; None: it started from the beginning.
    """

    read: Callable[[], bytes | None]
    write: Callable[[bytes], None]
    resumed_at_step: int | None = field(default=None, init=False)
    _name = "the handover"

    def resume(self, run: TrainingRun, clock: PhaseClock) -> None:
        """Continue from where the previous segment stopped, if it is one of this run."""
        seconds = self._restore(run, clock)
        run.earlier_seconds += seconds.get("train", 0.0)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)


def fingerprint(run: TrainingRun) -> str:
    """Hash everything that determines how a run which is at its start will end."""
    objective, split = run.objective, run.split
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    settings: list[Any] = [torch.__version__, run.device.type, run.schedule, run.numerics]
    settings += [f"{type(part).__module__}.{type(part).__qualname__}" for part in (run.model, run.optimizer, objective)]
    settings += [len(split.train), _numbers(vars(objective))]
    for group in objective.groups:
        settings += [group.name, [names.get(weight) for weight in group.weights]]
        settings += [type(group.prior).__qualname__, _numbers(vars(group.prior))]
    tensors: list[Any] = [run.state(), [group.prior.mean for group in objective.groups]]
    _add_fields(split.transform, settings, tensors)
    for examples in filter(None, (split.train, split.validation)):
        tensors += [examples.labels, *examples.inputs.split(HASHED_EXAMPLES)]
    digest = hashlib.sha256(repr(settings).encode())
    _hash(digest, tensors)
    return digest.hexdigest()


def _add_fields(value: Any, settings: list[Any], tensors: list[Any]) -> None:
    """Add the fields of a dataclass, and of dataclasses in it, to settings or, where they are tensors, to tensors."""
    settings.append(type(value).__qualname__)
    for part in fields(value):
        inner = getattr(value, part.name)
        if is_dataclass(inner):
            _add_fields(inner, settings, tensors)
        else:
            (tensors if isinstance(inner, Tensor) else settings).append(inner)


def _numbers(values: dict[str, Any]) -> list[str]:
    """An object's numbers to 9 digits, as a sum over many weights depends on the number of threads."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += [f"{name}.{inner}" for inner in _numbers(value)]
        elif isinstance(value, int | float):
            found.append(f"{name}={value:.9g}")
    return found


def _hash(digest: Any, value: Any) -> None:
    """Add a nested structure to the digest; tensors by type, shape and every byte."""
    if isinstance(value, Tensor):
        digest.update(repr((str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict | list | tuple):
        digest.update(repr(list(value) if isinstance(value, dict) else len(value)).encode())
        for inner in value.values() if isinstance(value, dict) else value:
            _hash(digest, inner)
    else:
        digest.update(repr(value).encode())


def serialize(content: dict[str, Any]) -> bytes:
    """Return the content as bytes that end with a hash of them."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with buffer.getbuffer() as body:
        digest = hashlib.sha256(body).digest()
    buffer.write(digest)
    return buffer.getvalue()


def deserialize(data: bytes) -> Any:
    """Return what `serialize` was given, its tensors on the CPU. Damaged bytes raise some Exception."""
    body = memoryview(data)[:-DIGEST_BYTES]
    if hashlib.sha256(body).digest() != data[-DIGEST_BYTES:]:
        raise ValueError("damaged")
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)


def restore(data: bytes, expected: str, run: TrainingRun) -> dict[str, float] | None:
    """Bring a run that is at its start, warmed up, to the saved state; return the saved seconds by phase.

    Where the bytes are damaged or of another `fingerprint` than ``expected``, nothing is changed and None returned.
    """
    start = None
    try:
        content = deserialize(data)
        if content["fingerprint"] != expected:
            return None
        start = serialize(run.state())
        seconds: dict[str, float] = content["seconds"]
        PhaseClock().carry(seconds)  # raises ValueError where they are not seconds by phase
        _check_form(content["run"], run)
        run.load(content["run"])
    except Exception:  # torch.load raises whatever the bytes lead to
        if start is not None:
            run.load(deserialize(start))
        return None
    return seconds


def _check_form(state: Any, run: TrainingRun) -> None:
    """Raise ValueError where a state is not of the run's own form, as it would otherwise fail later, in training."""
    form = form_of(run.state()) | {"optimizer": run.optimizer_form, "series": form_of(state["series"])}
    numbers = all(isinstance(value, int | float) for row in state["series"] for value in row.values())
    epochs, rest = divmod(state["steps_done"], run.steps_per_epoch)
    if form_of(state) != form or not numbers or rest or not 1 <= epochs <= run.last_epoch:
        raise ValueError("not a state of this run")
