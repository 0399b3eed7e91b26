"""Predict the classes of image files or texts by a saved model, and write them as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.exceptions import ConfigError
from deelbo.data.decoding import decode_readable
from deelbo.data.folders import SUFFIXES
from deelbo.data.listing import read_csv, show, some
from deelbo.data.texts import encode
from deelbo.pretrained.registry import TEXT_PREFIX

if TYPE_CHECKING:
    from torch import Tensor

    from deelbo.saved_model import SavedModel

BATCH = 500  # as in evaluation, so that the last digits agree
FORMATS = (".csv", ".json")


@dataclass(frozen=True)
class Predictions:
    """Probabilities (n, classes) of ``files``, and why some others could not be read."""

    files: list[Path]
    classes: tuple[str, ...]
    probabilities: Tensor
    unreadable: dict[Path, str]

    @property
    def labels(self) -> list[str]:
        """The most probable class of each file."""
        return [self.classes[row] for row in self.probabilities.argmax(1).tolist()]

    def to_csv(self) -> str:
        """Return a line for each file: path, label, and a probability for each class."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "label", *self.classes])
        for file, label, row in zip(self.files, self.labels, self.probabilities.tolist(), strict=True):
            writer.writerow([file, label, *(f"{value:.6g}" for value in row)])
        return text.getvalue()

    def to_json(self) -> str:
        """Return a list of objects with path, label and the probabilities by class."""
        rows = zip(self.files, self.labels, self.probabilities.tolist(), strict=True)
        content = [
            {"path": str(file), "label": label, "probabilities": dict(zip(self.classes, row, strict=True))}
            for file, label, row in rows
        ]
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def list_files(paths: Sequence[Path]) -> list[Path]:
    """Return files as they are, and the images in folders, by name.

    Raises:
        ConfigError: a path is not there, or there is no image.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            files += [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        elif path.is_file():
            files.append(path)
        else:
            raise ConfigError(f"there is no {show(path)}: give image files, or folders of them")
    if not files:
        raise ConfigError(f"{show(paths[0])} has no images: give image files, or folders of them")
    return files


def predict_images(model: SavedModel, files: Sequence[Path], skip: bool) -> Predictions:
    """Return the probabilities of image files, read as the training images were.

    Args:
        model: of images in color.
        files: to be read.
        skip: whether to go on without files that cannot be decoded.

    Raises:
        ConfigError: the model takes something else, or some files cannot be read.
    """
    import torch

    side = _side(model)
    parts, problems = [], dict[Path, str]()
    for start in range(0, len(files), BATCH):
        chunk = list(files[start : start + BATCH])
        pixels, found = decode_readable(chunk, side, upright=True)
        problems |= found
        if not problems or skip:
            parts.append(model.predict(pixels[[file not in found for file in chunk]]))
    _refuse(problems, len(files), "files", skip)
    return Predictions([file for file in files if file not in problems], model.classes, torch.cat(parts), problems)


def predict_texts(
    model: SavedModel, files: Sequence[Path], columns: Sequence[str], max_length: int | None, skip: bool
) -> Predictions:
    """Return the probabilities of the rows of CSV files, each by the name FILE:LINE.

    Args:
        model: of texts.
        files: with a first line that names the columns.
        columns: that hold the text; empty: those of its training, as is ``max_length`` if it is None.
        max_length: tokens to which texts are cut.
        skip: whether to go on without rows that have no text.

    Raises:
        ConfigError: the columns are not known, or there are no rows, or some cannot be used.
    """
    if max_length is not None and max_length < 1:
        raise ConfigError(f"--max-length {max_length}: expected at least 1 token")
    trained = model.metadata.get("text", {})
    columns = columns or trained.get("columns") or ()
    if not columns:
        raise ConfigError("the model does not say which columns hold the text: give --text COLUMN")
    names, texts, problems = [], [], dict[Path, str]()
    for file in files:
        expected = f"expected a first line that names the columns {', '.join(columns)}, separated by commas"
        for line, row in read_csv("predict", file, columns, expected):
            name = Path(f"{file}:{line}")
            parts = [] if isinstance(row, str) else [part for column in columns if (part := row[column].strip())]
            if parts:
                names.append(name)
                texts.append(" ".join(parts))
            else:
                problems[name] = row if isinstance(row, str) else "the text is empty"
    _refuse(problems, len(names) + len(problems), "rows", skip)
    if not names:
        raise ConfigError(f"{show(files[0])} has no rows after its first line: give CSV files of texts")
    tokens = encode(model.backbone.removeprefix(TEXT_PREFIX), texts, max_length or trained.get("max_length"))
    return Predictions(names, model.classes, model.predict(tokens), problems)


def is_text(model: SavedModel) -> bool:
    """Return whether a model takes texts."""
    return model.backbone.startswith(TEXT_PREFIX)


def _refuse(problems: Mapping[Path, str], count: int, kind: str, skip: bool) -> None:
    """Raise ConfigError if something cannot be read, unless it is to be skipped and something is left."""
    if problems and (not skip or len(problems) == count):
        shown = some([f"{show(file)} ({why})" for file, why in problems.items()])
        remedy = "remove them" if skip else "remove them, or give --unreadable skip"
        raise ConfigError(f"{len(problems)} of {count} {kind} cannot be read: {shown}: {remedy}")


def write_predictions(predictions: Predictions, file: Path) -> None:
    """Write a CSV or JSON file, as a whole or not at all."""
    text = predictions.to_json() if file.suffix.lower() == ".json" else predictions.to_csv()
    # a name that is not text: in JSON its bytes become escapes, in CSV they stay
    errors = "backslashreplace" if file.suffix.lower() == ".json" else "surrogateescape"
    partial = file.with_name(f".{file.name}.part")
    try:
        partial.write_text(text, encoding="utf-8", errors=errors)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def check_format(file: Path, read: Sequence[Path] = ()) -> None:
    """Raise ConfigError for a file that is neither CSV nor JSON, whose folder does not exist, or that is ``read``."""
    if file.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out {show(file)}: expected a name that ends with {' or '.join(FORMATS)}")
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"--out {show(file)} is a folder, or its folder does not exist: give another")
    if file.exists() and any(file.samefile(other) for other in read if other.exists()):
        raise ConfigError(f"--out {show(file)} is read itself, and would be lost: give another name")


def _side(model: SavedModel) -> int:
    """Return the side in pixels to which files are resized for a model."""
    from deelbo.data.images import ImageTransform

    transform = model.transform
    if not isinstance(transform, ImageTransform):
        raise ConfigError(f"the model takes {type(transform).__name__} inputs, expected images: use model.predict")
    if (channels := len(transform.fitted.mean)) != 3:
        raise ConfigError(f"the model takes images of {channels} channel, expected 3 as of files: use model.predict")
    return transform.geometry.side
