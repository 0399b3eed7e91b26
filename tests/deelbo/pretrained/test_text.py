"""Text classifiers of transformers: networks, weights and heads, against transformers' own."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from deelbo import evaluate
from deelbo.data import Examples, Transform
from deelbo.pretrained.backbones import build_backbone, check_head, find_head
from deelbo.pretrained.text import build_classifier, download, read_weights
from deelbo.pretrained.weights import load_backbone
from tests.helpers.tiny_bert import CONFIG, VOCABULARY, write_bert


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_bert(tmp_path_factory.mktemp("bert")))


def make_ids(count: int = 12) -> torch.Tensor:
    """Return random token ids, int32 (count, 12), of 3 to 10 tokens: the last two columns are padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, len(VOCABULARY), (count, 12), generator=generator, dtype=torch.int32)
    for i, row in enumerate(ids):
        row[0], row[2 + i % 8], row[3 + i % 8 :] = 2, 3, 0
    return ids


def test_evaluation_agrees_with_transformers(bert: str) -> None:
    """`evaluate` gives the NLL and accuracy of a loop over transformers' own classifier, text by text, unpadded."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(3)
    oracle = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3).double().eval()
    model = build_classifier(bert, 3).double()
    model.load_state_dict({f"network.{name}": weight for name, weight in oracle.state_dict().items()})
    ids, labels = make_ids(), torch.arange(12) % 3
    nll, accuracy = evaluate(model, Examples(ids, labels, 3), Transform())
    losses, hits = [], torch.zeros(3)
    for row, label in zip(ids, labels, strict=True):
        with torch.no_grad():
            logits = oracle(input_ids=row[row != 0][None].long()).logits
        losses.append(float(F.cross_entropy(logits, label[None])))
        hits[label] += float(logits.argmax() == label) / 4
    assert nll == pytest.approx(sum(losses) / 12, rel=1e-6)  # logits are summed in float32
    assert accuracy == pytest.approx(float(hits.mean()))


def test_columns_of_padding_change_nothing(bert: str) -> None:
    """Padding has no influence, on logits or gradients; a padding token inside a text is not a column to leave out."""
    model = build_classifier(bert, 3).double().eval()
    ids = make_ids()
    grown = F.pad(ids, (0, 4))
    results = []
    for x in (ids, grown):
        model.zero_grad()
        model(x).square().sum().backward()
        results.append([model(x), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    inside = ids[:1].clone()
    inside[0, 1:5] = torch.tensor([7, 0, 9, 3])
    without = inside.clone()
    without[0, 3] = 8
    assert not torch.allclose(model(inside), model(without))


def test_weights_of_a_folder(tmp_path: Path) -> None:
    """The weights are the file's by name, without a head; what the file lacks is named and always the same."""
    from safetensors.torch import load_file

    folder = write_bert(tmp_path / "bert", pooler=False)
    names = "bert.pooler.dense.bias, bert.pooler.dense.weight"
    with pytest.warns(UserWarning, match=f"{folder} lacks weights, which are initialized randomly: {names}$"):
        weights = read_weights(str(folder))
    stored = load_file(folder / "model.safetensors")
    assert weights.keys() == {f"network.bert.{name}" for name in stored} | {
        f"network.bert.pooler.dense.{part}" for part in ("weight", "bias")
    }
    assert all(torch.equal(weights[f"network.bert.{name}"], weight) for name, weight in stored.items())
    with pytest.warns(UserWarning, match="lacks weights"):
        again = read_weights(str(folder))
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ({}, "network.classifier"),
        ({"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}, "network.classifier"),
        ({"model_type": "roberta"}, "network.classifier.out_proj"),
    ],
)
def test_the_head_is_found(tmp_path: Path, kind: dict[str, object], head: str) -> None:
    """The head is the layer of as many outputs as there are classes, whatever the network calls it."""
    folder = write_bert(tmp_path)
    (folder / "config.json").write_text(json.dumps(CONFIG | kind))
    model = build_classifier(str(folder), 5)
    assert find_head(model, 5) == head
    assert model.get_submodule(head).out_features == 5
    assert model(make_ids(2)).shape == (2, 5)
    assert model.training


def test_a_network_by_name(bert: str) -> None:
    """Built by its name, it has the folder's weights and a new head; a head that is not there is refused."""
    name = f"transformers:{bert}"
    pretrained = load_backbone(name, max_length=8)
    model, head = build_backbone(name, 4, pretrained.weights, seed=1)
    assert head == "network.classifier"
    assert model.get_submodule(head).weight.shape == (4, 32)
    state = model.state_dict()
    assert pretrained.weights
    assert all(torch.equal(state[key], weight) for key, weight in pretrained.weights.items())
    random, _ = build_backbone(name, 4, load_backbone(name, "none").weights or None, seed=1)
    assert not torch.equal(
        random.state_dict()["network.bert.pooler.dense.weight"], state["network.bert.pooler.dense.weight"]
    )
    with pytest.raises(ValueError, match=r"the head 'nose' must be a Linear layer, .* it has .*network\.classifier"):
        check_head(name, "nose")


def test_what_a_network_is_told_apart_by(tmp_path: Path, bert: str) -> None:
    """The hash is of weights, settings, vocabulary and length of texts, and not of the folder's name."""

    def fingerprint(folder: object, max_length: int | None = None, weights: str | None = None) -> str:
        return load_backbone(f"transformers:{folder}", weights, max_length=max_length).fingerprint

    before = fingerprint(bert)
    assert fingerprint(write_bert(tmp_path / "copy")) == fingerprint(bert, 16) == before
    calm = write_bert(tmp_path / "calm")
    change_config(calm, hidden_dropout_prob=0.0)
    other = write_bert(tmp_path / "other", vocabulary=[*VOCABULARY[:5], *reversed(VOCABULARY[5:])])
    found = [fingerprint(calm), fingerprint(other), fingerprint(bert, 8), fingerprint(bert, weights="none")]
    assert len({before, fingerprint(write_bert(tmp_path / "seed", seed=1)), *found}) == 6


def change_config(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "cannot be used .* or run `deelbo-bench prepare CONFIG`"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 50), "cannot be used .*: give a folder with config"),
        (lambda f: change_config(f, intermediate_size=48), "do not fit its config.json: .* has another shape"),
        (
            lambda f: change_config(f, model_type="distilbert", dim=32, n_heads=2),
            "do not fit its config.json: .* missing",
        ),
        (lambda f: change_config(f, pad_token_id=None), "has no pad_token_id in its config.json: write the id"),
        (lambda f: change_config(f, model_type="evil"), "cannot be used .* give a folder"),
        (lambda f: (f / "config.json").unlink(), "cannot be used .* give a folder"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, damage: object, words: str) -> None:
    """A file that is missing, damaged or of another network is refused in one line that names the model."""
    folder = write_bert(tmp_path / "bert")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(ValueError, match=words) as raised:
        read_weights(str(folder))
    assert str(folder) in str(raised.value)
    assert str(raised.value).isprintable()


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    """NaN in a file is refused by the weight's name."""
    from safetensors.torch import load_file, save_file

    folder = write_bert(tmp_path / "bert")
    state = load_file(folder / "model.safetensors")
    state["pooler.dense.bias"][3] = torch.nan
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"network\.bert\.pooler\.dense\.bias holds NaN or infinity"):
        read_weights(str(folder))


def test_pickles_are_not_read(tmp_path: Path) -> None:
    """A folder that has its weights in a pickle alone is refused; nothing in it is run."""
    folder = write_bert(tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(folder / "ran").encode() + b"'\ntR.")
    with pytest.raises(ValueError, match="cannot be used"):
        read_weights(str(folder))
    assert not (folder / "ran").exists()


def test_a_missing_package_names_the_extra(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without transformers or huggingface_hub the line says which extra brings them."""
    for package, call in (
        ("transformers", lambda: build_classifier(bert, 2)),
        ("huggingface_hub", lambda: download("x")),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"{package}, .*deelbo\[text\]"):
            call()


def test_a_download_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the line says so, and only settings, tokenizer and safetensors are asked for."""
    import huggingface_hub

    asked = []

    def fail(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        raise OSError("no\nroute")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"a/b could not be downloaded from Hugging Face \(OSError: no\): try again"):
        download("a/b")
    assert asked == [("a/b", ["*.json", "*.txt", "*.model", "model*.safetensors"])]
