"""Tests of the split into backbone and head, and of building networks."""

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
    """The head's weights are the named submodule's, at any depth; all others are the backbone's, in order."""
    model = three_layers()
    first, second, third = (list(layer.parameters()) for layer in model)
    for name, expected in (("1", ([*first, *third], second)), (None, ([*first, *second, *third], []))):
        assert all(same(*pair) for pair in zip(split_at_head(model, name), expected, strict=True))
    backbone, head = split_at_head(nn.Sequential(nn.ReLU(), model), "1.2")
    assert same(backbone, [*first, *second])
    assert same(head, third)


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


def test_the_head_may_be_named() -> None:
    """A named head is replaced; a missing one is refused."""
    assert build_backbone("digits-resnet", 3, head="fc")[1] == "fc"
    with pytest.raises(ValueError, match="'layer1' must be a Linear layer, got ResidualBlock"):
        build_backbone("digits-resnet", 3, head="layer1")
    with pytest.raises(ValueError, match=r"'classifier' must be a Linear layer, DigitsResNet has none .*it has fc"):
        build_backbone("digits-resnet", 3, head="classifier")


def test_an_unknown_backbone_is_refused() -> None:
    """An unknown backbone raises a ValueError that lists the known ones."""
    with pytest.raises(
        ValueError, match="one of convnext_tiny, digits-resnet, resnet18, resnet50, vit_b_16, got 'resnet-50'"
    ):
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


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 11_176_512), ("resnet50", 23_508_032), ("vit_b_16", 85_798_656), ("convnext_tiny", 27_820_128)],
)
def test_backbones_have_torchvisions_size(name: str, size: int) -> None:
    """The backbone's weights are all of torchvision's network except the head."""
    model, head = shapes_only(name)
    assert sum(p.numel() for p in split_at_head(model, head)[0]) == size


@pytest.mark.parametrize(
    ("name", "head", "inputs", "channels"),
    [
        ("digits-resnet", "fc", 32, 1),
        ("resnet18", "fc", 512, 3),
        ("resnet50", "fc", 2048, 3),
        ("vit_b_16", "heads.head", 768, 3),
        ("convnext_tiny", "classifier.2", 768, 3),
    ],
)
def test_a_network_from_weights(name: str, head: str, inputs: int, channels: int) -> None:
    """The network has the given weights and buffers, and a new head of the given classes in its known place."""
    given = flat(name, 32)
    model, found = build_backbone(name, 3, given, image_size=32)
    assert found == head
    assert model.get_parameter(f"{head}.weight").shape == (3, inputs)
    for key, tensor in model.state_dict().items():
        assert tensor.device.type == "cpu"
        assert key.startswith(f"{head}.") or torch.equal(tensor, given[key])
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert model.eval()(torch.randn(2, channels, 32, 32)).shape == (2, 3)


def test_the_heads_initialization(resnet: dict[str, Tensor]) -> None:
    """The head is torch's default linear layer for the seed."""
    model, _ = build_backbone("resnet50", 5, resnet, seed=3)
    torch.manual_seed(3)
    expected = nn.Linear(2048, 5)
    assert torch.equal(model.get_parameter("fc.weight"), expected.weight)
    assert torch.equal(model.get_parameter("fc.bias"), expected.bias)


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
