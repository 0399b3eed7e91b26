"""Tests of groups by layer: membership, closed forms, gradients, and the summary of all layers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo import ELBO, MAP, LearnedL2, LowRank, make_groups
from deelbo._vectors import flatten
from deelbo.groups import split_at_head
from deelbo.pretrained.backbones import build_backbone

N = 12


class Tangled(nn.Module):
    """A network with weights of its own, a frozen and a tied layer, and layers that have names of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(4))
        self.backbone = nn.Linear(4, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.body = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 5))
        self.body[4].weight = self.body[3].weight
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(self.frozen(torch.tanh(self.backbone(x + self.token)))))
        return logits


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)
    ).double()


def moved(model: nn.Module) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * (i + 1) * torch.randn_like(parameter))


def test_a_group_for_each_module_with_weights() -> None:
    """Each module with trained weights of its own is a group, then the head; tied weights count once."""
    model = Tangled()
    groups = make_groups(model, "fc", "l2-sp", by="layer")
    names = ["model", "model.backbone", "body.0", "body.2", "body.3", "body.4", "head"]
    assert [group.name for group in groups] == names
    assert [group.prior.dim for group in groups] == [4, 25, 30, 10, 30, 5, 18]
    assert [group.part for group in groups] == ["backbone"] * 6 + [None]
    backbone, head = split_at_head(model, "fc")
    assert [id(w) for group in groups for w in group.weights] == [id(w) for w in [*backbone, *head]]
    assert all(torch.equal(group.prior.mean, flatten(group.weights)) for group in groups[:-1])
    zero = make_groups(model, "fc", "l2-zero", by="layer")
    assert all(float(group.prior.mean.abs().max()) == 0 for group in [*zero, groups[-1]])


def test_a_group_for_each_layer_of_a_network() -> None:
    """digits-resnet has a group for each of its 7 convolutions and 7 BatchNorms, and the head."""
    model, head = build_backbone("digits-resnet", 10)
    groups = make_groups(model, head, "l2-sp", by="layer")
    assert len(groups) == 15
    assert sum(group.prior.dim for group in groups) == 18_626


@pytest.mark.parametrize(
    ("prior", "by", "words"),
    [
        (LowRank(torch.zeros(6), torch.ones(6), torch.ones(6, 2)), "layer", "'l2-zero' or 'l2-sp', got LowRank: use"),
        ("ptyl", "layer", "need the prior 'l2-zero' or 'l2-sp', got 'ptyl'"),
        ("l2-sp", "layers", r"groups must be one of 'backbone\+head', 'layer', got 'layers'"),
    ],
)
def test_priors_that_couple_layers_are_refused(prior: Any, by: str, words: str) -> None:
    """A covariance over the whole backbone, an unknown prior and an unknown grouping are refused."""
    with pytest.raises(ValueError, match=words):
        make_groups(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), "1", prior, by)


def test_one_layer_is_the_backbone() -> None:
    """With a backbone of one layer, gradients and learned strengths have the bits of the two-group form."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    found = []
    for groups in ("backbone+head", "layer"):
        own = copy.deepcopy(model)
        regularizer = LearnedL2(own, N, "l2-sp", "2", generator=torch.Generator().manual_seed(3), groups=groups)
        torch.manual_seed(1)
        moved(own)
        with regularizer.sample():
            F.cross_entropy(own(x), y).backward()
        gradients = [p.grad for p in [*own.parameters(), *regularizer.parameters()]]
        learned = (regularizer.lambda_, regularizer.tau, *sorted(regularizer.weight_decay().values()))
        found.append((learned, [g.tolist() for g in gradients if g is not None]))
    assert found[0] == found[1]
    assert len(found[0][1]) == 5


@pytest.mark.parametrize("kappa", [1.0, 7.0])
def test_gradients_are_autograds(kappa: float) -> None:
    """Gradients are autograd's of mean NLL + sum of KL / (kappa N), with KL from torch.distributions."""
    model = network()
    x, y = torch.randn(8, 4).double(), torch.randint(0, 3, (8,))
    objective = ELBO(make_groups(model, "5", "l2-sp", "layer"), N, kappa, 0.05, torch.Generator().manual_seed(3))
    assert len(objective.groups) == 4
    moved(model)
    with objective.step():
        F.cross_entropy(model(x), y).backward()
    rho = objective.posterior.rho.detach().clone().requires_grad_()
    sigma = F.softplus(rho)
    noise = torch.randn(objective.dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    own = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    pieces = noise.split([p.numel() for p in own.values()])
    drawn = {n: p + sigma * e.view_as(p) for (n, p), e in zip(own.items(), pieces, strict=True)}
    loss = F.cross_entropy(torch.func.functional_call(model, drawn, (x,)), y)
    for group, layer in zip(objective.groups, ("0", "2", "4", "5"), strict=True):
        theta = torch.cat([own[f"{layer}.weight"].reshape(-1), own[f"{layer}.bias"]])
        scale = sigma**2 + (theta - group.prior.mean).square().mean()
        q = torch.distributions.Normal(theta, sigma)
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(group.prior.mean, scale.sqrt())).sum()
        loss = loss + kl / (kappa * N)
    expected = torch.autograd.grad(loss, [*own.values(), rho])
    gradients = [p.grad for p in [*model.parameters(), *objective.parameters()]]
    for gradient, oracle in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, oracle, rtol=1e-10, atol=1e-12)


def test_summary_of_all_layers() -> None:
    """lambda_ and the keys ..._backbone are those of a single variance for the backbone at the same weights."""
    model = network()
    layers = LearnedL2(model, N, "l2-sp", "5", sigma=0.03, groups="layer")
    one = LearnedL2(model, N, "l2-sp", "5", sigma=0.03)
    moved(model)
    state, expected = layers.describe(), one.describe()
    regularizers = state.pop("regularizer"), expected.pop("regularizer")
    assert {name: state[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert layers.lambda_ == pytest.approx(one.lambda_, rel=1e-12)
    assert regularizers[0] < regularizers[1]  # more variances fit better
    assert {f"scale_{name}" for name in layers.scales()} < set(state)
    assert len({round(value, 9) for value in layers.scales().values()}) == 4


def test_maps_layers_share_a_strength_or_have_their_own() -> None:
    """MAP's layers share the backbone's strength or have their own, which are summarized by their mean variance."""
    model = network()
    x, y = torch.randn(8, 4).double(), torch.randint(0, 3, (8,))
    groups = make_groups(model, "5", "l2-zero", "layer")
    gradients = []
    for objective in (
        MAP(groups, N, {"backbone": 0.1, "head": 0.2}),
        MAP(make_groups(model, "5", "l2-zero"), N, {"backbone": 0.1, "head": 0.2}),
    ):
        with objective.step():
            F.cross_entropy(model(x), y).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert objective.describe()["weight_decay_backbone"] == pytest.approx(0.1, rel=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    own = MAP(groups, N, {"0": 0.1, "2": 0.2, "4": 0.4, "head": 1.0}).describe()
    assert own["weight_decay_backbone"] == pytest.approx((25 + 36 + 42) / (25 / 0.1 + 36 / 0.2 + 42 / 0.4))
    assert own["dim_backbone"] == 25 + 36 + 42
    without = MAP(groups, N, {"0": 0.0, "2": 0.2, "4": 0.4, "head": 1.0}).describe()
    assert without["weight_decay_backbone"] == 0


def test_a_state_of_layers_is_loaded() -> None:
    """A state dict of layers is loaded by layers, and refused by the two-group form."""
    model, other = network(), network()
    learned, fresh = (
        LearnedL2(model, N, head="5", sigma=0.2, groups="layer"),
        LearnedL2(other, N, head="5", groups="layer"),
    )
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(learned.state_dict())
    assert fresh.scales() == learned.scales()
    with pytest.raises(ValueError, match="the state holds nothing for the prior mean of 'backbone'"):
        LearnedL2(model, N, head="5").load_state_dict(learned.state_dict())
