"""Tests of `LearnedL2` in real process groups: one process on the joined batch is the reference."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from deelbo import LearnedL2
from tests.helpers.processes import run_processes
from tests.helpers.whole_objective import PRIORS, TiedAndUnused, expected_gradients, gradients, make_problem, noise_of

SIZE, STEPS = 12, 3
X = torch.randn(STEPS, SIZE, 4, generator=torch.Generator().manual_seed(5)).double()
Y = torch.arange(SIZE) % 3


def batch(step: int, parts: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Return this process's part of a batch, in micro-batches."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    x, y = X[step][rank::world], Y[rank::world]
    return list(zip(x.chunk(parts), y.chunk(parts), strict=True))


def average_by_hand(parameters: list[nn.Parameter]) -> None:
    for p in parameters:
        if p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


def train(prior: str, groups: str, how: str) -> list[Tensor]:
    """Train three steps in the loop's form ``how``; return the first step's gradients, then weights, rho and lambda."""
    model, reg, _ = make_problem(prior, groups, generator=None)
    network: Any = model
    if how.startswith("ddp"):
        network = DistributedDataParallel(
            model, find_unused_parameters=True, gradient_as_bucket_view=how == "ddp views"
        )
    torch.manual_seed(7 + (dist.get_rank() if dist.is_initialized() else 0))  # processes are often seeded differently
    opt = torch.optim.SGD([*model.parameters(), *reg.parameters()], lr=0.05, momentum=0.9)
    first: list[Tensor] = []
    for step in range(STEPS):
        parts = batch(step, 2 if how == "ddp accumulated" else 1)
        for i, (x, y) in enumerate(parts):
            quiet = network.no_sync() if how == "ddp accumulated" and i == 0 else nullcontext()
            with quiet, reg.sample(accumulate=len(parts) > 1):
                (F.cross_entropy(network(x), y) * len(x) / sum(len(y) for _, y in parts)).backward()
        if how == "by hand":
            average_by_hand(reg.weights)
        first = first or gradients(reg)
        opt.step()
        if step == 0 and dist.is_initialized() and dist.get_rank() == 0:  # one process may evaluate alone
            with torch.no_grad(), reg.sample():
                model(X[0])
    return [*first, *(p.detach().clone() for p in [*reg.weights, *reg.parameters()]), torch.tensor(reg.lambda_)]


CASES = [(prior, "backbone+head", "ddp") for prior in PRIORS] + [
    ("l2-sp", "layer", "ddp"),
    ("l2-sp", "backbone+head", "ddp accumulated"),
    ("low-rank", "backbone+head", "ddp views"),
    ("l2-zero", "backbone+head", "by hand"),
]


def train_all() -> list[list[Tensor]]:
    return [train(*case) for case in CASES]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_equal_one_process(count: int, tmp_path: Path) -> None:
    """Gradients, weights, rho and lambda are those of one process on the joined batch, and alike in all processes."""
    every = run_processes(count, train_all, tmp_path)
    for number, (prior, groups, how) in enumerate(CASES):
        model, reg, covariance = make_problem(prior, groups)
        expected = expected_gradients(model, reg, covariance, lambda net: F.cross_entropy(net(X[0]), Y), noise_of(reg))
        alone = train(prior, groups, "alone")
        for ranks in every:
            for found, wanted in zip(ranks[number], expected, strict=False):
                torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14, msg=f"{prior} {groups} {how}")
            for found, wanted in zip(ranks[number], alone, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12, msg=f"{prior} {groups} {how}")
            assert all(torch.equal(a, b) for a, b in zip(ranks[number], every[0][number], strict=True))


def start_differently() -> list[Tensor]:
    """Make `LearnedL2` before DistributedDataParallel makes the weights of differently seeded processes alike."""
    torch.manual_seed(dist.get_rank())
    model = TiedAndUnused().double()
    reg = LearnedL2(model, 50, head="head", sigma=0.05 + 0.01 * dist.get_rank())
    network = DistributedDataParallel(model, find_unused_parameters=True)
    with reg.sample():
        F.cross_entropy(network(X[0]), Y).backward()
    return [reg.groups[0].prior.mean, *gradients(reg), torch.tensor(reg.sigma)]


def message_of(**options: Any) -> str:
    """Return the error of a first block with options that differ between processes."""
    torch.manual_seed(dist.get_rank() if options.pop("other_weights", False) else 0)
    number = dist.get_rank() * options.pop("other_n", 0)
    reg = LearnedL2(TiedAndUnused().double(), 50 + number, head="head", **options)
    try:
        with reg.sample():
            pass
    except RuntimeError as error:
        return str(error)
    return ""


def message_when_sharded() -> str:
    """Return the errors for a model whose weights are sharded before, and after, LearnedL2 is made."""
    from torch.distributed.fsdp import fully_shard

    model = TiedAndUnused()
    model.second.weight = nn.Parameter(model.second.weight.detach().clone())
    reg = LearnedL2(model, 50, head="head")
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (dist.get_world_size(),)))
    messages = []
    try:
        LearnedL2(model, 50, head="head")
    except ValueError as error:
        messages.append(str(error))
    try:
        with reg.sample():
            pass
    except RuntimeError as error:
        messages.append(str(error))
    return "; ".join(messages)


def various() -> list[Any]:
    return [
        start_differently(),
        message_of(other_weights=True),
        message_of(other_n=1, kappa=3.0),
        message_when_sharded(),
    ]


def test_processes_that_start_differently(tmp_path: Path) -> None:
    """Prior means and rho become process 0's; other weights or N and sharded weights are refused in every process."""
    first, second = run_processes(2, various, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    for messages in (first, second):
        assert "the 2 processes train different models (sum of weights from" in messages[1]
        assert "different models (N from 50 to 51)" in messages[2]
        assert "split over processes (DTensor)" in messages[3]
        assert "no longer trains" in messages[3]
