"""Networks of the user's own: by torchvision's or timm's name or an import path; their heads, weights and hashes."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from deelbo.pretrained.backbones import build_backbone, check_network, find_head
from deelbo.pretrained.registry import BACKBONES, BackboneEntry, find_backbone, imported_package
from deelbo.pretrained.weights import load_backbone, read_weights

BATCH = torch.zeros(2, 1, 4, 4)


class TwoOutputs(nn.Module):
    """Returns a dict, as networks of other libraries do."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layer(x.flatten(1))}


class AuxiliaryHead(nn.Module):
    """Has a linear layer after its head, and another output in training than in evaluation."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(16, num_classes)
        self.projection = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Any:
        logits = self.head(x.flatten(1))
        return (logits, self.projection(x.flatten(1))) if self.training else logits


class HiddenState(nn.Module):
    """Depends on random numbers that are no buffer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head, self.directions = nn.Linear(16, num_classes), torch.randn(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head((x.flatten(1) + 1) @ self.directions)
        return logits


class SecondName(nn.Module):
    """Its head has two names, and it is used by the later one."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(16, num_classes)
        self.head = self.fc

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits


class OtherState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: object) -> None:
        pass


def raises(error: BaseException) -> Callable[[int], nn.Module]:
    def build(num_classes: int) -> nn.Module:
        raise error

    return build


def small(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module: Any = ModuleType("own_nets")
    module.small, module.dict, module.auxiliary = small, TwoOutputs, AuxiliaryHead
    module.convolution = lambda classes: nn.Sequential(nn.Conv2d(1, classes, 4), nn.Flatten())
    module.text = lambda classes: "network"
    module.error = lambda classes: {}["layers"]
    module.wrong_shape = lambda classes: nn.Sequential(nn.Linear(4, classes))
    module.hidden, module.second = HiddenState, SecondName
    module.extra = lambda classes: nn.Sequential(nn.Flatten(), OtherState(16, 4), nn.Linear(4, classes))
    module.quiet, module.ends = raises(ValueError()), raises(SystemExit(0))
    module.picky = lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(17, classes))
    monkeypatch.setitem(sys.modules, "own_nets", module)
    return module


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("own_nets:small", "own_nets"),
        ("lab.vision.nets:Nets.small", "lab"),
        ("torchvision:resnet18", None),
        ("timm:resnet10t", None),
        ("resnet18", None),
        ("own nets:small", None),
        ("own_nets:", None),
        ("own_nets:small()", None),
        ("https://x.org:build", None),
    ],
)
def test_import_paths(name: str, package: str | None) -> None:
    """Only PACKAGE.MODULE:FUNCTION is an import path, and a library's name is none."""
    assert imported_package(name) == package


@pytest.mark.parametrize("name", ["own nets:small", "resnet5000", "own_nets:", "timm:", "torchvision"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match="backbone must be one of"):
        find_backbone(name)


def test_nothing_is_imported_before_a_network_is_built() -> None:
    assert find_backbone("no_such_package.nets:build").channels is None
    with pytest.raises(ValueError, match=r"no_such_package\.nets:build cannot be imported \(No module named 'no_such"):
        build_backbone("no_such_package.nets:build", 3)


def test_a_module_that_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_nets_exit.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(ValueError, match=r"own_nets_exit:build cannot be imported \(SystemExit: 0\): correct the path"):
        build_backbone("own_nets_exit:build", 3)


def test_a_network_by_its_import_path() -> None:
    """The last linear layer is the head, and is new; the seed decides all weights."""
    model, head = build_backbone("own_nets:small", 3, seed=4)
    assert head == "4"
    assert model(BATCH).shape == (2, 3)
    again, _ = build_backbone("own_nets:small", 3, seed=4)
    other, _ = build_backbone("own_nets:small", 3, seed=5)
    assert torch.equal(again[1].weight, model[1].weight)
    assert not torch.equal(other[1].weight, model[1].weight)


def test_heads() -> None:
    """The layer with as many outputs as classes goes before a later one; timm's networks name their head."""
    assert find_head(AuxiliaryHead(5), 5) == "head"
    assert find_head(AuxiliaryHead(7), 5) == "projection"
    timm = pytest.importorskip("timm")
    assert find_head(timm.create_model("resnet10t"), 3) == "fc"
    assert find_head(timm.create_model("test_efficientnet"), 3) == "classifier"
    for name in ("resnet34", "mobilenet_v3_small", "swin_t", "densenet121"):
        _, head = build_backbone(f"torchvision:{name}", 3)
        assert head in ("fc", "classifier", "classifier.3", "head"), name
    with pytest.raises(ValueError, match="Sequential has no Linear layer"):
        build_backbone("own_nets:convolution", 3)


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("own_nets:small", None, None),
        ("own_nets:small", "9", "the head '9' must be a Linear layer, Sequential has none by that name.*it has 1, 4"),
        ("own_nets:small", "2", "the head '2' must be a Linear layer, got BatchNorm1d.*it has 1, 4"),
        ("own_nets:dict", None, r"own_nets:dict returns a dict in training, expected logits of shape \(2, 3\)"),
        ("own_nets:auxiliary", None, "returns a tuple in training, expected logits"),
        ("own_nets:wrong_shape", None, r"returns \(2, 1, 4, 3\) in training, expected logits of shape \(2, 3\)"),
        ("own_nets:small", "1", r"fails on a batch of shape \(2, 1, 4, 4\) \(.*running_mean"),
        ("own_nets:picky", None, r"own_nets:picky fails on a batch of shape \(2, 1, 4, 4\) \(RuntimeError: .*mat1"),
        ("own_nets:text", None, r"own_nets:text returns a str, expected a torch\.nn\.Module"),
        ("own_nets:error", None, r"own_nets:error cannot be built \(KeyError: 'layers'\)"),
        ("own_nets:missing", None, "own_nets:missing: the module own_nets has no missing: correct the path"),
        ("own_nets:quiet", None, r"own_nets:quiet cannot be built \(ValueError:\)"),
        ("own_nets:ends", None, r"own_nets:ends cannot be built \(SystemExit: 0\)"),
        ("own_nets:extra", None, "own_nets:extra has the state 1._extra_state, expected tensors alone"),
        ("own_nets:hidden", None, "own_nets:hidden depends on random numbers that are not in its state dict"),
        ("own_nets:second", None, "own_nets:second does not use 'fc', its head, once that is replaced"),
        ("torchvision:resnet19", None, "torchvision:resnet19: Unknown model resnet19: expected a classifier"),
        ("torchvision:fcn_resnet50", None, "Unknown model fcn_resnet50: expected a classifier"),
        ("timm:nothing", None, "timm:nothing: Unknown model nothing: expected a name of timm"),
        ("timm:hf-hub:some/model", None, "Unknown model hf-hub:some/model: expected a name of timm"),
        ("torchvision:inception_v3", None, "fails on a batch|returns"),
    ],
)
def test_networks_that_cannot_be_trained(name: str, head: str | None, words: str | None) -> None:
    """Whatever a network does wrong is one line that names it."""
    channels = 3 if name.startswith(("torchvision", "timm")) else 1
    batch = torch.zeros(2, channels, 4, 4)
    if words is None:
        check_network(name, 3, batch, head)
        return
    with pytest.raises(ValueError, match=words) as caught:
        check_network(name, 3, batch, head)
    assert "\n" not in str(caught.value)


def test_weights_of_an_own_network(tmp_path: Path) -> None:
    """A file's weights are taken except the head's, which may have any number of classes."""
    source = small(9)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    pretrained = load_backbone("own_nets:small", str(tmp_path / "w.pt"))
    model, _ = build_backbone("own_nets:small", 3, pretrained.weights)
    assert torch.equal(model[1].weight, source[1].weight)
    assert torch.equal(model[2].running_var, source[2].running_var)
    assert model[4].weight.shape == (3, 8)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is not a own_nets:small: 1\.weight is missing \(and"):
        load_backbone("own_nets:small", str(tmp_path / "other.pt"))


def test_a_torchvision_network_has_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for where torchvision stores them, and equal those of the built-in name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("resnet18", "torchvision:resnet18"):
        with pytest.raises(ValueError, match=r"the IMAGENET1K_V1 weights of .*resnet18 are not at .*resnet18-f37072fd"):
            read_weights(name)
    with pytest.raises(ValueError, match="own_nets:small has no weights of its own: set `weights` to a file"):
        read_weights("own_nets:small")
    with pytest.raises(ValueError, match="own_nets:small has no weights IMAGENET1K_V1"):
        read_weights("own_nets:small", "IMAGENET1K_V1")
    network = models.resnet18(num_classes=1000)
    torch.save(network.state_dict(), tmp_path / "r.pt")
    model, head = build_backbone("torchvision:resnet18", 4, read_weights("torchvision:resnet18", tmp_path / "r.pt"))
    assert head == "fc"
    assert torch.equal(model.get_parameter("conv1.weight"), network.conv1.weight)


def test_random_weights_and_hashes() -> None:
    """Without weights each seed has its own; the hash tells networks of another name, head or shape apart."""
    pretrained = load_backbone("own_nets:small", "none")
    assert pretrained.weights == {}
    hashes = [load_backbone(name, "none").fingerprint_for("l2-sp") for name in ("own_nets:small", "own_nets:picky")]
    assert len({*hashes, load_backbone("torchvision:resnet34", "none").fingerprint_for("l2-sp")}) == 3
    assert pretrained.fingerprint_for("l2-sp") == hashes[0]


def test_an_entrys_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that brings weights is loaded with them; a state dict is checked as a file is."""
    state = small(9).state_dict()
    entry = BackboneEntry(lambda classes, size: small(classes), weights=lambda: state, channels=1)
    monkeypatch.setitem(BACKBONES, "with-weights", entry)
    assert torch.equal(load_backbone("with-weights").weights["1.weight"], state["1.weight"])
    del state["1.bias"]
    with pytest.raises(ValueError, match=r"the state dict of with-weights is not a with-weights: 1\.bias is missing"):
        load_backbone("with-weights")
