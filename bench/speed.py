"""What a training step of each method and prior costs, side by side. Needs deelbo alone."""

from __future__ import annotations

import platform
import statistics
import time
from typing import Any

import torch

from deelbo.backbones import build_backbone, split_at_head
from deelbo.learned_l2 import make_groups
from deelbo.objectives import MAP, DataEmphasizedELBO, Objective
from deelbo.priors import GaussianPrior, LowRank
from deelbo.run import Run, Schedule
from deelbo.tasks import Split
from deelbo.tasks.images import Geometry, Images, Normalisation
from deelbo.vectors import flatten

__all__ = ["measure"]

PRIORS = ("l2-zero", "l2-sp", "ptyl")
RANK = 5


def measure(
    backbone: str, batch: int, size: int, channels: int, rounds: int, steps: int, device: torch.device, threads: int
) -> dict[str, Any]:
    """Milliseconds a step of MAP and DE ELBo with each prior, and their ratio.

    Every round times ``steps`` steps of each variant, one variant after the other, so that what else the machine does
    hits all alike; a ratio is the median over rounds of the two times of one round. The steps are those that
    `deelbo.fit` trains with, on synthetic images.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = {
            f"{method} {prior}": _run(backbone, method, prior, batch, size, channels, device)
            for prior in PRIORS
            for method in ("map", "de-elbo")
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            _timed(run, steps, device)
        for turn in range(rounds):
            order = list(runs) if turn % 2 == 0 else list(reversed(runs))
            for name in order:
                times[name].append(_timed(runs[name], steps, device))
    finally:
        torch.set_num_threads(before)
    ratios = {
        prior: [de / map_ for de, map_ in zip(times[f"de-elbo {prior}"], times[f"map {prior}"], strict=True)]
        for prior in PRIORS
    }
    first = next(iter(runs.values()))
    return {
        "environment": _environment(device, threads),
        "backbone": backbone,
        "weights": first.objective.dim,
        "batch": batch,
        "image": [channels, size, size],
        "rounds": rounds,
        "steps_a_round": steps,
        "milliseconds_a_step": {name: _spread([1000 * value for value in values]) for name, values in times.items()},
        "images_a_second": {name: batch / statistics.median(values) for name, values in times.items()},
        "de_elbo_over_map": {prior: _spread(values) for prior, values in ratios.items()},
    }


def _run(backbone: str, method: str, prior: str, batch: int, size: int, channels: int, device: torch.device) -> Run:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8, generator=random)
    images = Images(pixels, torch.randint(0, 10, (batch,), generator=random), 10).to(device)
    model, head = build_backbone(backbone, 10)
    model.to(device)
    chosen: str | GaussianPrior = prior
    if prior == "ptyl":
        mean = flatten(split_at_head(model, head)[0])
        factor = 0.01 * torch.randn(len(mean), RANK, generator=random).to(device)
        chosen = LowRank(mean, torch.full_like(mean, 1e-4), factor)
    groups = make_groups(model, head, chosen)
    objective: Objective
    if method == "map":
        objective = MAP(groups, batch, {"backbone": 1e-3, "head": 1e-3})
    else:
        objective = DataEmphasizedELBO(groups, batch)
    split = Split(images, None, images, Normalisation.of(images), Geometry(size, size, pad=1))
    return Run(model.train(), split, objective, Schedule(0.001, steps=10**6, batch_size=batch), seed=0)


def _timed(run: Run, steps: int, device: torch.device) -> float:
    """Mean seconds of a step."""
    batches = [run.batches()[0] for _ in range(steps)]
    _synchronise(device)
    since = time.perf_counter()
    for batch in batches:
        run.step(batch)
    _synchronise(device)
    return (time.perf_counter() - since) / steps


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _environment(device: torch.device, threads: int) -> dict[str, Any]:
    from bench.execute import hardware, versions

    return hardware(device) | {"threads": threads, "platform": platform.platform(), "versions": versions()}
