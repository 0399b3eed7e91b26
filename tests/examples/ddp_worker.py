"""One process of torchrun: ``examples/ddp.py`` as it is, then five steps by several recipes on a share of the data.

It saves what it has computed as ``RANK.pt`` in the folder that is its argument.
"""

import os
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import deelbo
from tests.examples import test_examples as problem
from tests.helpers.hand_written_loop import Recorder

Result = tuple[Recorder, nn.Module, deelbo.LearnedL2]


def train_ddp(rank: int, folder: Path, micro_batches: int, **settings: Any) -> Result:
    """Train by ``examples/ddp.py`` on this rank's half of each batch."""
    net = problem.make_net()
    recorder, model = Recorder(net), DistributedDataParallel(net, **settings)
    reg = deelbo.LearnedL2(model, problem.N, head="2", sigma=problem.SIGMA)
    opt = problem.sgd([*model.parameters(), *reg.parameters()])
    reg.check(opt)
    halves = [(x.chunk(2)[rank], y.chunk(2)[rank]) for x, y in problem.batches()]
    problem.load("ddp").train(model, halves, reg, opt, micro_batches)
    return recorder, net, reg


def train_accelerate(rank: int, folder: Path) -> Result:
    """Steps of two batches."""
    recipe, net = problem.load("accelerate_loop"), problem.make_net()
    recorder, accelerator = Recorder(net), recipe.Accelerator(gradient_accumulation_steps=2, cpu=True)
    model, loader = accelerator.prepare(net, problem.TestLightning.loader(3))
    reg = deelbo.LearnedL2(net, problem.N, head="2", sigma=problem.SIGMA)
    opt = accelerator.prepare(problem.sgd([*model.parameters(), *reg.parameters()]))
    recipe.train(accelerator, model, loader, reg, opt)
    return recorder, net, reg


def train_lightning(rank: int, folder: Path) -> Result:
    """Steps of two batches, in Lightning's own DDP."""
    recipe, net = problem.load("lightning_callback"), problem.make_net()
    recorder, module = Recorder(net), problem.TestLightning.module(recipe, net)
    settings = {"max_epochs": 1, "accumulate_grad_batches": 2, "strategy": "ddp", "devices": 2}
    trainer = problem.TestLightning.trainer(recipe, folder, enable_checkpointing=False, **settings)
    trainer.fit(module, problem.TestLightning.loader(3))
    return recorder, net, module.reg


def train_transformers(rank: int, folder: Path) -> Result:
    """Five batches an epoch: steps of two, two and one."""
    tests = problem.TestTransformers
    recipe = problem.load("transformers_trainer")
    model = tests.bert(recipe)
    recorder = Recorder(model)
    trainer = tests.train(recipe, model, folder, 2, max_steps=problem.STEPS, save_strategy="no")
    return recorder, model, trainer.reg


KINDS: dict[str, Callable[[int, Path], Result]] = {
    "ddp": partial(train_ddp, micro_batches=1),
    "ddp no_sync": partial(train_ddp, micro_batches=2),
    "ddp views": partial(train_ddp, micro_batches=2, gradient_as_bucket_view=True),
    "accelerate": train_accelerate,
    "lightning": train_lightning,
    "transformers": train_transformers,
}


def main(folder: Path) -> None:
    """Run the example, whose process group is kept, then the steps to compare."""
    dist.destroy_process_group = lambda: None
    runpy.run_path(str(problem.EXAMPLES / "ddp.py"), run_name="__main__")
    rank = dist.get_rank()
    results = {}
    for kind, train in KINDS.items():
        torch.manual_seed(rank)  # each rank has its own seed, as usual
        recorder, net, reg = train(rank, folder)
        results[kind] = {"calls": recorder.calls, "net": net.state_dict(), "rho": reg.posterior.rho.detach()}
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
