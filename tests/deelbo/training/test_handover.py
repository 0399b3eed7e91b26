"""Tests of runs in segments: they end with the bits of a run in one go."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deelbo import MAP, Checkpoint, DataEmphasizedELBO, FitResult, Handover, PhaseClock, Schedule, make_groups
from deelbo.data import Split
from deelbo.objectives.base import Objective
from deelbo.training.fit import fit
from deelbo.training.run import TrainingRun

SCHEDULE = Schedule(0.05, steps=60, batch_size=32, posterior_passes=2, series_points=4)  # 12 epochs, looks at 3 6 9 12
SHARES = (0.1, 0.3, 1.0)  # epochs 2, 4 and 12: no look of the whole run's is at the first two


class Store:
    """Stores the run between segments; a test may change ``content``."""

    def __init__(self, content: bytes | None = None) -> None:
        self.content = content

    def write(self, data: bytes) -> None:
        self.content = data

    def handover(self) -> Handover:
        return Handover(lambda: self.content, self.write)


class Learning(MAP):
    """MAP whose strength grows by a random factor after every fourth step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(make_groups(model, "4", "l2-sp"), 160, {"backbone": 1e-3, "head": 0.01})
        self.generator = torch.Generator().manual_seed(5)
        self.adapted_after: list[int] = []

    def should_adapt(self, steps_done: int) -> bool:
        return steps_done % 4 == 0

    def adapt(self, run: TrainingRun) -> None:
        self.adapted_after.append(run.steps_done)
        self._strengths["backbone"] *= 1 + float(torch.rand(1, generator=self.generator))

    def warm_up(self, run: TrainingRun) -> None:
        self.adapt(run)

    def selection_metrics(self, run: TrainingRun) -> dict[str, float]:
        return {"objective": 7.0 + len(run.split.train)}

    def learned_state(self) -> dict[str, Tensor]:
        return {"strength": torch.tensor(self._strengths["backbone"], dtype=torch.float64)}

    def load_learned_state(self, state: Any) -> None:
        self._strengths["backbone"] = float(state["strength"])


class Averaging(torch.optim.SGD):
    """SGD that evaluates another point than it trains, like schedule-free, and returns from it with rounding."""

    def __init__(self, parameters: list[nn.Parameter], learning_rate: float) -> None:
        super().__init__(parameters, lr=learning_rate, momentum=0.9)
        self.param_groups[0]["train_mode"] = False

    @torch.no_grad()
    def _switch(self, train: bool) -> None:
        if self.param_groups[0]["train_mode"] is not train:
            for parameter in self.param_groups[0]["params"]:
                parameter.mul_(1.1 if train else 1 / 1.1)
        self.param_groups[0]["train_mode"] = train

    def train(self) -> None:
        if not self.state:
            self.param_groups[0]["train_mode"] = True  # a start is the same point in both
        self._switch(True)

    def eval(self) -> None:
        self._switch(False)

    def step(self, closure: Any = None) -> Any:
        assert self.param_groups[0]["train_mode"], "a step in evaluation mode"
        return super().step(closure)


def de_elbo(model: nn.Module) -> Objective:
    noise = torch.Generator().manual_seed(7)
    return DataEmphasizedELBO(make_groups(model, "4", "l2-sp"), 160, generator=noise)


def point(model: nn.Module) -> Objective:
    return MAP(make_groups(model, "4", "l2-sp"), 160, {"backbone": 0.01, "head": 0.01})


def adamw(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0)


Segment = Callable[..., tuple[FitResult, list[Tensor]]]


@pytest.fixture
def segment(toy_split: Split, toy_model: nn.Module) -> Segment:
    """Return a function that trains one segment in a new process, and returns results and tensors."""

    def run(make: Callable[[nn.Module], Objective] = de_elbo, **given: Any) -> tuple[FitResult, list[Tensor]]:
        model = copy.deepcopy(toy_model)
        objective = make(model)
        result = fit(model, toy_split, objective, given.pop("schedule", SCHEDULE), seed=3, **given)
        return result, [*model.state_dict().values(), *(p.detach() for p in objective.parameters())]

    return run


def bits(ending: tuple[FitResult, list[Tensor]]) -> object:
    """Return everything but the seconds."""
    result, tensors = ending
    series = [{**row, "train_seconds": 0} for row in result.series]
    told = repr((result.status, result.steps, result.metrics, result.state, series))
    return told, [tensor.numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("optimizer", [None, adamw, Averaging], ids=["sgd", "adamw", "averaging"])
@pytest.mark.parametrize("make", [point, de_elbo, Learning])
def test_segments_end_as_one_run(make: Any, optimizer: Any, segment: Segment) -> None:
    """Three segments end with the bits of weights, metrics, state and series of a single run."""
    store, resumed = Store(), []
    for until in SHARES:
        handover = store.handover()
        ending = segment(make, until=until, handover=handover, optimizer=optimizer)
        resumed.append(handover.resumed_at_step)
    assert resumed == [None, 10, 20]
    assert bits(ending) == bits(segment(make, optimizer=optimizer))


@pytest.mark.parametrize("share", [0.1, 0.45, 0.9])
def test_segments_of_a_run_whose_noise_ends(share: float, segment: Segment) -> None:
    """A later segment knows whether the noise has ended, and with which strengths."""
    store, schedule = Store(), replace(SCHEDULE, noise_until=share, final_batchnorm="mean")
    for until in SHARES:
        ending = segment(until=until, handover=store.handover(), schedule=schedule)
    assert bits(ending) == bits(segment(schedule=schedule))


@pytest.mark.parametrize("make", [point, de_elbo])
def test_metrics_of_an_early_stop(make: Any, segment: Segment) -> None:
    """A stop has train_nll, validation metrics and a bound's objective, but no test and no posterior pass."""
    whole, _ = segment(make)
    early, _ = segment(make, until=0.3)
    last = early.series[-1]
    assert [row["epoch"] for row in early.series] == [3, 4]
    assert early.steps == last["step"] == 20
    assert {**early.series[0], "train_seconds": 0} == {**whole.series[0], "train_seconds": 0}
    expected = {name: last[name] for name in ("train_nll", "val_nll", "val_acc")}
    if make is de_elbo:
        expected["objective"] = last["train_nll"] + early.state["regularizer"]
    assert early.metrics == expected
    assert early.seconds["test"] == early.seconds["select"] == 0
    assert early.seconds["evaluate"] > 0


@pytest.mark.parametrize(
    ("until", "epoch"), [(1.0, 12), (0.5, 6), (0.51, 7), (1e-9, 1), (0.25, 3), (0.1 + 0.2, 4), (7 / 12, 7)]
)
def test_the_epoch_of_a_stop(until: float, epoch: int) -> None:
    """A fraction of 12 epochs is rounded up to whole epochs, at least 1, without rounding errors."""
    assert SCHEDULE.stop_epoch(until, 160) == epoch


@pytest.mark.parametrize("until", [0, -0.1, 1.01, float("nan")])
def test_impossible_fractions_are_refused(until: float) -> None:
    """A fraction that is not above 0 and at most 1 is refused."""
    with pytest.raises(ValueError, match="until must be a fraction of the run's epochs, above 0 and at most 1, got"):
        SCHEDULE.stop_epoch(until, 160)


def test_seconds_of_segments(segment: Segment) -> None:
    """The clock has the segment's own seconds; train_seconds of the rows count all segments so far."""
    store, hand = Store(), [0.0]

    def read() -> bytes | None:
        hand[0] += 0.5
        return store.content

    def write(data: bytes) -> None:
        hand[0] += 0.25
        store.write(data)

    def timed(model: nn.Module) -> Objective:
        def a_step(network: nn.Module, _: Any, __: Any) -> None:
            hand[0] += network.training

        model.register_forward_hook(a_step)
        return point(model)

    booked, rows = [], []
    for until in SHARES:
        clock = PhaseClock(now=lambda: hand[0])
        result, _ = segment(timed, until=until, handover=Handover(read, write), clock=clock)
        booked.append((result.seconds["train"], result.seconds["checkpoint"]))
        rows.append([row["train_seconds"] for row in result.series])
    assert booked == [(10, 0.75), (10, 0.75), (40, 0.5)]
    assert rows == [[10], [15, 20], [15, 30, 45, 60]]


def test_unusable_handovers_are_ignored(segment: Segment) -> None:
    """Another run's, a damaged, a later and an unreadable handover are ignored with a warning."""
    store, other = Store(), Store()
    segment(until=0.5, handover=store.handover())
    segment(until=0.1, handover=other.handover(), schedule=replace(SCHEDULE, learning_rate=0.01))
    assert store.content is not None
    undisturbed = bits(segment(until=0.3))
    for content in (store.content, other.content, store.content[:-1], b""):
        handover = Handover(lambda content=content: content, lambda _: None)  # type: ignore[misc]
        with pytest.warns(
            RuntimeWarning, match="the handover is damaged, belongs to another run or is past the end of this one"
        ):
            assert bits(segment(until=0.3, handover=handover)) == undisturbed
        assert handover.resumed_at_step is None

    def unreadable() -> bytes | None:
        raise PermissionError(13, "Permission denied")

    with pytest.warns(RuntimeWarning, match=r"could not be read \(.*Permission denied\)"):
        assert bits(segment(until=0.3, handover=Handover(unreadable, lambda _: None))) == undisturbed


def test_a_full_disk_costs_no_result(segment: Segment) -> None:
    """On a full disk the segment warns and has its result."""

    def write(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.warns(RuntimeWarning, match=r"the handover could not be written \(.*No space left"):
        result = segment(until=0.3, handover=Handover(lambda: None, write))
    assert bits(result) == bits(segment(until=0.3))


def test_a_segment_continues_from_its_checkpoint(segment: Segment) -> None:
    """A segment that dies continues from its own checkpoint, to the same end."""
    store, mid = Store(), Store()
    segment(until=0.1, handover=store.handover())
    writes: list[int] = []

    def write(data: bytes) -> None:
        mid.write(data)
        writes.append(len(data))
        if len(writes) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(handover=store.handover(), checkpoint=Checkpoint(0, write, lambda: mid.content))
    checkpoint = Checkpoint(1e9, mid.write, lambda: mid.content)
    assert bits(segment(handover=store.handover(), checkpoint=checkpoint)) == bits(segment())
    assert checkpoint.resumed_at_step == 25


def test_a_diverged_run_is_not_handed_over(segment: Segment) -> None:
    """A run whose losses are not finite is not saved."""
    store = Store()
    schedule = replace(SCHEDULE, learning_rate=1e30, clip_norm=1e9)
    result, _ = segment(point, until=0.1, handover=store.handover(), schedule=schedule)
    assert result.status == "diverged"
    assert store.content is None


def test_strengths_are_adapted(segment: Segment) -> None:
    """`adapt` follows the steps of `should_adapt`; warm-up's is forgotten; selection_metrics end the run."""
    made: list[Learning] = []

    def learning(model: nn.Module) -> Objective:
        made.append(Learning(model))
        return made[0]

    result, _ = segment(learning)
    assert made[0].adapted_after == [2, *range(4, 61, 4)]
    random = torch.Generator().manual_seed(5)
    grown = math.prod(1 + float(torch.rand(1, generator=random)) for _ in range(15))
    assert result.state["weight_decay_backbone"] == pytest.approx(1e-3 * grown, rel=1e-12)
    assert result.seconds["adapt"] > 0
    assert result.seconds["select"] > 0
    assert result.metrics["objective"] == 167


def test_any_optimizer(segment: Segment) -> None:
    """A given optimizer trains with the schedule's learning rate; another optimizer is another run."""
    seen: list[tuple[float, int]] = []

    def plain(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        seen.append((learning_rate, len(parameters)))
        return torch.optim.SGD(parameters, lr=learning_rate)

    store = Store()
    no_momentum = bits(segment(schedule=replace(SCHEDULE, momentum=0.0)))
    assert bits(segment(optimizer=plain)) == no_momentum != bits(segment())
    assert set(seen) == {(0.05, 7)}
    segment(until=0.1, handover=store.handover(), optimizer=adamw)
    with pytest.warns(RuntimeWarning, match="belongs to another run"):
        segment(until=0.3, handover=store.handover(), optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr))
