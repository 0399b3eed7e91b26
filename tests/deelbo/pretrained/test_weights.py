"""Tests of pretrained weights: the search for torchvision's files, and the accepted state dicts."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deelbo._vectors import flatten
from deelbo.groups import split_at_head
from deelbo.pretrained import embedded as pretraining
from deelbo.pretrained import weights
from deelbo.pretrained.backbones import build_backbone, shapes_only
from deelbo.pretrained.registry import BACKBONES, BackboneEntry
from deelbo.pretrained.swag_files import RANK, SwagPosterior
from deelbo.pretrained.weights import download_weights, imagenet_file, load_backbone, read_weights

CONTENT = b"weights"
HASH = hashlib.sha256(CONTENT).hexdigest()[:8]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return torch's folder of downloaded files, which does not exist yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Serve IMAGENET1K_V1 from a folder, under a name with its hash."""
    (tmp_path / "server").mkdir()
    file = tmp_path / "server" / f"resnet50-{HASH}.pth"
    file.write_bytes(CONTENT)
    entry = SimpleNamespace(name="IMAGENET1K_V1", url=file.as_uri())
    monkeypatch.setattr("torchvision.models.get_model_weights", lambda backbone: [entry])
    return file


@pytest.mark.parametrize(
    ("backbone", "version", "name"),
    [
        ("resnet18", "IMAGENET1K_V1", "resnet18-f37072fd.pth"),
        ("resnet50", "IMAGENET1K_V1", "resnet50-0676ba61.pth"),
        ("resnet50", "IMAGENET1K_V2", "resnet50-11ad3fa6.pth"),
        ("vit_b_16", "IMAGENET1K_V1", "vit_b_16-c867db91.pth"),
        ("convnext_tiny", "IMAGENET1K_V1", "convnext_tiny-983f1562.pth"),
    ],
)
def test_a_missing_file_is_named(hub: Path, backbone: str, version: str, name: str) -> None:
    """The file is searched in torchvision's cache; if missing, one line has its path and what to do."""
    with pytest.raises(ValueError, match="deelbo-bench prepare CONFIG") as error:
        imagenet_file(backbone, version)
    assert str(hub / name) in str(error.value)
    assert "set `weights` to a local file" in str(error.value)
    assert "\n" not in str(error.value)
    assert not hub.exists()


@pytest.mark.parametrize("content", [CONTENT[:-1], b"", CONTENT + b"!"])
def test_a_changed_file_is_refused(hub: Path, server: Path, content: bytes) -> None:
    """A file with another hash is refused by reading and downloading, and left as it is."""
    hub.mkdir(parents=True)
    (hub / server.name).write_bytes(content)
    for ask in (imagenet_file, download_weights):
        with pytest.raises(
            ValueError, match="half-downloaded or changed: delete it and run `deelbo-bench prepare"
        ) as e:
            ask("resnet50", "IMAGENET1K_V1")
        assert str(hub / server.name) in str(e.value)
    assert (hub / server.name).read_bytes() == content


def test_a_download(hub: Path, server: Path) -> None:
    """Downloading stores the file where it is found, with one request."""
    path = download_weights("resnet50", "IMAGENET1K_V1")
    assert path == imagenet_file("resnet50", "IMAGENET1K_V1") == hub / server.name
    assert path.read_bytes() == CONTENT
    server.unlink()
    assert download_weights("resnet50", "IMAGENET1K_V1") == path


@pytest.mark.parametrize("content", [None, b"something else"])
def test_a_failed_download(hub: Path, server: Path, content: bytes | None) -> None:
    """A missing server, or one with another file, gives one line, and no part of a file is left."""
    if content is None:
        server.unlink()
    else:
        server.write_bytes(content)
    with pytest.raises(ValueError, match="could not be downloaded") as error:
        download_weights("resnet50", "IMAGENET1K_V1")
    assert server.as_uri() in str(error.value)
    assert "\n" not in str(error.value)
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize("ask", [imagenet_file, download_weights])
def test_weights_that_do_not_exist(hub: Path, ask: object) -> None:
    """An unknown version is refused with the known ones, and so is an unknown network."""
    assert callable(ask)
    with pytest.raises(
        ValueError, match=r"resnet50 has the weights IMAGENET1K_V1, IMAGENET1K_V2, .* got 'IMAGENET1K_V3'"
    ):
        ask("resnet50", "IMAGENET1K_V3")
    for backbone in ("resnet18", "vit_b_16", "convnext_tiny"):
        with pytest.raises(ValueError, match=f"{backbone} has the weights IMAGENET1K_V1, or .* got 'IMAGENET1K_V2'"):
            ask(backbone, "IMAGENET1K_V2")
    with pytest.raises(ValueError, match="backbone must be one of"):
        ask("resnet51", "IMAGENET1K_V1")
    with pytest.raises(ValueError, match="digits-resnet has no published weights"):
        ask("digits-resnet", "IMAGENET1K_V1")


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    """Return the state dict of a random ResNet-50 of 1,000 classes."""
    return dict(build_backbone("resnet50", 1000, seed=5)[0].state_dict())


@pytest.fixture(scope="module")
def resnet_file(resnet: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save(resnet, path)
    return path


def flat(name: str, image_size: int | None = None) -> dict[str, Tensor]:
    """Return a state dict whose tensors are all views of one number, 1/2."""
    half = torch.full((), 0.5)
    state = shapes_only(name, image_size)[0].state_dict()
    return {key: half.to(tensor.dtype).expand(tensor.shape) for key, tensor in state.items()}


def saved(tensors: object, folder: Path) -> Path:
    torch.save(tensors, folder / "w.pt")
    return folder / "w.pt"


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_a_state_dict_is_read_as_it_was_saved(resnet: dict[str, Tensor], resnet_file: Path) -> None:
    """A saved state dict is read back with its head, without a SWAG posterior, and builds a network of its weights."""
    found = load_backbone("resnet50", str(resnet_file))
    assert equal(found.weights, resnet)
    assert (found.swag_weights, found.variance, found.factor) == (None, None, None)
    model, _ = build_backbone("resnet50", 10, found.weights)
    assert torch.equal(model.get_parameter("layer4.2.conv3.weight"), resnet["layer4.2.conv3.weight"])


def test_safetensors_give_the_same(resnet: dict[str, Tensor], tmp_path: Path) -> None:
    """A .safetensors file gives the same numbers, order and fingerprint as a .pt file."""
    save_file(resnet, tmp_path / "w.safetensors")
    found = read_weights("resnet50", tmp_path / "w.safetensors")
    assert equal(found, resnet)
    assert pretraining.Pretrained(found).fingerprint == pretraining.Pretrained(resnet).fingerprint


def test_tensors_have_memory_of_their_own(tmp_path: Path) -> None:
    """Each tensor has its own storage, even if a file's tensors are views of one."""
    for name, tensor in read_weights("convnext_tiny", saved(flat("convnext_tiny"), tmp_path)).items():
        assert tensor.is_contiguous(), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_and_prefixed(tmp_path: Path, wrapper: str) -> None:
    """A training checkpoint's wrapper and DataParallel's prefix are removed."""
    good = flat("resnet50")
    path = saved({wrapper: {f"module.{name}": tensor for name, tensor in good.items()}, "epoch": 9}, tmp_path)
    assert equal(read_weights("resnet50", path), good)


def test_the_names_of_the_published_vit(tmp_path: Path) -> None:
    """The names of MLP layers in torchvision's vit_b_16 file are translated to the current ones."""
    good = flat("vit_b_16", 32)
    old = {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t for name, t in good.items()}
    assert sum("linear_" in name for name in old) == 48
    assert list(read_weights("vit_b_16", saved(old, tmp_path))) == list(good)


def test_optional_tensors(tmp_path: Path) -> None:
    """The head may be absent and stays so; absent batch counts of BatchNorm become 0."""
    good = flat("resnet50")
    partial = {n: t for n, t in good.items() if not n.startswith("fc.") and not n.endswith("num_batches_tracked")}
    found = read_weights("resnet50", saved(partial, tmp_path))
    assert list(found) == [name for name in good if not name.startswith("fc.")]
    assert int(found["bn1.num_batches_tracked"]) == 0


def test_a_head_of_any_number_of_classes(tmp_path: Path) -> None:
    """A head of other classes is read; one over other features is another network's."""
    good = flat("resnet50")
    other = good | {"fc.weight": torch.ones(7, 2048), "fc.bias": torch.ones(7)}
    assert read_weights("resnet50", saved(other, tmp_path))["fc.weight"].shape == (7, 2048)
    for wrong in ({"fc.weight": torch.ones(7, 512)}, {"fc.bias": torch.ones(())}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} has shape"):
            read_weights("resnet50", saved(good | wrong, tmp_path))
    del good["fc.bias"]
    with pytest.raises(ValueError, match=r"fc\.bias is missing"):
        read_weights("resnet50", saved(good, tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_single(tmp_path: Path, dtype: torch.dtype) -> None:
    """float16, bfloat16 and float64 weights are read as float32."""
    good = flat("convnext_tiny")
    found = read_weights("convnext_tiny", saved({name: t.to(dtype) for name, t in good.items()}, tmp_path))
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert equal(found, good)


@pytest.mark.parametrize("patches", [1, 9, 576])
def test_an_embedding_of_another_image_size(tmp_path: Path, patches: int) -> None:
    """A positional embedding of any square number of patches is read unchanged."""
    other = flat("vit_b_16", 32) | {"encoder.pos_embedding": torch.ones(1, patches + 1, 768)}
    found = read_weights("vit_b_16", saved(other, tmp_path))
    assert found["encoder.pos_embedding"].shape == (1, patches + 1, 768)


@pytest.mark.parametrize("shape", [(1, 6, 768), (1, 1, 768), (1, 5, 384), (5, 768), (2, 5, 768)])
def test_an_impossible_embedding(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A positional embedding of another width or without a square of patches is refused."""
    other = flat("vit_b_16", 32) | {"encoder.pos_embedding": torch.ones(shape)}
    with pytest.raises(ValueError, match=r"is not a vit_b_16: encoder\.pos_embedding has shape") as error:
        read_weights("vit_b_16", saved(other, tmp_path))
    assert str(shape) in str(error.value)


def test_another_networks_weights(tmp_path: Path) -> None:
    """One line has the first difference, the number of others, and what to give."""
    path = saved(flat("resnet50"), tmp_path)
    saved(
        flat("resnet50") | dict.fromkeys(["conv1.weight", "layer1.0.conv1.weight"], torch.ones(64, 64, 3, 3)), tmp_path
    )
    with pytest.raises(ValueError, match=r"\.") as error:
        read_weights("resnet50", path)
    assert str(error.value) == (
        f"{path} is not a resnet50: conv1.weight has shape (64, 64, 3, 3), expected (64, 3, 7, 7) "
        "(and 1 more difference): give the weights of a resnet50"
    )
    saved(flat("convnext_tiny"), tmp_path)
    needed = [name for name in flat("resnet50") if not name.startswith("fc.") and not name.endswith("_tracked")]
    more = len(needed) + len(flat("convnext_tiny")) - 1
    with pytest.raises(ValueError, match=rf"conv1\.weight is missing \(and {more} more differences\)"):
        read_weights("resnet50", path)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("fc2.weight", torch.ones(1), r"fc2\.weight is unknown: give the weights of a resnet50"),
        ("conv1.weight", torch.ones(64, 3, 7, 7, dtype=torch.int8), r"conv1\.weight holds int8"),
        ("layer1.0.bn1.running_var", torch.tensor([1.0] * 63 + [float("nan")]), "running_var holds NaN or infinity"),
        ("layer1.0.conv1.weight", torch.full((64, 64, 1, 1), float("inf")), r"conv1\.weight holds NaN or infinity"),
    ],
)
def test_impossible_tensors_are_refused(tmp_path: Path, name: str, tensor: Tensor, words: str) -> None:
    """An unknown tensor, quantized weights, and NaN or infinity are refused with the file and the tensor's name."""
    path = saved(flat("resnet50") | {name: tensor}, tmp_path)
    with pytest.raises(ValueError, match=words) as error:
        read_weights("resnet50", path)
    assert str(path) in str(error.value)


def test_the_digits_network_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and PTYL files for digits-resnet, which deelbo pretrains, are refused."""
    made = pretraining.Pretrained({})
    monkeypatch.setattr(weights, "load_pretrained", lambda say: made)
    assert load_backbone("digits-resnet") is made
    with pytest.raises(ValueError, match="leave out `weights`"):
        load_backbone("digits-resnet", weights=tmp_path / "w.pt")
    with pytest.raises(ValueError, match="leave out `ptyl`"):
        load_backbone("digits-resnet", ptyl=tmp_path / "w.pt")


def test_the_default_weights(hub: Path) -> None:
    """The source is IMAGENET1K_V1 by default, a version by its name, or the file of a path."""
    cases: list[tuple[str | Path | None, str]] = [
        (None, "IMAGENET1K_V1 weights of resnet50 are not at .*0676ba61"),
        ("IMAGENET1K_V2", "IMAGENET1K_V2 weights of resnet50 are not at .*11ad3fa6"),
        ("IMAGENET1K_V9", "got 'IMAGENET1K_V9'"),
        ("own.pt", r"own\.pt does not exist"),
        (Path("IMAGENET1K_V1.pt"), r"IMAGENET1K_V1\.pt does not exist"),
    ]
    for source, words in cases:
        with pytest.raises(ValueError, match=words):
            load_backbone("resnet50", source)
    with pytest.raises(ValueError, match=r"backbone must be one of .*resnet50"):
        load_backbone("resnet51")


class Small(nn.Module):
    """A network with BatchNorm whose backbone has 16 weights; its head comes first."""

    def __init__(self, image_size: int | None = None) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 4)
        self.conv = nn.Conv2d(3, 2, (2, 1))
        self.bn = nn.BatchNorm2d(2, affine=False)
        self.shift = nn.Linear(1, 1)


def test_ptyl_starts_at_the_posteriors_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PTYL files the backbone's weights are the mean, and the rest is pretrained."""
    monkeypatch.setitem(BACKBONES, "small", BackboneEntry(lambda _classes, size: Small(size), "fc", meta=True))
    own = Small().state_dict()
    own["bn.running_var"].fill_(3)
    mean, factor = torch.arange(16.0), torch.randn(16, RANK)
    torch.save({"mean": mean, "variance": mean + 1, "factor": factor}, tmp_path / "swag.pt")
    found = load_backbone("small", saved(own, tmp_path), tmp_path / "swag.pt", image_size=32)
    assert equal(found.weights, dict(own))
    assert found.swag_weights is not None
    assert list(found.swag_weights) == list(own)
    model, head = build_backbone("small", 3, found.swag_weights)
    assert torch.equal(flatten(split_at_head(model, head)[0]), mean)
    assert torch.equal(found.swag_weights["bn.running_var"], torch.full((2,), 3.0))
    assert found.variance is not None
    assert torch.equal(found.variance, mean + 1)
    assert found.factor is not None
    assert torch.equal(found.factor, factor)


def test_a_vit_posterior_is_for_one_image_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vit_b_16 posterior of one image size is refused for another, with both sizes."""
    none = torch.zeros(0)
    monkeypatch.setattr(weights, "read_weights", lambda name, source, head: {})
    monkeypatch.setattr(weights, "read_swag", lambda source, name: SwagPosterior(none, none, none, {}, 32))
    with pytest.raises(ValueError, match="images of 32 px, this task has 224 px"):
        load_backbone("vit_b_16", ptyl="swag.pt", image_size=224)
