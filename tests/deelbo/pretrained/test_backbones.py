"""Tests of the split into backbone and head, and of building networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo.groups import split_at_head
from deelbo.pretrained.backbones import build_backbone, replace_head, shapes_only
from deelbo.pretrained.digits_resnet import DigitsResNet
from deelbo.pretrained.registry import vit_image_size


def three_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))


def same(found: list[nn.Parameter], expected: list[nn.Parameter]) -> bool:
    return [id(p) for p in found] == [id(p) for p in expected]


def test_the_head_is_split_off() -> None:
    """The head's weights are the named submodule's; all others are the backbone's, in order."""
    model = three_layers()
    backbone, head = split_at_head(model, "1")
    assert same(backbone, [*model[0].parameters(), *model[2].parameters()])
    assert same(head, [*model[1].parameters()])


def test_without_a_head_all_is_backbone() -> None:
    """If the head is None, every weight is backbone."""
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
    """A weight shared by two backbone layers comes once; one shared with the head is head."""
    model = three_layers()
    model[1].weight = model[0].weight
    backbone, head = split_at_head(model, "2")
    assert same(backbone, [model[0].weight, model[0].bias, model[1].bias])
    backbone, head = split_at_head(model, "1")
    assert same(backbone, [model[0].bias, *model[2].parameters()])
    assert same(head, [model[0].weight, model[1].bias])


def test_a_dotted_name() -> None:
    """The head may be below the top level."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    backbone, head = split_at_head(model, "1.1")
    assert same(backbone, [*model[0].parameters()])
    assert same(head, [*model[1][1].parameters()])


def test_an_unknown_head_lists_the_children() -> None:
    """A missing head raises a ValueError with the names of the submodules."""
    with pytest.raises(ValueError, match=r"DigitsResNet has no submodule 'classifier'.*conv1, bn1, relu, .*, fc"):
        split_at_head(DigitsResNet(), "classifier")
    with pytest.raises(ValueError, match=r"Linear has no submodule 'fc'.*no submodules"):
        split_at_head(nn.Linear(2, 2), "fc")


@pytest.mark.parametrize("bias", [True, False])
def test_replace_head(bias: bool) -> None:
    """The new head has the old one's inputs, type and bias, the new number of classes, and new weights."""
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
    """Replacing anything but a Linear layer is refused with its type."""
    with pytest.raises(ValueError, match="'bn1' must be a Linear layer, got BatchNorm2d"):
        replace_head(DigitsResNet(), "bn1", 3)


def test_the_number_of_weights() -> None:
    """The embedded network has the 18,626 weights of its docstring."""
    assert sum(p.numel() for p in DigitsResNet().parameters()) == 18_626
    assert "18,626 weights" in (DigitsResNet.__doc__ or "")


@pytest.mark.parametrize("size", [8, 16, 21])
def test_the_network_takes_any_size(size: int) -> None:
    """Grey images of any size give one logit per class."""
    assert DigitsResNet(7)(torch.randn(2, 1, size, size)).shape == (2, 7)


def test_building_is_repeatable() -> None:
    """A seed determines the weights, and torch's global random numbers do not change."""
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
    """All weights and buffers are the given ones, except those of the new head."""
    source = DigitsResNet()
    with torch.no_grad():
        source.bn1.running_mean.fill_(2)
    model, _ = build_backbone("digits-resnet", 10, source.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]) != name.startswith("fc.")
    smaller, _ = build_backbone("digits-resnet", 3, source.state_dict())
    assert smaller.get_parameter("fc.weight").shape == (3, 32)


def test_the_head_may_be_named() -> None:
    """A named head is replaced; a missing one is refused."""
    assert build_backbone("digits-resnet", 3, head="fc")[1] == "fc"
    with pytest.raises(ValueError, match="'layer1' must be a Linear layer"):
        build_backbone("digits-resnet", 3, head="layer1")
    with pytest.raises(ValueError, match="no submodule 'classifier'"):
        build_backbone("digits-resnet", 3, head="classifier")


def test_an_unknown_backbone_is_refused() -> None:
    """An unknown backbone raises a ValueError that lists the known ones."""
    with pytest.raises(ValueError, match="one of convnext_tiny, digits-resnet, resnet50, vit_b_16, got 'resnet-50'"):
        build_backbone("resnet-50", 10)


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    """Return the state dict of a random ResNet-50 of 1,000 classes with used BatchNorm statistics."""
    model, _ = build_backbone("resnet50", 1000, seed=5)
    state = model.state_dict()
    state["bn1.running_mean"].fill_(2)
    state["bn1.num_batches_tracked"].fill_(7)
    return dict(state)


def flat(name: str, image_size: int | None = None) -> dict[str, Tensor]:
    """Return a state dict whose tensors are all views of one number, 1/2."""
    half = torch.full((), 0.5)
    state = shapes_only(name, image_size)[0].state_dict()
    return {key: half.to(tensor.dtype).expand(tensor.shape) for key, tensor in state.items()}


def trained(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("num_classes", "published"), [(10, 23_528_522), (37, 23_583_845)])
def test_resnet50_is_as_large_as_published(resnet: dict[str, Tensor], num_classes: int, published: int) -> None:
    """ResNet-50 trains the published number of weights, with and without pretrained ones."""
    for weights in (None, resnet):
        model, head = build_backbone("resnet50", num_classes, weights)
        assert trained(model) == published
        assert sum(p.numel() for p in split_at_head(model, head)[0]) == 23_508_032


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 85_798_656), ("convnext_tiny", 27_820_128)])
def test_the_other_backbones_have_torchvisions_size(name: str, size: int) -> None:
    """The backbone's weights are all of torchvision's network except the head."""
    model, head = shapes_only(name)
    assert sum(p.numel() for p in split_at_head(model, head)[0]) == size


@pytest.mark.parametrize(
    ("name", "head", "inputs"),
    [("resnet50", "fc", 2048), ("vit_b_16", "heads.head", 768), ("convnext_tiny", "classifier.2", 768)],
)
def test_a_torchvision_network_from_weights(name: str, head: str, inputs: int) -> None:
    """The network has the given weights and a head of the given classes in its known place."""
    given = flat(name, 32)
    model, found = build_backbone(name, 3, given, image_size=32)
    assert found == head
    assert model.get_parameter(f"{head}.weight").shape == (3, inputs)
    for key, tensor in model.state_dict().items():
        assert tensor.device.type == "cpu"
        assert key.startswith(f"{head}.") or torch.equal(tensor, given[key])
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_the_heads_initialization(resnet: dict[str, Tensor]) -> None:
    """The head is torch's default linear layer for the seed; global random numbers do not change."""
    before = torch.random.get_rng_state()
    model, _ = build_backbone("resnet50", 5, resnet, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(3)
    expected = nn.Linear(2048, 5)
    assert torch.equal(model.get_parameter("fc.weight"), expected.weight)
    assert torch.equal(model.get_parameter("fc.bias"), expected.bias)
    other, _ = build_backbone("resnet50", 5, resnet, seed=4)
    assert not torch.equal(other.get_parameter("fc.weight"), expected.weight)


def test_nothing_is_shared(resnet: dict[str, Tensor]) -> None:
    """Two networks from the same weights share no memory."""
    first, second = (build_backbone("resnet50", 10, resnet)[0].state_dict() for _ in range(2))
    places = [tensor.untyped_storage().data_ptr() for state in (first, second, resnet) for tensor in state.values()]
    assert len(set(places)) == len(places) == 3 * len(resnet)


@pytest.mark.parametrize("classes", [None, 4])
def test_the_given_head_does_not_matter(resnet: dict[str, Tensor], classes: int | None) -> None:
    """Weights without a head, with another head, or without batch counts build the same network."""
    changed = {key: tensor for key, tensor in resnet.items() if not key.endswith("num_batches_tracked")}
    del changed["fc.weight"], changed["fc.bias"]
    if classes is not None:
        changed |= {"fc.weight": torch.ones(classes, 2048), "fc.bias": torch.ones(classes)}
    expected = build_backbone("resnet50", 10, resnet)[0].state_dict()
    for key, tensor in build_backbone("resnet50", 10, changed)[0].state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert int(tensor) == 0
        else:
            assert torch.equal(tensor, expected[key])


def test_half_precision_weights_become_single() -> None:
    """A network from float16 weights is in float32."""
    given = {key: t.half() if t.is_floating_point() else t for key, t in flat("convnext_tiny").items()}
    model, _ = build_backbone("convnext_tiny", 10, given)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_weights_of_another_network_are_refused() -> None:
    """A missing, unknown or differently shaped tensor raises one line with its name."""
    good = flat("convnext_tiny")
    name = "features.0.0.weight"
    cases = {
        f"{name} is missing": {key: tensor for key, tensor in good.items() if key != name},
        "extra is unknown": good | {"extra": torch.zeros(1)},
        f"size mismatch for {name}": good | {name: torch.zeros(96, 3, 7, 7)},
    }
    for words, weights in cases.items():
        with pytest.raises(ValueError, match=f"do not fit convnext_tiny: {words}") as error:
            build_backbone("convnext_tiny", 10, weights)
        assert "\n" not in str(error.value)


def test_another_head_of_a_torchvision_network() -> None:
    """The head may be named; one that is not a linear layer is refused."""
    good = flat("vit_b_16", 32)
    assert build_backbone("vit_b_16", 3, good, head="heads.head")[1] == "heads.head"
    with pytest.raises(ValueError, match=r"'encoder\.ln' must be a Linear layer, got LayerNorm"):
        build_backbone("vit_b_16", 3, good, head="encoder.ln")


@pytest.fixture(scope="module")
def vit_of_48_px() -> dict[str, Tensor]:
    embedding = torch.randn(1, 10, 768, generator=torch.Generator().manual_seed(0))
    return flat("vit_b_16", 48) | {"encoder.pos_embedding": embedding}


def test_the_positional_embedding_is_interpolated(vit_of_48_px: dict[str, Tensor]) -> None:
    """Another image size interpolates the patches' embeddings (bicubic) and keeps the class token's."""
    given = vit_of_48_px["encoder.pos_embedding"].clone()
    model, _ = build_backbone("vit_b_16", 3, vit_of_48_px, image_size=32)
    found = model.get_parameter("encoder.pos_embedding")
    grid = given[:, 1:].transpose(1, 2).reshape(1, 768, 3, 3)
    expected = F.interpolate(grid, size=2, mode="bicubic", align_corners=True).flatten(2).transpose(1, 2)
    assert found.shape == (1, 5, 768)
    assert torch.equal(found[:, :1], given[:, :1])
    torch.testing.assert_close(found[:, 1:], expected)
    assert torch.equal(vit_of_48_px["encoder.pos_embedding"], given)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_the_default_image_size_is_that_of_the_weights(vit_of_48_px: dict[str, Tensor]) -> None:
    """Without a size vit_b_16 takes images of the size of its weights, embeddings unchanged."""
    model, _ = build_backbone("vit_b_16", 3, vit_of_48_px)
    assert torch.equal(model.get_parameter("encoder.pos_embedding"), vit_of_48_px["encoder.pos_embedding"])


@pytest.mark.parametrize("size", [40, 8, 0, -16])
def test_impossible_image_sizes(vit_of_48_px: dict[str, Tensor], size: int) -> None:
    """vit_b_16 refuses sizes that are not positive multiples of 16; ResNet-50 takes any."""
    for weights in (None, vit_of_48_px):
        with pytest.raises(ValueError, match=f"multiple of 16, got {size}"):
            build_backbone("vit_b_16", 3, weights, image_size=size)
    shapes_only("resnet50", size)


@pytest.mark.parametrize(("patches", "size"), [(1, 16), (4, 32), (196, 224)])
def test_image_size_of_a_number_of_patches(patches: int, size: int) -> None:
    """A square number of patches belongs to one image size; other numbers are refused."""
    assert vit_image_size(patches) == size
    with pytest.raises(ValueError, match="square of patches"):
        vit_image_size(patches + 1)
