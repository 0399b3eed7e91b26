"""Checks that a training loop uses `deelbo.LearnedL2` in a way that gives right gradients.

`LoopChecks` follows a loop through the version counters of tensors, which torch raises with every change in place,
hooks on the weights' gradients, and hooks on all optimizers. None of them reads a number on the device, so no step
waits for it.
"""

from __future__ import annotations

import math
import threading
import warnings
import weakref
from collections.abc import Iterable, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

IDLE = "idle"  # no gradients wait for an optimizer step
INSIDE = "inside"  # a block is open
COMPLETE = "complete"  # the gradients of a block wait for an optimizer step
NO_BACKWARD = "no backward"  # the last block was left without gradients
MAX_NAMES = 3  # in a message

_all_checks: weakref.WeakSet[LoopChecks] = weakref.WeakSet()


class LoopChecks:
    """State of a training loop over the trained weights of one model.

    Args:
        model: the module.
        weights: its trained weights.
        rho: the posterior's parameter, which the optimizer must train too.

    Attributes:
        grad_scaler: the `torch.amp.GradScaler` that has scaled a loss in the open or last block, and has not unscaled
            the gradients; None without one.
    """

    def __init__(self, model: nn.Module, weights: Sequence[nn.Parameter], rho: nn.Parameter) -> None:
        self.model, self.weights, self.rho = model, list(weights), rho
        self.state = IDLE
        self.grad_scaler: torch.amp.GradScaler | None = None
        self._names = {id(p): name for name, p in model.named_parameters()} | {id(rho): "reg.parameters()"}
        self._ids = {id(p) for p in [*weights, rho]}
        self._versions: list[int] = []  # of the weights as drawn
        self._rho_version = 0  # after the last block
        self._left: list[tuple[int, int]] = []  # the gradients after the last block, by `_identify`
        self._earlier: Tensor | None = None  # rho's gradient from earlier blocks of the step
        self._outside: tuple[nn.Parameter, tuple[int, int]] | None = None  # gradient that came between two blocks
        self._unscaled: set[int] = set()  # parameters whose gradients a GradScaler has unscaled in the open block
        self._thread = 0  # that has opened the block
        self._stepped: set[int] | None = set()  # parameters that optimizers have stepped; None after their check
        self._known_optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._record_structure()
        for other in list(_all_checks):
            if other._ids & self._ids:
                other._remove_hooks()
        self._reference = weakref.ref(self)
        hook = partial(_on_gradient, self._reference)
        self._handles = [p.register_post_accumulate_grad_hook(hook) for p in self.weights]
        _install_global_hooks()
        _all_checks.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by making a new object, as hooks belong to one tensor."""
        return type(self), (self.model, self.weights, self.rho)

    def _remove_hooks(self) -> None:
        """Stop checking gradients, when another object takes over the weights."""
        for handle in self._handles:
            handle.remove()
        self.state = IDLE

    def enter(self, accumulate: bool) -> bool:
        """Check the loop before a block; return whether the block begins a new step.

        Raises:
            RuntimeError: a block is open; the model's trained weights, their type or device have changed; there are
                gradients that no optimizer step has used, or that arrived outside a block.
        """
        if self.state == INSIDE:
            raise RuntimeError("sample() was entered inside sample(): leave the first block before drawing again")
        self._check_structure()
        begins = not self._has_unused_gradients(accumulate)
        if begins:
            self._check_outside()
            self._check_others()
            self._warn_of_unstepped()
        elif not accumulate:
            raise RuntimeError(
                "the gradients of the last sample() block have not been used by an optimizer step: call "
                "optimizer.step() after each block, use sample(accumulate=True) to add up the gradients of several "
                "blocks, or discard them with optimizer.zero_grad()"
            )
        self.state, self._outside, self._thread = INSIDE, None, threading.get_ident()
        self._earlier = None if begins else self.rho.grad
        self.grad_scaler, self._unscaled = None, set()
        return begins

    def record_draw(self) -> None:
        """Remember the drawn weights' versions for `check_draw`."""
        self._versions = [p._version for p in self.weights]

    def check_draw(self) -> None:
        """Raise RuntimeError where weights are not as drawn, earlier gradients gone, or some gradients unscaled."""
        if self._earlier is not None and self.rho.grad is not self._earlier:
            raise RuntimeError(
                "the gradients of the step's earlier blocks were cleared inside sample(accumulate=True): call "
                "zero_grad() after optimizer.step(), outside the block"
            )
        versions = [p._version for p in self.weights]
        if versions != self._versions:
            changed = [p for p, a, b in zip(self.weights, versions, self._versions, strict=True) if a != b]
            raise RuntimeError(
                f"{self._describe(changed)} changed in place inside sample(), which leaving the block would undo: step "
                "the optimizer, clamp or renormalize after the block (an Embedding with max_norm does so in forward)"
            )
        if self._unscaled:
            if scaled := [p for p in self.weights if p.grad is not None and id(p) not in self._unscaled]:
                raise RuntimeError(
                    "GradScaler.unscale_ was called inside sample() for an optimizer without "
                    f"{self._describe(scaled)}: call it after the block"
                )
            self.grad_scaler = None

    def leave(self, has_gradient: bool) -> None:
        """Remember what the block has left behind; warn if no ``backward`` ran in it."""
        if has_gradient:
            self.state = COMPLETE
            self._rho_version = self.rho._version
            self._left = self._identify_all()
            return
        self.state = NO_BACKWARD
        warnings.warn(
            "a sample() block was left without a backward pass: call backward inside the block, or put "
            "torch.no_grad() around a block that only evaluates",
            RuntimeWarning,
            stacklevel=4,
        )

    def abort(self) -> None:
        """Forget the open block, which has raised."""
        self.state = IDLE

    def check(self, optimizers: Iterable[Optimizer]) -> None:
        """Raise ValueError where optimizers leave a parameter out or have weight decay of their own or maximize."""
        optimizers = list(optimizers)
        trained = {id(p) for optimizer in optimizers for p in _parameters(optimizer)}
        problems = [self._describe_missing(trained), *map(self._describe_settings, optimizers)]
        if any(problems):
            raise ValueError("; ".join(filter(None, problems)))

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Check an optimizer that is about to step some of the parameters; warn of its settings once.

        A closure may leave the block before the optimizer changes a weight.
        """
        if not has_closure:
            self._check_left()
            self._check_unscaled(optimizer)
        if optimizer not in self._known_optimizers:
            self._known_optimizers.add(optimizer)
            if problem := self._describe_settings(optimizer):
                warnings.warn(problem, RuntimeWarning, stacklevel=5)

    def after_step(self, optimizer: Optimizer) -> None:
        """Note that an optimizer has used the gradients; warn where one of them arrived outside a block."""
        self._check_left()
        stepped = set(map(id, _parameters(optimizer)))
        if self._stepped is not None:
            self._stepped |= stepped
        if self.state == COMPLETE:
            self.state, self.grad_scaler = IDLE, None
        if self._outside is not None and id(weight := self._outside[0]) in stepped:
            self._outside = None
            if weight.grad is not None:
                warnings.warn(
                    f"{type(optimizer).__name__} has stepped a gradient of {self._describe([weight])} that arrived "
                    "outside sample(), so it lacked the regularizer: call backward inside the block",
                    RuntimeWarning,
                    stacklevel=5,
                )

    def _check_left(self) -> None:
        if self.state == INSIDE:
            raise RuntimeError("an optimizer steps inside sample(), which leaving the block would undo: step after it")

    def _check_unscaled(self, optimizer: Optimizer) -> None:
        if self.state != COMPLETE or self.grad_scaler is None or hasattr(optimizer, "grad_scale"):
            return  # fused optimizers are given the scale
        if self._left == self._identify_all():
            raise RuntimeError(
                f"{type(optimizer).__name__} steps gradients that a GradScaler has scaled: call "
                "scaler.step(optimizer), and scale another model's loss outside this model's block"
            )

    def before_scaling(self, scaler: torch.amp.GradScaler) -> None:
        """Note that a GradScaler scales a loss, which belongs to the blocks that are open in this thread."""
        if self.state != INSIDE or self._thread != threading.get_ident():
            return
        if self.grad_scaler not in (None, scaler):
            raise RuntimeError(
                "two GradScalers scale losses inside one sample() block: open one model's block after the other's"
            )
        self.grad_scaler = scaler

    def after_unscaling(self, optimizer: Optimizer) -> None:
        """Note that an optimizer's gradients have been divided by a GradScaler's scale; that raises no version."""
        if self.state != INSIDE:
            self.grad_scaler, self._left = None, []
            return
        if self._earlier is not None:
            raise RuntimeError(
                "GradScaler.unscale_ was called inside a sample(accumulate=True) block that adds to earlier gradients: "
                "call it after the step's last block"
            )
        self._unscaled.update(map(id, _parameters(optimizer)))

    def trains(self, optimizer: Optimizer) -> bool:
        """Return whether an optimizer has one of the parameters."""
        return any(id(p) in self._ids for p in _parameters(optimizer))

    def gradient_arrived(self, weight: nn.Parameter) -> None:
        """Note a gradient that has arrived outside a block.

        Raises:
            RuntimeError: it was added to gradients that wait for a step, or the last block had no ``backward``.
        """
        waits = self.state == COMPLETE and self.rho.grad is not None and not self._is_stepped()
        if waits or self.state == NO_BACKWARD:
            raise RuntimeError(
                f"a gradient of {self._describe([weight])} arrived outside sample(), so it lacks the regularizer and "
                "the posterior's part: call backward inside the block, or optimizer.zero_grad() before other gradients"
            )
        if not any(other.state == INSIDE and id(weight) in other._ids for other in list(_all_checks)):
            self._outside = weight, _identify(weight.grad)

    def _has_unused_gradients(self, accumulate: bool) -> bool:
        """Return whether gradients of the last block wait for a step; those that overflowed do not.

        Raises:
            RuntimeError: they were changed since, which makes it impossible to accumulate.
        """
        gradient = self.rho.grad
        if self.state != COMPLETE or gradient is None or all(p.grad is None for p in self.weights):
            return False
        if self._is_stepped():
            return False
        if accumulate and self._left == self._identify_all():
            return True
        value = float(gradient)  # waits for the device, in a loop that is about to fail
        if value == 0 or not math.isfinite(value):
            return False  # zeroed in place, or a GradScaler has skipped the step
        if accumulate:
            raise RuntimeError(
                "the gradients were clipped or changed otherwise between two sample(accumulate=True) blocks of one "
                "step: change them after the last block, before optimizer.step()"
            )
        return True

    def _is_stepped(self) -> bool:
        """Return whether rho has changed since the last block: an optimizer has stepped that has no hooks of torch's.

        The weights may have been exchanged and put back, as for an evaluation of their moving average.
        """
        return self.rho._version != self._rho_version

    def _identify_all(self) -> list[tuple[int, int]]:
        return [_identify(p.grad) for p in [self.rho, *self.weights]]

    def _check_outside(self) -> None:
        if self._outside is None:
            return
        weight, arrived = self._outside
        if weight.grad is not None and _identify(weight.grad) == arrived:  # else it was cleared or set to zero
            raise RuntimeError(
                f"a gradient of {self._describe([weight])} arrived outside sample() and would be cleared: call "
                "backward inside the block, or optimizer.zero_grad() after computing gradients for another purpose"
            )

    def _check_others(self) -> None:
        for other in list(_all_checks):
            if other is self or other.state != COMPLETE:
                continue
            shared = [p for p in other.weights if id(p) in self._ids]
            if shared and other._has_unused_gradients(accumulate=False):
                raise RuntimeError(
                    f"gradients of {self._describe(shared)} from a block of another LearnedL2 have not been used by an "
                    "optimizer step and would be cleared: step after each block, or make one LearnedL2 of both models"
                )

    def _warn_of_unstepped(self) -> None:
        """After the first step of all optimizers, warn of parameters that none of them has."""
        if self._stepped:
            if problem := self._describe_missing(self._stepped):
                warnings.warn(problem, RuntimeWarning, stacklevel=5)
            self._stepped = None

    def _record_structure(self) -> None:
        """Remember the model's modules and parameters, in a form that takes microseconds to compare."""
        self._known_modules = list(self.model.modules())  # kept alive, so that no new module can have the id of one
        self._members = [(module._modules, module._parameters) for module in self._known_modules]
        self._structure = self._current_structure()

    def _current_structure(self) -> list[tuple[int, bool]]:
        """Return the identity of each child module and parameter, with whether a parameter is trained."""
        structure: list[tuple[int, bool]] = []
        for children, parameters in self._members:
            structure += [(id(child), False) for child in children.values()]
            structure += [(id(p), p is not None and p.requires_grad) for p in parameters.values()]
        return structure

    def _check_structure(self) -> None:
        """Raise RuntimeError where the trained weights are not those of the posterior, or have moved."""
        dtype, device = self.rho.dtype, self.rho.device
        moved = [p for p in self.weights if p.dtype is not dtype or p.device != device]
        if moved:
            found = f"{moved[0].dtype} on {moved[0].device}, was {dtype} on {device}"
            raise RuntimeError(f"{self._describe(moved)} changed since LearnedL2 was made ({found}): make it anew")
        if self._current_structure() == self._structure:
            return
        trained = {id(p): name for name, p in self.model.named_parameters() if p.requires_grad}
        frozen = [p for p in self.weights if id(p) not in trained]
        added = [name for id_, name in trained.items() if id_ not in self._ids]
        if frozen or added:
            parts = ["no longer trains " + self._describe(frozen)] * bool(frozen) + [_join("also trains", added)]
            raise RuntimeError(
                f"since LearnedL2 was made, the model {' and '.join(filter(None, parts))}: make LearnedL2 anew, after "
                "freezing, unfreezing, replacing or sharding"
            )
        self._record_structure()

    def _describe_missing(self, trained: set[int]) -> str:
        missing = [p for p in [self.rho, *self.weights] if id(p) not in trained]
        if not missing:
            return ""
        return (
            f"the optimizer does not train {self._describe(missing)}: give it [*model.parameters(), *reg.parameters()]"
        )

    def _describe_settings(self, optimizer: Optimizer) -> str:
        """Return the first setting of an optimizer that contradicts the objective, '' without one."""
        for group in optimizer.param_groups:
            decay = group.get("weight_decay") or 0
            own = [p for p in group["params"] if id(p) in self._ids]
            if own and decay:
                where = f"weight_decay={float(decay):g} on {self._describe(own)}"
                return f"{type(optimizer).__name__} has {where}: set it to 0, as the strength is learned"
            if own and group.get("maximize"):
                where = f"maximize=True on {self._describe(own)}"
                return f"{type(optimizer).__name__} has {where}: minimize the mean negative log-likelihood"
        return ""

    def _describe(self, parameters: Sequence[nn.Parameter]) -> str:
        return _join("", [self._names.get(id(p), f"a parameter of shape {tuple(p.shape)}") for p in parameters])


def _join(verb: str, names: Sequence[str]) -> str:
    """Return some names with a verb before them, '' without names."""
    if not names:
        return ""
    more = len(names) - MAX_NAMES
    return " ".join(filter(None, [verb, ", ".join(names[:MAX_NAMES]), f"and {more} more" if more > 0 else ""]))


def _parameters(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _identify(gradient: Tensor | None) -> tuple[int, int]:
    """Return a gradient's identity and version."""
    return (0, 0) if gradient is None else (id(gradient), gradient._version)


def _on_gradient(reference: weakref.ref[LoopChecks], weight: Tensor) -> None:
    """Hook of a weight, called after each gradient that it gets."""
    checks = reference()
    if checks is not None and checks.state != INSIDE:
        checks.gradient_arrived(weight)  # type: ignore[arg-type]  # hooks are registered on parameters


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    has_closure = any(callable(argument) for argument in [*args[1:], kwargs.get("closure")])
    for checks in list(_all_checks):
        if checks.trains(optimizer):
            checks.before_step(optimizer, has_closure)


def _after_step(optimizer: Optimizer, *_: object) -> None:
    for checks in list(_all_checks):
        if checks.trains(optimizer):
            checks.after_step(optimizer)


def _install_global_hooks() -> None:
    """Follow all optimizers and GradScalers of this process. Torch has no hooks for a GradScaler, so it is wrapped."""
    scaler = torch.amp.GradScaler
    if hasattr(scaler.scale, "__wrapped__"):
        return
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)
    original_scale, original_unscale = scaler.scale, scaler.unscale_

    @wraps(original_scale)
    def scale(self: torch.amp.GradScaler, outputs: Any) -> Any:
        for checks in list(_all_checks):
            if self.is_enabled():
                checks.before_scaling(self)
        return original_scale(self, outputs)

    @wraps(original_unscale)
    def unscale_(self: torch.amp.GradScaler, optimizer: Optimizer) -> None:
        original_unscale(self, optimizer)
        for checks in list(_all_checks):
            if self.is_enabled() and checks.trains(optimizer):
                checks.after_unscaling(optimizer)

    scaler.scale = scale  # type: ignore[method-assign]
    scaler.unscale_ = unscale_  # type: ignore[method-assign]
