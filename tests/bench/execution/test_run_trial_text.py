"""Real trials on texts: what is recorded, and what resumes to the same bits."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.execution.run_trial import TrialContext, run_trial
from deelbo import SavedModel, evaluate, load_model, save_model
from deelbo.data import TextSource, load_task
from deelbo.data.texts import encode
from deelbo.pretrained.embedded import Pretrained
from deelbo.pretrained.registry import BackboneSource
from deelbo.pretrained.weights import load_backbone
from deelbo.training.checkpoint import Checkpoint
from tests.helpers.tiny import SPEC
from tests.helpers.tiny_bert import write_bert

pytestmark = pytest.mark.usefixtures("one_thread")
DE_ELBO: dict[str, Any] = {"method": "de-elbo", "stage": "run", "weight_decay": None}
TEXTS = replace(
    SPEC,
    dataset="news",
    backbone="bert",
    n=20,
    batch_size=10,
    steps=8,
    posterior_passes=1,
    series_points=2,
    head_weight_decay=0.001,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny BERT and a file of 60 texts."""
    folder = tmp_path_factory.mktemp("texts")
    write_bert(folder / "bert")
    with (folder / "news.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("body", "class"), *((f"{w} {i}", w) for w in ("king", "ball") for i in range(30))])
    return folder


def context_of(place: Path, **settings: Any) -> tuple[Pretrained, TrialContext]:
    source = TextSource(str(place / "news.csv"), ("body",), "class")
    network = BackboneSource(f"transformers:{place / 'bert'}", max_length=8)
    pretrained = load_backbone(network.model, max_length=8)
    return pretrained, TrialContext(torch.device("cpu"), source=source, network=network, **settings)


MAID = {"train": "head", "learner": "maid", "options": '{"start": 0.01, "tolerance": 0.1}'}


@pytest.mark.parametrize("change", [{}, {"stage": "retrain"}, DE_ELBO | {"head_weight_decay": None}, MAID])
def test_a_trial_on_texts(place: Path, change: dict[str, Any]) -> None:
    """A trial tokenizes for its network; the record has the hash of the texts, which no tokenizer has made."""
    pretrained, context = context_of(place)
    record, series = run_trial(replace(TEXTS, **change), pretrained, context)
    assert record.status == "completed", record.error
    assert len(series) == 2
    assert record.state["dim_head"] == 66
    task = load_task("news", source=context.network.tokenize(context.source))  # type: ignore[union-attr]
    assert record.versions["data"] == task.fingerprint == task.content
    assert record.versions["pretrained"] == pretrained.fingerprint
    half, _ = run_trial(replace(TEXTS, precision="bf16", channels_last=True, **change), pretrained, context)
    assert half.status == "completed", half.error
    assert half.metrics["train_nll"] == pytest.approx(record.metrics["train_nll"], rel=0.05)


@pytest.mark.parametrize("change", [{"stage": "retrain"}, DE_ELBO | {"head_weight_decay": None}])
def test_a_run_on_texts_resumes_to_the_same_bits(place: Path, change: dict[str, Any]) -> None:
    """A run that is continued from a checkpoint has the metrics of one that was not interrupted, with dropout."""
    spec, saved = replace(TEXTS, **change), list[bytes]()
    pretrained, context = context_of(place)
    whole, _ = run_trial(spec, pretrained, context)
    first = Checkpoint(1e-9, saved.append, lambda: None)
    run_trial(spec, pretrained, replace(context, checkpoint=first))
    assert len(saved) >= 2
    second = Checkpoint(1e9, lambda _: None, lambda: saved[0])
    resumed, _ = run_trial(spec, pretrained, replace(context, checkpoint=second))
    assert second.resumed_at_step == 2
    assert resumed.metrics == whole.metrics
    assert {k: v for k, v in resumed.state.items() if k in whole.state} == whole.state


def test_texts_that_are_gone_fail_in_one_line(place: Path, tmp_path: Path) -> None:
    """A trial without its file, or its tokenizer, fails with the path in its last line."""
    pretrained, context = context_of(place)
    for change in (
        {"source": TextSource(str(tmp_path / "gone.csv"), ("body",), "class")},
        {"network": BackboneSource(f"transformers:{tmp_path}", max_length=7)},
    ):
        record, _ = run_trial(TEXTS, pretrained, replace(context, **change))  # type: ignore[arg-type]
        assert record.status == "failed"
        assert str(tmp_path) in (record.error or "").strip().splitlines()[-1]


def test_a_kept_model_of_texts_needs_no_other_file(place: Path, tmp_path: Path) -> None:
    """It is moved, and its network's own folder is gone: it gives the record's test results to the bit."""
    pretrained, context = context_of(place)
    kept: list[SavedModel] = []
    spec = replace(TEXTS, **DE_ELBO, **{"head_weight_decay": None})
    record, _ = run_trial(spec, pretrained, replace(context, keep=kept.append))
    task = load_task("news", source=context.network.tokenize(context.source))  # type: ignore[union-attr]
    save_model(kept[0], tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        assert str(place).encode() not in path.read_bytes(), path.name
    (place / "bert").rename(place / "gone")
    try:
        model = load_model(tmp_path / "model")
        assert evaluate(model.network, task.test, model.transform) == (
            record.metrics["test_nll"],
            record.metrics["test_acc"],
        )
        assert model.metadata["text"] == {"columns": ["body"], "max_length": 8}
        folder = model.backbone.removeprefix("transformers:")
        tokens = encode(folder, ["king 3", "ball 7 7"], 8)
        again = tmp_path / "again"
        save_model(model, again)
        assert load_model(again).predict(tokens).equal(model.predict(tokens))
    finally:
        (place / "gone").rename(place / "bert")
    assert encode(str(place / "bert"), ["king 3", "ball 7 7"], 8).equal(tokens)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing: copy the whole folder again"):
        load_model(tmp_path / "model")
