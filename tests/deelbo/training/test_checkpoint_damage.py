"""Tests of damaged, hostile, unreadable and unwritable checkpoints: the run ends as it does without one."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from deelbo import DataEmphasizedELBO, PhaseClock, Schedule, make_groups
from deelbo.data import Split
from deelbo.training.checkpoint import Checkpoint, deserialize, fingerprint, serialize
from deelbo.training.fit import fit
from deelbo.training.run import TrainingRun
from tests.helpers.refusals import Bomb

SCHEDULE = Schedule(0.05, steps=30, batch_size=32, posterior_passes=2, series_points=4)  # 6 epochs, 4 looks
EPOCHS = 6
Train = Callable[..., str]


def given(data: bytes | None) -> Checkpoint:
    """Return a checkpoint that reads ``data`` and writes nothing."""
    return Checkpoint(1e9, lambda _: None, lambda: data)


@pytest.fixture
def train(toy_split: Split, toy_model: nn.Module) -> Train:
    """Return a function that trains one fixed run and returns its results, except for seconds, as text."""

    def run(checkpoint: Checkpoint | None = None) -> str:
        model = copy.deepcopy(toy_model)
        objective = DataEmphasizedELBO(make_groups(model, "4", "l2-sp"), 160)
        result = fit(model, toy_split, objective, SCHEDULE, checkpoint=checkpoint)
        series = [{**row, "train_seconds": 0} for row in result.series]
        weights = [tensor.tolist() for tensor in model.state_dict().values()]
        assert 0 < result.seconds["train"] < 100
        return repr((result.status, result.steps, result.metrics, result.state, series, weights))

    return run


@pytest.fixture
def good(train: Train) -> bytes:
    """Return the third checkpoint of that run, after half of it."""
    taken: list[bytes] = []
    train(Checkpoint(0, taken.append, lambda: None))
    return taken[2]


def reserialize(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return the checkpoint with changed content and a matching hash."""
    content = deserialize(data)
    return serialize(change(content) or content)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no content": lambda _: {"fingerprint": 1},
    "no dict": lambda _: [1],
    "no weights": lambda c: c["run"].pop("model") and None,
    "a weight's shape": lambda c: c["run"]["model"].update({"4.weight": torch.zeros(3, 12)}),
    "a weight's type": lambda c: c["run"]["model"].update({"4.weight": torch.zeros(4, 12).double()}),
    "momentum's shape": lambda c: c["run"]["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(7)),
    "momentum of nothing": lambda c: c["run"]["optimizer"]["state"].update({99: {}}),
    "a rate of text": lambda c: c["run"]["optimizer"]["param_groups"][0].update(lr="x"),
    "a scheduler of text": lambda c: c["run"]["scheduler"].update(last_epoch="x"),
    "no parameters": lambda c: c["run"].update(parameters=[]),
    "random numbers": lambda c: c["run"].update(random=[torch.full_like(r, 255) for r in c["run"]["random"]]),
    "steps": lambda c: c["run"].update(steps_done=35),
    "part of an epoch": lambda c: c["run"].update(steps_done=7),
    "a series of text": lambda c: c["run"].update(series=["x"]),
    "a row of text": lambda c: c["run"]["series"][0].update(step="x"),
    "no seconds": lambda c: c.pop("seconds") and None,
    "a phase": lambda c: c["seconds"].update(lunch=1.0),
    "negative seconds": lambda c: c["seconds"].update(train=-1.0),
}


@pytest.mark.parametrize("what", [*CHANGES, "hostile", "hostile inside", "hostile and no checkpoint", "empty", "noise"])
def test_a_checkpoint_does_no_harm(what: str, bomb: Bomb, train: Train, good: bytes) -> None:
    """With anything in place of a checkpoint no code runs, and the run has the bits of one from the beginning."""
    made = {
        "hostile": lambda: pickle.dumps(bomb),
        "hostile inside": lambda: reserialize(good, lambda c: c["run"].update(series=[bomb])),
        "hostile and no checkpoint": lambda: serialize({"fingerprint": bomb}),
        "empty": lambda: b"",
        "noise": lambda: torch.randint(0, 256, (5000,), dtype=torch.uint8).numpy().tobytes(),
    }
    data = made[what]() if what in made else reserialize(good, CHANGES[what])
    checkpoint = given(data)
    with pytest.warns(RuntimeWarning, match="the checkpoint is damaged"):
        ending = train(checkpoint)
    assert ending == train()
    assert (checkpoint.resumed_at_step, checkpoint.resumed_seconds) == (None, 0)


@pytest.mark.filterwarnings("ignore:the checkpoint is damaged")
def test_every_truncation_and_flipped_bit_is_noticed(toy_split: Split, toy_model: nn.Module, good: bytes) -> None:
    """Truncated bytes, and bytes with one flipped bit at any of many positions, leave the run at its start."""
    torch.manual_seed(0)
    run = TrainingRun(toy_model, toy_split, DataEmphasizedELBO(make_groups(toy_model, "4", "l2-sp"), 160), SCHEDULE, 0)
    run.warm_up()
    start, clock = fingerprint(run), PhaseClock()
    for place in sorted({*range(0, len(good), 61), *range(40), *range(len(good) - 40, len(good))}):
        flipped = bytearray(good)
        flipped[place] ^= 1 << place % 8
        for bad in (good[:place], bytes(flipped)):
            checkpoint = given(bad)
            checkpoint.resume(run, clock)
            assert checkpoint.resumed_at_step is None, place
    assert fingerprint(run) == start
    whole = given(good)
    whole.resume(run, clock)
    assert whole.resumed_at_step == run.steps_done == 15


def test_a_full_disk_does_not_end_a_run(train: Train) -> None:
    """If no checkpoint can be written, the run warns, tries again later, and has the same results."""
    tried: list[int] = []

    def write(data: bytes) -> None:
        tried.append(len(data))
        raise OSError(28, "No space left on device")

    with pytest.warns(RuntimeWarning, match=r"could not be written \(.*No space left on device\): the run continues"):
        ending = train(Checkpoint(0, write, lambda: None))
    assert ending == train()
    assert len(tried) == EPOCHS


def test_an_unreadable_checkpoint_is_ignored(train: Train) -> None:
    """If reading fails, the run warns, starts from the beginning, and writes the next checkpoint."""
    taken: list[bytes] = []

    def read() -> bytes | None:
        raise PermissionError(13, "Permission denied")

    with pytest.warns(RuntimeWarning, match=r"could not be read \(.*Permission denied\): training starts"):
        ending = train(Checkpoint(0, taken.append, read))
    assert ending == train()
    assert len(taken) == EPOCHS


@pytest.mark.parametrize("every", [-1, float("nan")])
def test_every_is_a_number_of_seconds(every: float) -> None:
    """A negative number and NaN are refused."""
    with pytest.raises(ValueError, match="every must be a number of seconds >= 0, got"):
        Checkpoint(every, lambda _: None, lambda: None)
