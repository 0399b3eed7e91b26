"""The training runs that `speed` times, on synthetic images: each method and prior, and the baseline."""

from dataclasses import dataclass, field

import torch

from bench.speed.baseline import BaselineRun
from deelbo._vectors import flatten
from deelbo.data import Split
from deelbo.data.images import Geometry, Images, ImageTransform, resize_side
from deelbo.groups import make_groups, split_at_head
from deelbo.objectives.elbo import DataEmphasizedELBO
from deelbo.objectives.map import MAP
from deelbo.pretrained.backbones import build_backbone
from deelbo.priors import GaussianPrior, LowRank
from deelbo.training.numerics import Numerics
from deelbo.training.run import TrainingRun
from deelbo.training.schedule import Schedule

METHODS = ("map", "de-elbo")
RANK = 5
CLASSES = 10


@dataclass(frozen=True)
class Setting:
    """Settings of a measurement, as `deelbo-bench speed --help` describes them."""

    backbone: str = "digits-resnet"
    batch: int = 50
    size: int = 16
    channels: int | None = None
    stored: int | None = None
    priors: tuple[str, ...] = ("l2-zero", "l2-sp", "ptyl")
    rounds: int = 20
    steps: int = 20
    naive_steps: int = 0
    workers: int = 0
    threads: int = 1
    profile: bool = False
    numerics: Numerics = field(default_factory=Numerics)


def make_split(setting: Setting, device: torch.device) -> Split:
    """Return one batch of random images, shifted by one pixel; those of another side are cropped and flipped."""
    random = torch.Generator().manual_seed(0)
    side = setting.stored or setting.size
    channels = setting.channels or (1 if setting.backbone == "digits-resnet" else 3)
    shape = (setting.batch, channels, side, side)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    images = Images(pixels, torch.randint(0, CLASSES, (setting.batch,), generator=random), CLASSES).to(device)
    geometry = Geometry(setting.size, setting.size, pad=1)
    if setting.stored:
        geometry = Geometry(resize_side(setting.size), setting.size, flip=True)
    return Split(images, None, images, ImageTransform(geometry).fit(images))


def fast_run(setting: Setting, name: str, device: torch.device) -> TrainingRun:
    """Return a run as `deelbo.fit` trains; ``name`` is a method and a prior, such as "map l2-sp"."""
    method, prior = name.split(" ")
    model, head = build_backbone(setting.backbone, CLASSES, image_size=setting.size)
    model.to(device)
    chosen: str | GaussianPrior = prior
    if prior == "ptyl":
        mean = flatten(split_at_head(model, head)[0])
        random = torch.Generator(device).manual_seed(0)
        factor = torch.randn(len(mean), RANK, generator=random, device=device).mul_(0.01)
        chosen = LowRank(mean, torch.full_like(mean, 1e-4), factor)
    groups = make_groups(model, head, chosen)
    strengths = {"backbone": 1e-3, "head": 1e-3}
    n = setting.batch
    objective = MAP(groups, n, strengths) if method == "map" else DataEmphasizedELBO(groups, n)
    schedule = Schedule(0.001, steps=10**6, batch_size=setting.batch)
    return TrainingRun(model.train(), make_split(setting, device), objective, schedule, 0, setting.numerics)


def baseline_run(setting: Setting, method: str, device: torch.device) -> BaselineRun:
    """Return the baseline on the same network and images, with L2-SP's prior."""
    model, head = build_backbone(setting.backbone, CLASSES, image_size=setting.size)
    split = make_split(setting, torch.device("cpu"))
    images = split.train.take(torch.arange(setting.batch).repeat(20))  # epochs of 20 steps keep the workers busy
    split = Split(images, None, images, split.transform)
    return BaselineRun(model.to(device), head, split, method, setting.batch, setting.workers)
