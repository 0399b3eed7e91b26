"""Training with BatchNorm's pretrained statistics (`Schedule.batchnorm`), against a loop of plain torch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo import MAP, DataEmphasizedELBO, Schedule, make_groups
from deelbo.data import Split
from deelbo.objectives.base import Objective
from deelbo.objectives.hypergradient import HypergradientMAP
from deelbo.objectives.laplace import LaplaceMAP
from deelbo.objectives.stn import ResponseMAP
from deelbo.training.fit import fit
from deelbo.training.run import TrainingRun

STEPS, SEED = 30, 3
MODES = ["train", "frozen"]
ZERO = {"backbone": 0.0, "head": 0.0}
START = {"backbone": 0.01, "head": 0.01}


def schedule(batchnorm: str) -> Schedule:
    return Schedule(0.05, steps=STEPS, batch_size=32, posterior_passes=2, batchnorm=batchnorm)


@pytest.fixture
def network(toy_model: nn.Module) -> nn.Module:
    """The toy network with pretrained statistics, which are those of no batch."""
    toy_model[2].running_mean.uniform_(-0.5, 0.5)
    toy_model[2].running_var.uniform_(0.5, 1.5)
    return toy_model


def statistics(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def train_by_hand(model: nn.Module, split: Split, frozen: bool) -> None:
    """Train as `fit` does by MAP without weight decay: whole epochs, clipped SGD with momentum, a cosine."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    torch.manual_seed(SEED)  # of dropout
    for _ in range(STEPS // 5):
        order = torch.randperm(160, generator=generator)
        drawn = split.transform.draw(160, generator)
        for batch, columns in zip(order.split(32), drawn.split(32, dim=1), strict=True):
            model.train()
            if frozen:
                model[2].eval()
            x = split.transform.training(split.train.inputs[batch], columns)
            optimizer.zero_grad()
            F.cross_entropy(model(x), split.train.labels[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            cosine.step()


@pytest.mark.parametrize("batchnorm", MODES)
def test_a_run_is_the_loop_of_plain_torch(batchnorm: str, toy_split: Split, network: nn.Module) -> None:
    """Weights, BatchNorm's among them, and statistics are those of a hand-written loop, to the bit; dropout is on."""
    before, weights, by_hand = statistics(network), copy.deepcopy(network[2]), copy.deepcopy(network)
    fit(network, toy_split, MAP(make_groups(network, "4", "l2-sp"), 160, ZERO), schedule(batchnorm), seed=SEED)
    train_by_hand(by_hand, toy_split, batchnorm == "frozen")
    for name, value in by_hand.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    unchanged = [torch.equal(a, b) for a, b in zip(before, statistics(network), strict=True)]
    assert unchanged == [batchnorm == "frozen"] * 3
    assert not torch.equal(weights.weight, network[2].weight)
    assert not torch.equal(weights.bias, network[2].bias)


OBJECTIVES: dict[str, Callable[[nn.Module], Objective]] = {
    "de-elbo": lambda model: DataEmphasizedELBO(make_groups(model, "4", "l2-sp"), 160),
    "hypergradient": lambda model: HypergradientMAP(make_groups(model, "4", "l2-sp"), 160, START, every=2),
    "stn": lambda model: ResponseMAP(make_groups(model, "4", "l2-sp"), 160, START),
    "laplace": lambda model: LaplaceMAP(make_groups(model, "4", "l2-sp"), 160, STEPS, burn_in=0.2),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_step_of_every_objective(name: str, toy_split: Split, network: nn.Module) -> None:
    """Whatever an objective does between steps, BatchNorm stays in evaluation mode, and all else trains."""
    before, seen = statistics(network), []
    network.register_forward_hook(lambda model, *_: seen.append((model.training, *(m.training for m in model))))
    fit(network, toy_split, OBJECTIVES[name](network), schedule("frozen"))
    assert set(seen) == {(True, True, True, False, True, True), (False,) * 6}
    assert len([modes for modes in seen if modes[0]]) == STEPS + 2  # of warm-up
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(network), strict=True))


class WithDropout(nn.BatchNorm1d):
    """BatchNorm that holds another module, as timm's does."""

    def __init__(self) -> None:
        super().__init__(12)
        self.drop = nn.Dropout(0.5)


NORMS = [
    nn.BatchNorm2d(12),
    nn.SyncBatchNorm(12),
    nn.InstanceNorm1d(12, track_running_stats=True),
    nn.LazyBatchNorm1d(),
]
OTHERS = [nn.Dropout(0.5), nn.LayerNorm(12), nn.GroupNorm(3, 12), nn.InstanceNorm1d(12), nn.Linear(12, 4)]


def test_layers_with_running_statistics(toy_split: Split) -> None:
    """All kinds of layers with running statistics are in evaluation mode, none of the others, nor a module in one."""
    inside = WithDropout()
    model = nn.Sequential(*NORMS, *OTHERS, inside)
    objective = MAP(make_groups(nn.Linear(12, 4), "", "l2-zero"), 160, {"head": 0.0})
    TrainingRun(model.eval(), toy_split, objective, schedule("frozen"), 0).set_training_mode()
    assert [module.training for module in (*NORMS, inside, *OTHERS, inside.drop)] == [False] * 5 + [True] * 6


def test_a_network_without_batchnorm(toy_split: Split) -> None:
    """A network without such layers trains to the same bits in both modes."""
    models = []
    for batchnorm in MODES:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.LayerNorm(12), nn.Dropout(0.1), nn.Linear(12, 4))
        fit(model, toy_split, DataEmphasizedELBO(make_groups(model, "4", "l2-sp"), 160), schedule(batchnorm))
        models.append(model)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_the_network_is_in_evaluation_mode_where_the_head_alone_is_trained(toy_split: Split) -> None:
    """Neither dropout nor BatchNorm is in training mode, whatever ``batchnorm`` says."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 4))
    model[:3].requires_grad_(False)
    modes = set()
    model.register_forward_hook(lambda *_: modes.update(module.training for module in model.modules()))
    fit(model, toy_split, MAP(make_groups(model, "4", "l2-sp"), 160, {"head": 0.0}), Schedule(0.05, 10, train="head"))
    assert modes == {False}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batchnorm": "eval"}, "batchnorm must be one of train, frozen, got 'eval'"),
        ({"train": "body"}, "train must be one of all, head, got 'body'"),
        ({"train": "head", "final_batchnorm": "mean"}, "final_batchnorm 'mean' and closing_batchnorm 'running': use"),
        ({"train": "head", "closing_batchnorm": "draw"}, "with train 'head' statistics stay as pretrained"),
    ],
)
def test_another_word_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Schedule(0.1, **given)
