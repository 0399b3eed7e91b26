"""Tests that need a GPU: no step waits for it, memory, and the fast path's numbers."""

import gc
from collections.abc import Iterator

import pytest
import torch

from deelbo import MAP, DataEmphasizedELBO, LowRank, Schedule, make_groups
from deelbo._vectors import flatten
from deelbo.data import Geometry, Images, ImageTransform, Normalization, Split
from deelbo.groups import split_at_head
from deelbo.pretrained.backbones import build_backbone
from deelbo.training.fit import fit
from deelbo.training.numerics import Numerics
from deelbo.training.run import TrainingRun

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FAST = Numerics("bf16", channels_last=True)


@pytest.fixture
def device() -> Iterator[torch.device]:
    torch.cuda.empty_cache()
    yield torch.device("cuda", 0)
    torch.cuda.set_sync_debug_mode("default")


def photographs(count: int, side: int) -> Images:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    pixels = torch.randint(0, 100, (count, 3, side, side), dtype=torch.uint8, generator=random)
    return Images(pixels + (labels * 15).to(torch.uint8)[:, None, None, None], labels, 10)


def split_of(count: int) -> Split:
    images = photographs(count, 32)
    return Split(images, None, images, ImageTransform(Geometry(side=64, crop=56, flip=True)).fit(images))


@pytest.mark.parametrize("method", ["map", "de-elbo"])
@pytest.mark.parametrize("prior", ["l2-sp", "ptyl"])
@pytest.mark.parametrize("count", [32, 320])
def test_no_step_waits_for_the_device(device: torch.device, method: str, prior: str, count: int) -> None:
    """Steps, and the draws of an epoch's batches, are queued without a synchronization."""
    model, head = build_backbone("resnet50", 10)
    mean = flatten(split_at_head(model.to(device), head)[0])
    ptyl = LowRank(mean, torch.full_like(mean, 1e-4), 0.01 * torch.randn(len(mean), 5, device=device))
    groups = make_groups(model, head, ptyl if prior == "ptyl" else prior)
    strengths = {"backbone": 1e-3, "head": 1e-3}
    objective = MAP(groups, count, strengths) if method == "map" else DataEmphasizedELBO(groups, count)
    split = split_of(count)
    split = Split(
        split.train.to(device),
        None,
        split.test.to(device),
        Normalization(split.transform.normalization.mean.to(device), split.transform.normalization.std.to(device)),
        split.transform.geometry,
    )
    run = TrainingRun(model.train(), split, objective, Schedule(0.01, steps=1000, batch_size=32), 0, FAST)
    run.step(run.batches()[0])
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(3):
        for batch in run.batches():
            run.step(batch)
    torch.cuda.set_sync_debug_mode("default")
    assert run.steps_done == 1 + 3 * run.steps_per_epoch


def test_a_fit_learns_on_the_device(device: torch.device) -> None:
    """A whole run in bf16 completes, learns, leaves float32 weights, and restores torch's flags."""
    model, head = build_backbone("resnet50", 10)
    generator = torch.Generator(device).manual_seed(1)
    objective = DataEmphasizedELBO(make_groups(model.to(device), head, "l2-zero"), 320, generator=generator)
    before = torch.backends.cudnn.benchmark
    result = fit(model, split_of(320), objective, Schedule(0.05, steps=100, batch_size=32), numerics=FAST)
    assert result.status == "completed"
    assert result.series[-1]["train_nll"] < result.series[0]["train_nll"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.backends.cudnn.benchmark == before


def test_memory_beyond_map(device: torch.device) -> None:
    """At 224 px and batch 64 a DE ELBo step's peak memory is at most a quarter above that of a MAP step."""
    peaks = {}
    for method in ("map", "de-elbo"):
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        model, head = build_backbone("resnet50", 10)
        groups = make_groups(model.to(device), head, "l2-sp")
        strengths = {"backbone": 1e-3, "head": 1e-3}
        objective = MAP(groups, 64, strengths) if method == "map" else DataEmphasizedELBO(groups, 64)
        images = photographs(64, 32).to(device)
        split = Split(images, None, images, ImageTransform(Geometry(side=256, crop=224, flip=True)).fit(images))
        run = TrainingRun(model.train(), split, objective, Schedule(0.01, steps=1000, batch_size=64), 0, FAST)
        run.step(run.batches()[0])  # cuDNN tries its algorithms at first, with memory of their own
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(3):
            run.step(run.batches()[0])
        peaks[method] = torch.cuda.max_memory_allocated(device) - before
        del model, groups, objective, images, split, run
    assert peaks["de-elbo"] <= 1.25 * peaks["map"]
