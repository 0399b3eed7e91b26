"""Time a step of `deelbo.LearnedL2` beside SGD, AdamW and IVON, each in a plain training loop.

Every loop is written as its package's documentation shows it, with the package's and torch's default settings, on one
batch that is on the device. The step is forward pass, backward pass and update, and nothing else.
"""

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.speed.result_file import Result, environment
from bench.speed.timing import Step, measure_rounds, milliseconds, ratios, synchronize
from bench.speed.workloads import CLASSES, Setting, make_split
from deelbo.learned_l2 import LearnedL2
from deelbo.pretrained.backbones import build_backbone

PRIOR = "l2-sp"
DEFAULTS: dict[str, Any] = {
    "backbone": "resnet18",
    "batch": 32,
    "size": 64,
    "threads": 2,
    "steps": 5,
    "priors": (PRIOR,),
}
"""Settings where the command gives none."""
MEMORY_STEPS = 3
LEARNING_RATE = 0.001


class Loop:
    """One network in training mode, its batch, and the numerics of its passes."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.model, self.head = build_backbone(setting.backbone, CLASSES, image_size=setting.size)
        self.model.to(device).train()
        split = make_split(setting, device)
        x = split.transform.evaluation(split.train.inputs)
        self.x, self.y = setting.numerics.to_memory_format(x), split.train.labels
        self.num_examples, self.device, self.numerics = setting.batch, device, setting.numerics
        self.forward = setting.numerics.compile_model(self.model)

    def loss(self) -> Tensor:
        """Return the batch's mean NLL."""
        with self.numerics.autocast(self.device):
            return F.cross_entropy(self.forward(self.x).float(), self.y)


def sgd_step(loop: Loop) -> Step:
    return _plain_step(loop, torch.optim.SGD(loop.model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True))


def adamw_step(loop: Loop) -> Step:
    return _plain_step(loop, torch.optim.AdamW(loop.model.parameters(), lr=LEARNING_RATE))


def _plain_step(loop: Loop, optimizer: torch.optim.Optimizer) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        loop.loss().backward()
        optimizer.step()

    return step


def ivon_step(loop: Loop) -> Step:
    from ivon import IVON  # of the extra `peers`

    optimizer = IVON(loop.model.parameters(), lr=LEARNING_RATE, ess=loop.num_examples)

    def step() -> None:
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            loop.loss().backward()
        optimizer.step()

    return step


def learned_l2_step(loop: Loop) -> Step:
    reg = LearnedL2(loop.model, loop.num_examples, prior=PRIOR, head=loop.head)
    parameters: list[nn.Parameter] = [*loop.model.parameters(), *reg.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, nesterov=True)

    def step() -> None:
        with reg.sample():
            loop.loss().backward()
        optimizer.step()

    return step


PEERS: dict[str, Callable[[Loop], Step]] = {
    "sgd": sgd_step,
    "adamw": adamw_step,
    "ivon": ivon_step,
    "learned-l2": learned_l2_step,
}


def measure_peers(setting: Setting, device: torch.device) -> Result:
    """Measure milliseconds per step and peak memory of each peer, and both in relation to SGD.

    Rounds and ratios are as in `bench.speed.measure.measure`. A peer whose package is not installed is left out.
    """
    left_out = _left_out()
    names = [name for name in PEERS if name not in left_out]
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        memory = {name: gib for name in names if (gib := _peak_gib(setting, name, device)) is not None}
        with setting.numerics.backend_flags():
            loops = {name: Loop(setting, device) for name in names}
            steps = {name: PEERS[name](loop) for name, loop in loops.items()}
            times = measure_rounds(steps, setting.rounds, setting.steps, device)
    finally:
        torch.set_num_threads(before)
    facts = environment(device, setting.threads)
    if "ivon" in names:
        facts["versions"]["ivon-opt"] = version("ivon-opt")
    return {
        "environment": facts,
        "setting": asdict(setting),
        "backbone": setting.backbone,
        "weights": sum(p.numel() for p in loops["sgd"].model.parameters()),
        "milliseconds_a_step": milliseconds(times),
        "over_sgd": {name: ratios(times, name, "sgd") for name in names},
        "peak_memory_gib": memory,
        "over_sgd_memory": {name: gib / memory["sgd"] for name, gib in memory.items()},
        "left_out": left_out,
    }


def _left_out() -> dict[str, str]:
    """Return the peers that cannot be measured, and why."""
    try:
        import_module("ivon")
    except ImportError:
        return {"ivon": "not installed: pip install 'deelbo[peers]'"}
    return {}


def _peak_gib(setting: Setting, name: str, device: torch.device) -> float | None:
    """Return the peak memory of a peer's training alone; on a CPU that of a process of its own. None: unknown."""
    if device.type == "cuda":
        return _peak_device_bytes(setting, name, device) / 2**30
    if not Path("/proc/self/status").exists():
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_resident_bytes, setting, name).result() / 2**30


def _peak_device_bytes(setting: Setting, name: str, device: torch.device) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    with setting.numerics.backend_flags():
        step = PEERS[name](Loop(setting, device))
        step()  # cuDNN tries its algorithms at first, with memory of their own
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(MEMORY_STEPS):
            step()
    return torch.cuda.max_memory_allocated(device) - before


def _peak_resident_bytes(setting: Setting, name: str) -> int:
    """Return by how much this process, a new one, grows beyond what it holds after a step of a tiny network."""
    device = torch.device("cpu")
    torch.set_num_threads(setting.threads)
    PEERS[name](Loop(Setting(batch=2), device))()
    gc.collect()
    before = _status_bytes("VmRSS")
    with setting.numerics.backend_flags():
        step = PEERS[name](Loop(setting, device))
        for _ in range(MEMORY_STEPS):
            step()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    """Return a number of this process that Linux gives in KiB: memory now (VmRSS) or its maximum (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
