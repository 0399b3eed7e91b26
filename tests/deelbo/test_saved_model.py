"""A model on disk: what is read back, and what is refused."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from safetensors.torch import save_file

from deelbo import SavedModel, evaluate, load_model, save_model
from deelbo.data import Geometry, Images, ImageTransform, Transform
from deelbo.pretrained.backbones import build_backbone
from deelbo.training.numerics import Numerics

Change = Callable[[dict[str, Any]], object]


def make_images(count: int = 7, size: int = 16, channels: int = 1) -> Images:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, channels, size, size), generator=random, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 3, 3)


@pytest.fixture
def model() -> SavedModel:
    """A digits network for three classes with BatchNorm statistics of its own."""
    network, head = build_backbone("digits-resnet", 3)
    transform = ImageTransform(Geometry(16, 12, pad=1)).fit(make_images())
    for _ in range(3):
        network.train()(transform.evaluation(make_images().inputs))
    metadata = {"record": {"metrics": {"test_acc": 0.5}}}
    return SavedModel(network, transform, ("a", "b b", "ç"), "digits-resnet", head, metadata=metadata)


@pytest.fixture
def folder(model: SavedModel, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("backbone", "size", "numerics"),
    [
        ("digits-resnet", None, Numerics("bf16", True)),
        ("torchvision:resnet18", 32, Numerics()),
        ("timm:deit_tiny_patch16_224", 48, Numerics()),
    ],
)
def test_a_model_is_read_back(backbone: str, size: int | None, numerics: Numerics, tmp_path: Path) -> None:
    """Predictions, NLL and accuracy are the same to the bit, as are classes, preprocessing, numerics and metadata."""
    if backbone.startswith("timm"):
        pytest.importorskip("timm")
    images = make_images(size=size or 16, channels=1 if size is None else 3)
    network, head = build_backbone(backbone, 3, image_size=size)
    transform = ImageTransform(Geometry(2 * (size or 8), size or 16, flip=True)).fit(images)
    shape = tuple(images.inputs.shape[1:])
    model = SavedModel(
        network, transform, ("a", "b", "c"), backbone, head, size, shape, "uint8", numerics, {"a": [1.5, None]}
    )
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert not any(module.training for module in loaded.network.modules())
    assert torch.equal(loaded.predict(images.inputs), model.predict(images.inputs))
    assert loaded.predict(images.inputs).sum(1).allclose(torch.ones(7))
    before, after = (evaluate(one.network, images, one.transform, one.numerics) for one in (model, loaded))
    assert before == after
    assert isinstance(loaded.transform, ImageTransform)
    assert loaded.transform.geometry == transform.geometry
    assert replace(loaded, network=network, transform=transform) == model
    assert loaded.predict(images.inputs[:0]).shape == (0, 3)
    for wrong in (images.inputs.float(), images.inputs[0]):
        with pytest.raises(ValueError, match=r"inputs are \w+ \(.*\), expected uint8 \(n, \d, \d+, \d+\): give rows"):
            loaded.predict(wrong)


@dataclass(frozen=True)
class Vocabulary(Transform):
    """A transform with a file of its own, as a tokenizer has."""

    words: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {}

    def files(self) -> dict[str, bytes]:
        return {"words.txt": " ".join(self.words).encode()}

    @classmethod
    def from_json(cls, content: Any, files: Any) -> Self:
        return cls(tuple(files["words.txt"].decode().split()))


def test_a_transform_keeps_its_own_files(model: SavedModel, tmp_path: Path) -> None:
    """They are beside the weights, hashed as these are, and given back to the transform."""
    save_model(replace(model, transform=Vocabulary(("one", "two"))), tmp_path)
    assert load_model(tmp_path).transform == Vocabulary(("one", "two"))
    (tmp_path / "words.txt").write_text("one three")
    with pytest.raises(ValueError, match=r"words.txt is damaged, its hash is not that in model.json: copy it again$"):
        load_model(tmp_path)


def test_a_transform_that_would_lose_its_fields_is_refused(model: SavedModel, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Scaled(Transform):
        factor: float = 2.0

    with pytest.raises(TypeError, match="Scaled has fields and no to_json"):
        save_model(replace(model, transform=Scaled()), tmp_path)
    assert not (tmp_path / "model.json").exists()


CHANGES: dict[str, tuple[Change, str]] = {
    "another format": (lambda c: c.update(format=2), "format = 2, expected 1"),
    "no files": (lambda c: c.pop("files"), "KeyError: 'files'"),
    "a path": (lambda c: c["files"].update({"../x": ""}), "file '../x', expected a name of letters"),
    "an absolute path": (lambda c: c["files"].update({"/etc/passwd": ""}), "file '/etc/passwd', expected a name"),
    "a file that is missing": (lambda c: c["files"].update(x=""), "x is missing: copy the whole folder again"),
    "no weights": (lambda c: c["files"].clear(), "KeyError: 'model.safetensors'"),
    "no classes": (lambda c: c.update(classes=[]), "classes: expected a list of names"),
    "a class too many": (lambda c: c["classes"].append("d"), "size mismatch for fc.weight"),
    "another network": (lambda c: c.update(backbone="resnet18"), "Error.* in loading state_dict for ResNet"),
    "no network": (lambda c: c.update(backbone="os"), "backbone must be one of"),
    "a network that is code": (
        lambda c: c.update(backbone="os.path:join"),
        "the network os.path:join, which is code: if you trust",
    ),
    "a network of another kind": (lambda c: c.update(backbone=["resnet18"]), "backbone: expected a name"),
    "a size": (lambda c: c.update(image_size=10**9), "image_size = 1000000000, expected pixels from 1 to 10000"),
    "a shape": (lambda c: c["inputs"].update(shape=[1, 10**9]), "inputs: expected sides of at most 10000"),
    "a type": (lambda c: c["inputs"].update(dtype="load"), "and a type of uint8, int32, int64, float32"),
    "a geometry": (lambda c: c["transform"]["geometry"].update(side=1e9), "expected whole numbers of at most 10000"),
    "a field": (lambda c: c["transform"]["geometry"].update(other=1), "unexpected keyword argument 'other'"),
    "a std": (lambda c: c["transform"]["normalization"].update(std=[0.0]), "expected a mean and a positive std"),
    "a transform": (lambda c: c["transform"].update(kind="Path"), "transform.kind = 'Path' is not known"),
    "a precision": (lambda c: c["numerics"].update(precision="fp4"), "precision must be one of"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_description_that_does_not_fit_is_refused(change: Change, message: str, folder: Path) -> None:
    """One line that names the file or the value."""
    description = folder / "model.json"
    content = json.loads(description.read_text())
    change(content)
    description.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000, '{"format": 1, "files": 3}'])
def test_a_damaged_description_is_refused(text: str, folder: Path) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model.json does not describe a model \(.*\): save the model again"):
        load_model(folder)


def test_damaged_and_missing_weights_are_named(folder: Path) -> None:
    """Also weights that are whole, of another network."""
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged, its hash is not that in model.json"):
        load_model(folder)
    for content in (b"", b"weights"):  # whose hash is right
        weights.write_bytes(content)
        description = json.loads((folder / "model.json").read_text())
        description["files"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
        (folder / "model.json").write_text(json.dumps(description))
        with pytest.raises(ValueError, match=r"model.json cannot be used \(model.safetensors: Error while"):
            load_model(folder)
    save_file({"fc.weight": torch.zeros(3, 3)}, weights)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"model.safetensors is missing: copy the whole folder again"):
        load_model(folder)
    with pytest.raises(ValueError, match=r"elsewhere has no model.json: give the folder of a saved model"):
        load_model(folder / "elsewhere")


def test_a_network_that_is_code_is_imported_only_if_asked(
    model: SavedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package that is named must be the one that is allowed."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "keep_own_nets.py").write_text(
        "from torch import nn\ndef build(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.Linear(4, num_classes))\n"
    )
    network, head = build_backbone("keep_own_nets:build", 3)
    del sys.modules["keep_own_nets"]
    save_model(replace(model, network=network, backbone="keep_own_nets:build", head=head), tmp_path / "own")
    for allowed in ((), ("keep_own",), "not_keep_own_nets"):
        with pytest.raises(ValueError, match=r"allow_import=\['keep_own_nets'\], or --allow-import$"):
            load_model(tmp_path / "own", allow_import=allowed)
    assert "keep_own_nets" not in sys.modules
    loaded = load_model(tmp_path / "own", allow_import=["keep_own_nets"])
    assert loaded.predict(make_images().inputs).shape == (7, 3)


def test_loading_draws_no_random_number(folder: Path) -> None:
    """The network is built with a seed of its own."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_model(folder)
    assert torch.equal(torch.rand(2), expected)
