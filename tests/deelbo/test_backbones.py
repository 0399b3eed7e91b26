"""Which weights are backbone and which are head, and the embedded network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from deelbo.backbones import DigitsResNet, build_backbone, replace_head, split_at_head


def three_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))


def same(found: list[nn.Parameter], expected: list[nn.Parameter]) -> bool:
    return [id(p) for p in found] == [id(p) for p in expected]


def test_the_head_is_split_off() -> None:
    """The head's weights are the named submodule's, the backbone's all others, in the order of ``parameters()``."""
    model = three_layers()
    backbone, head = split_at_head(model, "1")
    assert same(backbone, [*model[0].parameters(), *model[2].parameters()])
    assert same(head, [*model[1].parameters()])


def test_without_a_head_all_is_backbone() -> None:
    """Where the head is None every weight is backbone."""
    model = three_layers()
    backbone, head = split_at_head(model, None)
    assert same(backbone, [*model.parameters()])
    assert head == []


def test_frozen_weights_are_in_neither() -> None:
    """Weights with requires_grad=False are neither backbone nor head."""
    model = three_layers()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    backbone, head = split_at_head(model, "2")
    assert same(backbone, [*model[1].parameters()])
    assert same(head, [model[2].weight])


def test_tied_weights_count_once() -> None:
    """A weight that two backbone layers share comes once, one that the head shares is head."""
    model = three_layers()
    model[1].weight = model[0].weight
    backbone, head = split_at_head(model, "2")
    assert same(backbone, [model[0].weight, model[0].bias, model[1].bias])
    backbone, head = split_at_head(model, "1")
    assert same(backbone, [model[0].bias, *model[2].parameters()])
    assert same(head, [model[0].weight, model[1].bias])


def test_a_dotted_name() -> None:
    """The head may lie deeper than the top level."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    backbone, head = split_at_head(model, "1.1")
    assert same(backbone, [*model[0].parameters()])
    assert same(head, [*model[1][1].parameters()])


def test_an_unknown_head_lists_the_children() -> None:
    """A head that is not there raises ValueError with the names of the submodules."""
    with pytest.raises(ValueError, match=r"DigitsResNet has no submodule 'classifier'.*conv1, bn1, relu, .*, fc"):
        split_at_head(DigitsResNet(), "classifier")
    with pytest.raises(ValueError, match=r"Linear has no submodule 'fc'.*no submodules"):
        split_at_head(nn.Linear(2, 2), "fc")


@pytest.mark.parametrize("bias", [True, False])
def test_replace_head(bias: bool) -> None:
    """The new head has the old one's inputs, type and bias, the new number of classes, and fresh weights."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(64, 3, bias=bias))).double()
    nn.init.constant_(model[1][0].weight, 9)
    body = model[0]
    replace_head(model, "1.0", 7)
    new = model[1][0]
    assert (new.in_features, new.out_features, new.bias is not None) == (64, 7, bias)
    assert new.weight.dtype == torch.float64
    assert 0 < float(new.weight.detach().abs().max()) <= 1 / math.sqrt(64)
    assert model[0] is body


def test_a_head_that_is_not_linear_is_refused() -> None:
    """Replacing anything but a Linear layer is refused, and its type named."""
    with pytest.raises(ValueError, match="'bn1' must be a Linear layer, got BatchNorm2d"):
        replace_head(DigitsResNet(), "bn1", 3)


def test_the_number_of_weights() -> None:
    """The embedded network has the 18,626 weights at 10 classes that its docstring says."""
    assert sum(p.numel() for p in DigitsResNet().parameters()) == 18_626
    assert "18,626 weights" in (DigitsResNet.__doc__ or "")


@pytest.mark.parametrize("size", [8, 16, 21])
def test_the_network_takes_any_size(size: int) -> None:
    """Grey images of any size give one logit a class."""
    assert DigitsResNet(7)(torch.randn(2, 1, size, size)).shape == (2, 7)


def test_building_is_repeatable() -> None:
    """The same seed builds the same weights, another seed others, and torch's global random numbers stay."""
    before = torch.random.get_rng_state()
    first, head = build_backbone("digits-resnet", 4, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    again, _ = build_backbone("digits-resnet", 4, seed=3)
    other, _ = build_backbone("digits-resnet", 4, seed=4)
    assert head == "fc"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.get_parameter("conv1.weight"), other.get_parameter("conv1.weight"))


def test_pretrained_weights_are_loaded_but_for_the_head() -> None:
    """All weights and buffers are the given ones, except the head, which is new and has the asked classes."""
    source = DigitsResNet()
    with torch.no_grad():
        source.bn1.running_mean.fill_(2)
    model, _ = build_backbone("digits-resnet", 10, source.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]) != name.startswith("fc.")
    smaller, _ = build_backbone("digits-resnet", 3, source.state_dict())
    assert smaller.get_parameter("fc.weight").shape == (3, 32)


def test_the_head_may_be_named() -> None:
    """A named head is the one that is replaced; one that is not there is refused."""
    assert build_backbone("digits-resnet", 3, head="fc")[1] == "fc"
    with pytest.raises(ValueError, match="'layer1' must be a Linear layer"):
        build_backbone("digits-resnet", 3, head="layer1")
    with pytest.raises(ValueError, match="no submodule 'classifier'"):
        build_backbone("digits-resnet", 3, head="classifier")


def test_an_unknown_backbone_is_refused() -> None:
    """A backbone that is not there raises ValueError that lists those that are."""
    with pytest.raises(ValueError, match="one of digits-resnet, got 'resnet-50'"):
        build_backbone("resnet-50", 10)
