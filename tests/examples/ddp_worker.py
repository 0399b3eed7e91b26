"""One process of torchrun: ``examples/ddp.py`` as it is, then five of its steps on a share of the tests' data.

It saves what it has computed as ``RANK.pt`` in the folder that is its argument.
"""

import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import deelbo
from tests.examples import test_examples as problem
from tests.helpers.hand_written_loop import Recorder

KINDS: list[tuple[int, dict[str, Any]]] = [(1, {}), (2, {}), (2, {"gradient_as_bucket_view": True})]


def train(rank: int, micro_batches: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train on this rank's half of each batch; each rank has its own seed, as usual."""
    net = problem.make_net()
    recorder, model = Recorder(net), DistributedDataParallel(net, **settings)
    reg = deelbo.LearnedL2(model, problem.N, head="2", sigma=problem.SIGMA)
    opt = problem.sgd([*model.parameters(), *reg.parameters()])
    reg.check(opt)
    torch.manual_seed(rank)
    halves = [(x.chunk(2)[rank], y.chunk(2)[rank]) for x, y in problem.batches()]
    problem.load("ddp").train(model, halves, reg, opt, micro_batches)
    return {"calls": recorder.calls, "net": net.state_dict(), "rho": reg.parameters()[0].detach()}


def main(folder: Path) -> None:
    """Run the example, whose process group is kept, then the steps to compare."""
    dist.destroy_process_group = lambda: None
    runpy.run_path(str(problem.EXAMPLES / "ddp.py"), run_name="__main__")
    rank = dist.get_rank()
    results = [train(rank, *kind) for kind in KINDS]
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
