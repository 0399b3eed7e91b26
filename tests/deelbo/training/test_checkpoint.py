"""Tests of checkpoints: an interrupted run continues, and ends with the bits of an uninterrupted one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deelbo import ELBO, MAP, DataEmphasizedELBO, FitResult, LowRank, PhaseClock, Schedule, make_groups
from deelbo.data import Geometry, Images, ImageTransform, Split
from deelbo.objectives.base import Objective
from deelbo.training.checkpoint import Checkpoint
from deelbo.training.fit import fit
from deelbo.training.numerics import Numerics

SCHEDULE = Schedule(0.05, steps=30, batch_size=32, posterior_passes=2, series_points=4)  # 6 epochs, 4 looks
EPOCHS = 6


class Death(Exception):  # noqa: N818 - no error of anything
    """Ends a run's process."""


def images(n: int, seed: int) -> Images:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 1, 4, 4), generator=random, dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % 4, 4)


TRAIN = images(160, 1)
SPLIT = Split(TRAIN, images(40, 2), images(80, 3), ImageTransform(Geometry(4, 4, pad=1, flip=True)).fit(TRAIN))


@dataclass
class Setting:
    """Everything that a process makes when it starts, the same to the bit each time."""

    method: str = "de-elbo"
    prior: str = "l2-sp"
    schedule: Schedule = SCHEDULE
    split: Split = SPLIT
    seed: int = 3
    strength: float = 0.01
    kappa: float = 2.0
    weights: int = 5
    own_noise: bool = True
    numerics: Numerics = field(default_factory=Numerics)

    def model(self) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(self.weights)
            parts = [nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Dropout(0.1), nn.Linear(12, 4)]
            return nn.Sequential(nn.Flatten(), *parts)

    def objective(self, model: nn.Module) -> Objective:
        prior: Any = self.prior
        if prior == "low-rank":
            random = torch.Generator().manual_seed(8)
            size = 16 * 12 + 12 + 2 * 12
            tensors = [torch.rand(size, *columns, generator=random) for columns in ((), (), (3,))]
            prior = LowRank(*tensors)
        groups, count = make_groups(model, "4", prior), len(self.split.train)
        if self.method == "map":
            return MAP(groups, count, {"backbone": self.strength, "head": 0.01})
        noise = torch.Generator().manual_seed(7) if self.own_noise else None
        if self.method == "elbo":
            return ELBO(groups, count, self.kappa, generator=noise)
        return DataEmphasizedELBO(groups, count, generator=noise)

    def fit(self, checkpoint: Checkpoint | None = None, **given: Any) -> Ending:
        """Run a new process, for which nothing but the checkpoint is left of the earlier ones."""
        model = given.pop("model", None) or self.model()
        objective = self.objective(model)
        given = {"seed": self.seed, "numerics": self.numerics} | given
        result = fit(model, self.split, objective, self.schedule, checkpoint=checkpoint, **given)
        learned = [parameter.detach().clone() for parameter in objective.parameters()]
        return Ending(result, [*model.state_dict().values(), *learned])


@dataclass
class Ending:
    """The results of a run."""

    result: FitResult
    tensors: list[Tensor]

    def __eq__(self, other: object) -> bool:
        """Compare bits, except for the seconds."""
        return isinstance(other, Ending) and self._bits() == other._bits()

    def _bits(self) -> object:
        series = [{**row, "train_seconds": 0} for row in self.result.series]
        told = repr((self.result.status, self.result.steps, self.result.metrics, self.result.state, series))  # nan too
        return told, [tensor.numpy().tobytes() for tensor in self.tensors]


class Disk:
    """Stores a run's last checkpoint; the run dies after the writes numbered ``deaths``."""

    def __init__(self, *deaths: int, content: bytes | None = None) -> None:
        self.content, self.taken, self._deaths = content, 0, deaths

    def write(self, data: bytes) -> None:
        self.content = data
        self.taken += 1
        if self.taken in self._deaths:
            raise Death

    def checkpoint(self, every: float = 0.0, now: Callable[[], float] | None = None) -> Checkpoint:
        made = Checkpoint(every, self.write, lambda: self.content)
        return made if now is None else replace(made, now=now)


def dying_at(setting: Setting, step: int) -> nn.Sequential:
    """Return the setting's network, which raises Death in training step ``step`` after warm-up."""
    model, steps = setting.model(), [-2]

    def count(_: nn.Module, __: Any) -> None:
        steps[0] += model.training
        if steps[0] == step:
            raise Death

    model.register_forward_pre_hook(count)
    return model


def left_behind(setting: Setting, at: int) -> bytes:
    """Return the checkpoint of a run that died after writing number ``at``."""
    disk = Disk(at)
    with pytest.raises(Death):
        setting.fit(disk.checkpoint())
    assert disk.content is not None
    return disk.content


SETTINGS = [
    *(Setting(method, prior) for method in ("map", "elbo", "de-elbo") for prior in ("l2-zero", "l2-sp", "low-rank")),
    *(Setting(method, schedule=replace(SCHEDULE, momentum=0.0)) for method in ("map", "de-elbo")),
    *(Setting(method, split=replace(SPLIT, validation=None)) for method in ("map", "de-elbo")),
    Setting(own_noise=False),
    *(
        Setting(schedule=replace(SCHEDULE, noise_until=share, final_batchnorm="mean", closing_batchnorm="draw"))
        for share in (0.01, 0.35, 0.9)
    ),
]
NAMES = [f"{i}-{setting.method}-{setting.prior}" for i, setting in enumerate(SETTINGS)]


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(setting: Setting) -> None:
    """A run that dies three times ends with the bits of metrics, state, series and weights of one that does not."""
    undisturbed = setting.fit()
    disk = Disk(1, 6)
    resumed = []
    for model in (setting.model(), dying_at(setting, 5 * 3 + 2), setting.model()):
        checkpoint = disk.checkpoint()
        with pytest.raises(Death):
            setting.fit(checkpoint, model=model)
        resumed.append(checkpoint.resumed_at_step)
    last = disk.checkpoint()
    assert setting.fit(last) == undisturbed
    assert [*resumed, last.resumed_at_step] == [None, 5, 20, 5 * EPOCHS]


def test_a_run_that_diverges_does_so_again() -> None:
    """Losses that are not finite are still so in the run that continues."""
    setting = Setting(schedule=Schedule(1e30, steps=30, batch_size=32, clip_norm=1e9, series_points=1))
    checkpoint = Disk(content=left_behind(setting, 2)).checkpoint()
    ending = setting.fit(checkpoint)
    assert ending.result.status == "diverged"
    assert checkpoint.resumed_at_step == 10
    assert ending == setting.fit()


@pytest.mark.parametrize(
    ("every", "steps"), [(0, [5, 10, 15, 20, 25, 30]), (9, [10, 20, 30]), (11, [15, 30]), (99, [])]
)
def test_checkpoints_are_written_between_epochs(every: float, steps: list[int]) -> None:
    """One is written at the first end of an epoch that is ``every`` seconds after the last one was written."""
    model, seconds, trained, written = Setting().model(), [0.0], [-2], list[int]()

    def a_step(_: nn.Module, __: Any, ___: Any) -> None:
        trained[0] += model.training
        seconds[0] += model.training

    def write(_: bytes) -> None:
        written.append(trained[0])
        seconds[0] += 100

    model.register_forward_hook(a_step)
    Setting().fit(Checkpoint(every, write, lambda: None, now=lambda: seconds[0]), model=model)
    assert written == steps


def test_seconds_continue_from_the_checkpoint() -> None:
    """Training that led to the result is booked once, lost training not at all, and warm-up twice."""
    hand, disk = [0.0], Disk()

    def write(data: bytes) -> None:
        hand[0] += 0.25
        disk.write(data)

    def a_step(network: nn.Module, _: Any, __: Any) -> None:
        hand[0] += network.training

    def life(model: nn.Module) -> tuple[FitResult, float]:
        model.register_forward_hook(a_step)
        checkpoint = Checkpoint(0, write, lambda: disk.content)
        result = Setting().fit(checkpoint, model=model, clock=PhaseClock(now=lambda: hand[0])).result
        return result, checkpoint.resumed_seconds

    with pytest.raises(Death):
        life(dying_at(Setting(), 18))
    hand[0] += 1000
    result, resumed_seconds = life(Setting().model())
    assert resumed_seconds == 15 + 2 + 2 * 0.25  # how long the third took, the third could not know
    assert [row["train_seconds"] for row in result.series] == [row["step"] for row in result.series]
    booked = {name: seconds for name, seconds in result.seconds.items() if seconds}
    assert booked == {"train": 30, "warmup": 4, "checkpoint": 0.25 * 5}


def test_rows_are_reported_once() -> None:
    """on_epoch gets the rows that this process adds; the series also has the earlier ones."""
    seen: list[dict[str, float]] = []
    result = Setting().fit(Disk(content=left_behind(Setting(), 3)).checkpoint(), on_epoch=seen.append).result
    assert [row["step"] for row in result.series] == [10, 15, 25, 30]
    assert seen == result.series[2:]


OTHERS = {
    "seed": Setting(seed=4),
    "learning rate": Setting(schedule=replace(SCHEDULE, learning_rate=0.04)),
    "momentum": Setting(schedule=replace(SCHEDULE, momentum=0.0)),
    "steps": Setting(schedule=replace(SCHEDULE, steps=40)),
    "batchnorm": Setting(schedule=replace(SCHEDULE, batchnorm="frozen")),
    "images": Setting(split=replace(SPLIT, train=images(160, 9))),
    "labels": Setting(split=replace(SPLIT, train=Images(TRAIN.pixels, TRAIN.labels.flip(0), 4))),
    "validation": Setting(split=replace(SPLIT, validation=None)),
    "N": Setting(split=replace(SPLIT, train=images(128, 1))),
    "geometry": Setting(split=replace(SPLIT, transform=replace(SPLIT.transform, geometry=Geometry(4, 4, pad=1)))),
    "prior": Setting(prior="l2-zero"),
    "objective": Setting("elbo"),
    "start": Setting(weights=6),
    "noise": Setting(own_noise=False),
    "numerics": Setting(numerics=Numerics(channels_last=True)),
}
PAIRS = [(name, Setting(), other) for name, other in OTHERS.items()]
PAIRS += [("strength", Setting("map"), Setting("map", strength=0.02))]
PAIRS += [("kappa", Setting("elbo"), Setting("elbo", kappa=3.0))]


@pytest.mark.parametrize(("mine", "other"), [pair[1:] for pair in PAIRS], ids=[pair[0] for pair in PAIRS])
def test_another_runs_checkpoint_is_ignored(mine: Setting, other: Setting) -> None:
    """A checkpoint of a run that differs in one setting is ignored with a warning."""
    checkpoint = Disk(content=left_behind(other, 2)).checkpoint()
    with pytest.warns(RuntimeWarning, match="belongs to another run .*: training starts from the beginning"):
        ending = mine.fit(checkpoint)
    assert ending == mine.fit()
    assert (checkpoint.resumed_at_step, checkpoint.resumed_seconds) == (None, 0)


def on_disk(path: Path) -> Checkpoint:
    def write(data: bytes) -> None:
        path.with_suffix(".new").write_bytes(data)
        path.with_suffix(".new").replace(path)

    return Checkpoint(0, write, lambda: path.read_bytes() if path.exists() else None)


def test_a_killed_process(tmp_path: Path) -> None:
    """A process killed by SIGKILL leaves a checkpoint from which another one continues, to the bit."""
    file = tmp_path / "checkpoint"
    child = subprocess.run([sys.executable, __file__, str(file)], timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL
    checkpoint = on_disk(file)
    assert Setting().fit(checkpoint) == Setting().fit()
    assert checkpoint.resumed_at_step == 15


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        Setting().fit(on_disk(Path(sys.argv[1])), model=dying_at(Setting(), 18))
    except Death:
        os.kill(os.getpid(), signal.SIGKILL)
