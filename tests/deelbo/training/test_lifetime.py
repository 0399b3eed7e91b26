"""A run that has ended is freed at once, not at some later garbage collection: its memory is on the device."""

import gc
import shutil
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deelbo import ELBO, MAP, Checkpoint, DataEmphasizedELBO, Handover, LearnedL2, LowRank, Schedule, make_groups
from deelbo.data import Geometry, Images, ImageTransform, Split
from deelbo.objectives.base import Objective
from deelbo.objectives.hypergradient import HypergradientMAP
from deelbo.objectives.laplace import LaplaceMAP
from deelbo.objectives.stn import ResponseMAP
from deelbo.training.fit import fit
from deelbo.training.numerics import Numerics
from tests.helpers.living_runs import LivingRuns, counted_runs, leave_cycle

STRENGTHS = {"backbone": 0.01, "head": 0.01}
SCHEDULE = Schedule(0.05, steps=20, batch_size=32, posterior_passes=1)
MakeImages = Callable[[int, int], Images]


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Dropout(0.1), nn.Linear(12, 4))


def low_rank() -> LowRank:
    return LowRank(torch.zeros(228), torch.rand(228), torch.randn(228, 3))


Make = Callable[[nn.Module], Objective]
OBJECTIVES: dict[str, Make] = {
    "MAP": lambda model: MAP(make_groups(model, "4", "l2-sp"), 160, STRENGTHS),
    "MAP, low rank": lambda model: MAP(make_groups(model, "4", low_rank()), 160, STRENGTHS),
    "ELBo": lambda model: ELBO(make_groups(model, "4", "l2-zero"), 160),
    "DE ELBo": lambda model: DataEmphasizedELBO(make_groups(model, "4", "l2-sp"), 160),
    "DE ELBo by layer": lambda model: DataEmphasizedELBO(make_groups(model, "4", "l2-sp", "layer"), 160),
    "hypergradients": lambda model: HypergradientMAP(make_groups(model, "4", "l2-sp"), 160, STRENGTHS),
    "STN": lambda model: ResponseMAP(make_groups(model, "4", "l2-sp"), 160, STRENGTHS),
    "Laplace": lambda model: LaplaceMAP(make_groups(model, "4", "l2-sp"), 160, total_steps=20),
}


@pytest.fixture
def train(toy_images: MakeImages) -> Callable[..., None]:
    """Make a run of its own network and images, train it, and forget it."""

    def run(make: Make, spoil: Callable[[nn.Module], object] | None = None, **how: Any) -> None:
        torch.manual_seed(0)  # a snapshot is of one initial state
        images, model = toy_images(160, 1), network()
        geometry = Geometry(side=4, crop=4, pad=1)
        split = Split(images, toy_images(40, 2), toy_images(80, 3), ImageTransform(geometry).fit(images))
        objective = make(model)
        if spoil is not None:
            spoil(model)
        fit(model, split, objective, SCHEDULE, **how)

    return run


def check_none_alive(living: LivingRuns, runs: int) -> None:
    assert living.count == runs
    assert living.names() == []


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_run_is_freed_when_fit_returns(make: Make, train: Callable[..., None]) -> None:
    """After each of several runs none is alive: no weights, no momentum, no images."""
    with counted_runs() as living:
        for runs in (1, 2, 3):
            train(make)
            check_none_alive(living, runs)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_is_freed(train: Callable[..., None]) -> None:
    """The same through torch.compile, whose graphs are kept for the next run."""
    with counted_runs() as living:
        for runs, make in enumerate(OBJECTIVES.values(), 1):
            train(make, numerics=Numerics(compile=True))
            check_none_alive(living, runs)


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_saved_run_is_freed(make: Make, train: Callable[..., None]) -> None:
    """A run that is saved, resumed, or given a damaged snapshot is freed, and so are the snapshots' tensors."""
    kept: list[bytes] = []
    with counted_runs() as living:
        checkpoint = Checkpoint(0, kept.append, lambda: None)
        train(make, checkpoint=checkpoint)
        handover = Handover(lambda: None, kept.append)
        train(make, handover=handover, until=0.5)
        check_none_alive(living, 2)
        with pytest.warns(RuntimeWarning, match="damaged"):
            train(make, checkpoint=Checkpoint(0, kept.append, lambda: b"x" * 100))
        train(make, handover=Handover(lambda: kept[-1], kept.append))
        check_none_alive(living, 4)


def raise_in_forward(model: nn.Module) -> None:
    """Fail in the third training step, the first after the warm-up."""
    calls: list[int] = []

    def fail(module: nn.Module, *_: object) -> None:
        calls.append(module.training)
        if sum(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_hook(fail)


def raise_in_warm_up(model: nn.Module) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_hook(fail)


def raise_in_backward(model: nn.Module) -> None:
    calls: list[int] = []

    def fail(gradient: Tensor) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    next(model.parameters()).register_hook(fail)


class FullOptimizer(torch.optim.SGD):
    """An optimizer whose third step finds no memory."""

    calls = 0

    def step(self, closure: Any = None) -> None:
        self.calls += 1
        if self.calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().step()


FAILURES: dict[str, dict[str, Any]] = {
    "forward": {"spoil": raise_in_forward},
    "warm-up": {"spoil": raise_in_warm_up},
    "backward": {"spoil": raise_in_backward},
    "optimizer": {"optimizer": lambda parameters, rate: FullOptimizer(parameters, lr=rate)},
    "callback": {"on_epoch": lambda row: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))},
}


@pytest.mark.parametrize("how", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("name", ["MAP", "DE ELBo", "hypergradients"])
def test_a_run_that_raised_is_freed_with_its_exception(
    name: str, how: dict[str, Any], train: Callable[..., None]
) -> None:
    """A run that failed lives as long as its exception, whose traceback has it, and no longer."""
    with counted_runs() as living:
        with suppress(torch.OutOfMemoryError):
            train(OBJECTIVES[name], **how)
            pytest.fail("nothing was raised")
        check_none_alive(living, 1)
        train(OBJECTIVES[name])
        check_none_alive(living, 2)


def test_exceptions_that_an_import_leaves_hold_no_run(
    train: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that is imported in the first step, and leaves a cycle of exceptions, keeps no run alive."""
    (tmp_path / "leaving_cycles.py").write_text(
        "from tests.helpers.living_runs import leave_cycle\nleave_cycle()\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def spoil(model: nn.Module) -> None:
        def note(*_: object) -> None:
            import leaving_cycles  # noqa: F401

        model.register_forward_hook(note)

    try:
        with counted_runs() as living:
            train(OBJECTIVES["MAP"], spoil)
            check_none_alive(living, 1)
    finally:
        sys.modules.pop("leaving_cycles", None)


def test_exceptions_that_a_compiler_leaves_hold_no_run(
    train: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile leaves cycles of exceptions where it compiles anew; they keep no run alive."""

    def compile_model(_: Numerics, model: nn.Module) -> Callable[[Tensor], Any]:
        calls: list[int] = []

        def forward(x: Tensor) -> Any:
            calls.append(1)
            if len(calls) == 1:
                leave_cycle()
            return model(x)

        return forward

    monkeypatch.setattr(Numerics, "compile_model", compile_model)
    with counted_runs() as living:
        train(OBJECTIVES["MAP"], numerics=Numerics(compile=True))
        check_none_alive(living, 1)


@pytest.mark.parametrize("fails", [False, True], ids=["trained", "raised"])
@pytest.mark.parametrize("groups", ["backbone+head", "layer"])
def test_a_regularizer_is_freed_with_its_loop(groups: str, fails: bool) -> None:
    """In a loop of one's own, model, optimizer and `LearnedL2` are freed with the loop, hooks and all."""

    def train() -> list[weakref.ref[Any]]:
        model = network()
        reg = LearnedL2(model, 160, head="4", groups=groups)
        optimizer = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=0.01, momentum=0.9)
        for step in range(3):
            with suppress(torch.OutOfMemoryError):
                with reg.sample():
                    nn.functional.cross_entropy(model(torch.randn(8, 1, 4, 4)), torch.arange(8) % 4).backward()
                    if fails and step == 2:
                        raise torch.OutOfMemoryError("CUDA out of memory")
                optimizer.step()
        return [weakref.ref(part) for part in (model, model[1].weight, reg, reg.posterior, optimizer)]

    gc.disable()
    try:
        assert [reference() for reference in train()] == [None] * 5
    finally:
        gc.enable()
