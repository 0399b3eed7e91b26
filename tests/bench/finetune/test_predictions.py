"""Predictions of image files: how they are read, listed and written, and what is refused."""

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.exceptions import ConfigError
from bench.finetune.predictions import (
    Predictions,
    check_format,
    is_text,
    list_files,
    predict_images,
    predict_texts,
    write_predictions,
)
from deelbo.data import Geometry, ImageTransform, Normalization, Transform
from deelbo.data.decoding import decode
from tests.helpers.tiny_bert import VOCABULARY, write_bert

CLASSES = ('a "red", one', "Füchse", "犬")


def predict(pixels: Tensor) -> Tensor:
    """The share of each channel in the mean color, as three probabilities."""
    means = pixels.double().mean((2, 3)) + 1e-6
    return (means / means.sum(1, keepdim=True)).float()


def model() -> Any:
    transform = ImageTransform(Geometry(8, 6), Normalization(torch.zeros(3), torch.ones(3)))
    return SimpleNamespace(transform=transform, classes=CLASSES, predict=predict)


def write(path: Path, color: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), color).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a red, a green and a blue image, and what is left out."""
    folder = tmp_path / "new"
    write(folder / "r,ed.png", (250, 0, 0))
    write(folder / "more" / "green.jpg", (0, 250, 0))
    write(folder / "more" / "blue.PNG", (0, 0, 250))
    write(folder / ".hidden" / "x.png", (0, 0, 0))
    write(folder / ".x.png", (0, 0, 0))
    (folder / "notes.txt").touch()
    return folder


def test_files(pictures: Path, tmp_path: Path) -> None:
    """Files are taken as they are, folders by their images, without hidden ones; what is missing is refused."""
    inside = [pictures / "more" / "blue.PNG", pictures / "more" / "green.jpg", pictures / "r,ed.png"]
    assert list_files([pictures]) == inside
    assert list_files([pictures / "notes.txt", pictures]) == [pictures / "notes.txt", *inside]
    with pytest.raises(ConfigError, match="there is no nowhere"):
        list_files([pictures, Path("nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no images"):
        list_files([tmp_path / "empty"])


def test_written(pictures: Path, tmp_path: Path) -> None:
    """CSV and JSON have the path, the most probable class, and a probability for each class by its name."""
    found = predict_images(model(), list_files([pictures]), skip=False)
    assert found.labels == [CLASSES[2], CLASSES[1], CLASSES[0]]
    for name in ("out.csv", "out.JSON"):
        write_predictions(found, tmp_path / name)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "out.JSON").read_text(encoding="utf-8"))
    assert list(rows[0]) == ["path", "label", *CLASSES]
    for row, entry, path in zip(rows, content, list_files([pictures]), strict=True):
        assert row["path"] == entry["path"] == str(path)
        assert row["label"] == entry["label"]
        for label in CLASSES:
            assert float(row[label]) == pytest.approx(entry["probabilities"][label], abs=1e-5)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are read as for training: turned by EXIF, 16 bits scaled, transparency ignored, resized to the side."""
    seen: list[Tensor] = []
    turned = Image.fromarray(np.arange(12 * 9 * 3, dtype=np.uint8).reshape(9, 12, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    deep = np.full((5, 5), 200 << 8, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    clear = Image.new("RGBA", (5, 5), (10, 20, 30, 0))
    clear.save(tmp_path / "clear.png")
    files = [tmp_path / f"{name}.png" for name in ("turned", "deep", "clear")]
    stub = model()
    stub.predict = lambda pixels: (seen.append(pixels), predict(pixels))[1]
    predict_images(stub, files, skip=False)
    (pixels,) = seen
    turned.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    assert pixels.shape == (3, 3, 8, 8)
    assert torch.equal(pixels[0], decode([tmp_path / "upright.png"], 8)[0])
    assert (pixels[1] == 200).all()
    assert pixels[2, :, 0, 0].tolist() == [10, 20, 30]


def test_unreadable_files(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused, counted and named, or left out; in either case those of all batches."""
    monkeypatch.setattr("bench.finetune.predictions.BATCH", 2)
    (pictures / "a.png").write_bytes(b"")
    files = list_files([pictures, pictures / "notes.txt"])
    with pytest.raises(ConfigError, match=r"^2 of 5 files cannot be read: .*a\.png \(empty\), .*notes\.txt \(empty\)"):
        predict_images(model(), files, skip=False)
    found = predict_images(model(), files, skip=True)
    assert [file.name for file in found.unreadable] == ["a.png", "notes.txt"]
    assert found.labels == [CLASSES[2], CLASSES[1], CLASSES[0]]
    with pytest.raises(ConfigError, match=r"^1 of 1 files cannot be read: .*: remove them$"):
        predict_images(model(), [pictures / "a.png"], skip=True)


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    """In CSV its bytes stay, in JSON they are escapes."""
    name = os.fsdecode(b"\xff.png")
    found = Predictions([Path(name)], CLASSES, torch.eye(3)[:1], {})
    for suffix in ("csv", "json"):
        write_predictions(found, tmp_path / f"out.{suffix}")
    assert b"\xff.png" in (tmp_path / "out.csv").read_bytes()
    assert json.loads((tmp_path / "out.json").read_text())[0]["path"] == name


@pytest.mark.parametrize(
    ("name", "message"),
    [("photo.jpg", "ends with .csv or .json"), ("nowhere/a.csv", "does not exist"), ("sub.csv", "is a folder")],
)
def test_bad_names(name: str, message: str, tmp_path: Path) -> None:
    """A picture is never overwritten."""
    (tmp_path / "sub.csv").mkdir()
    with pytest.raises(ConfigError, match=message):
        check_format(tmp_path / name)


def test_a_file_that_is_read_is_not_overwritten(tmp_path: Path) -> None:
    """Predictions are not written over the texts that they are of, by whatever path; another file is replaced."""
    for name in ("texts.csv", "old.csv"):
        (tmp_path / name).touch()
    (tmp_path / "same").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is read itself, and would be lost: give another name"):
        check_format(tmp_path / "same" / "texts.csv", [tmp_path / "texts.csv"])
    check_format(tmp_path / "old.csv", [tmp_path / "texts.csv"])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Transform(), "the model takes Transform inputs, expected images"),
        (ImageTransform(Geometry(8, 6), Normalization(torch.zeros(1), torch.ones(1))), "takes images of 1 channel"),
    ],
)
def test_models_of_other_inputs(transform: Any, message: str, pictures: Path) -> None:
    """Files are images in color; a model of something else is refused."""
    other = SimpleNamespace(transform=transform, classes=CLASSES, predict=predict)
    with pytest.raises(ConfigError, match=message):
        predict_images(other, list_files([pictures]), skip=False)  # type: ignore[arg-type]


def test_texts(tmp_path: Path) -> None:
    """Rows of CSV files are tokenized as in training and named by their line; those without a text are refused."""
    pytest.importorskip("transformers")
    bert, seen = write_bert(tmp_path / "bert"), list[Tensor]()

    def judge(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return torch.eye(3)[: len(tokens)]

    trained = {"text": {"columns": ["title", "body"], "max_length": 5}}
    model = SimpleNamespace(backbone=f"transformers:{bert}", classes=CLASSES, predict=judge, metadata=trained)
    file = tmp_path / "new.csv"
    file.write_text('body,title\nball team,king\n" ",\nwar war war war,atom\n')
    assert is_text(model)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^1 of 3 rows cannot be read: .*new\.csv:3 \(the text is empty\)"):
        predict_texts(model, [file], [], None, skip=False)  # type: ignore[arg-type]
    found = predict_texts(model, [file], [], None, skip=True)  # type: ignore[arg-type]
    assert [path.name for path in found.files] == ["new.csv:2", "new.csv:4"]
    words = [[VOCABULARY[token] for token in row] for row in seen[0].tolist()]
    assert words == [
        ["[CLS]", "king", "ball", "team", "[SEP]"],
        ["[CLS]", "atom", "war", "war", "[SEP]"],
    ]
    predict_texts(model, [file], ["body"], 3, skip=True)  # type: ignore[arg-type]
    assert [VOCABULARY[token] for token in seen[1][1].tolist()] == ["[CLS]", "war", "[SEP]"]
    with pytest.raises(ValueError, match="has no column nose"):
        predict_texts(model, [file], ["nose"], None, skip=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--max-length 0: expected at least 1 token"):
        predict_texts(model, [file], [], 0, skip=True)  # type: ignore[arg-type]
    (bare := tmp_path / "bare.csv").write_text("body,title\n")
    with pytest.raises(ConfigError, match=r"bare\.csv has no rows after its first line: give CSV files of texts"):
        predict_texts(model, [bare], [], None, skip=True)  # type: ignore[arg-type]
    model.metadata = {}
    with pytest.raises(ConfigError, match="give --text COLUMN"):
        predict_texts(model, [file], [], None, skip=True)  # type: ignore[arg-type]
