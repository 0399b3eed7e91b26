"""Lists of a user's own labeled examples: their classes, the share that is held out, and the CSV files that hold them.

Every fault is a `DataError` of one line.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from deelbo.data.integrity import DataError, as_data_error
from deelbo.data.splits import MIN_PER_CLASS

SPLITS = ("train", "test")
HELD_OUT_SEED = 0
MAX_SHOWN, MAX_CHARACTERS = 3, 60
Row = dict[str, str]


@dataclass(frozen=True)
class LabeledFile:
    """An image file, its class, and whether it is in the test set."""

    path: Path
    label: str
    is_test: bool = False

    @property
    def place(self) -> str:
        """Where it is found."""
        return show(self.path)


@dataclass(frozen=True)
class LabeledText:
    """A text, its class, whether it is in the test set, and the last line of its row in the file."""

    text: str
    label: str
    is_test: bool = False
    line: int = 0

    @property
    def place(self) -> str:
        """Where it is found."""
        return f"line {self.line}"


Example = TypeVar("Example", LabeledFile, LabeledText)


@dataclass(frozen=True)
class ExampleList(Generic[Example]):
    """The examples in a ``folder``, or in one file; ``others`` are files that are not read.

    ``kind`` is the plural noun for the messages: images or texts.
    """

    folder: Path
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    others: tuple[Path, ...] = ()
    kind: str = "images"

    @property
    def training(self) -> list[Example]:
        return [example for example in self.examples if not example.is_test]

    @property
    def test(self) -> list[Example]:
        return [example for example in self.examples if example.is_test]

    @property
    def smallest_class(self) -> int:
        """Number of training examples in the smallest class."""
        return min(Counter(example.label for example in self.training).values())


def split_examples(name: str, listed: ExampleList[Example], path: Path, share: float) -> ExampleList[Example]:
    """Return a list with its classes and, if it has no test set, with a ``share`` of each class held out; checked.

    With a share of 0 there is no test set then. ``name`` is the dataset's, and ``path`` the folder or file that was
    read, for the messages.
    """
    kind, others = listed.kind, listed.others
    classes = tuple(sorted({example.label for example in listed.training}))
    if len(classes) < 2:
        beside = f", and {len(others)} files that are no {kind}, such as {show(others[0].name)}" if others else ""
        none = f"no training {kind}" + " in folders of classes" * (kind == "images")
        found = f"one class, {quote(classes[0])}" if classes else none
        raise DataError(f"{name}: {show(path)} has {found}{beside}: give {kind} of at least two classes")
    if unknown := [example for example in listed.test if example.label not in classes]:
        found = f"{unknown[0].place}, whose class {quote(unknown[0].label)} has no training {kind}"
        raise DataError(
            f"{name}: the test set of {show(path)} has {found}: add some, or remove the class from the test set"
        )
    is_held_out = share > 0 and not listed.test
    examples = tuple(hold_out(listed.examples, share)) if is_held_out else listed.examples
    listed = replace(listed, classes=classes, examples=examples)
    check_classes(name, listed, is_held_out, has_test=bool(listed.test))
    return listed


def hold_out(examples: Sequence[Example], share: float) -> list[Example]:
    """Return the examples with a ``share`` of each class as test set, at least one; the same ones at every call."""
    random = np.random.RandomState(HELD_OUT_SEED)
    rows_by_class: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        rows_by_class.setdefault(example.label, []).append(row)
    held_out: set[int] = set()
    for _, rows in sorted(rows_by_class.items()):
        held_out.update(random.permutation(rows)[: max(1, round(share * len(rows)))].tolist())
    return [replace(example, is_test=row in held_out) for row, example in enumerate(examples)]


def check_classes(name: str, listed: ExampleList[Example], is_held_out: bool = False, has_test: bool = True) -> None:
    """Raise DataError for a class with too few training examples, or without a test example if there is a test set."""
    kind = listed.kind
    training, test = (Counter(example.label for example in part) for part in (listed.training, listed.test))
    for label in listed.classes:
        if training[label] < MIN_PER_CLASS:
            beside = f", with {test[label]} more held out for the test" if is_held_out else ""
            found = f"{training[label]} training {kind} of class {quote(label)} in {show(listed.folder)}{beside}"
            raise DataError(f"{name}: {found}: at least {MIN_PER_CLASS} are needed: add {kind}, or remove the class")
        if has_test and not test[label]:
            found = f"no test {kind[:-1]} of class {quote(label)} in {show(listed.folder)}"
            raise DataError(f"{name}: {found}: add one, or leave the test set out, so that a share is held out")


def read_csv(name: str, file: Path, columns: Sequence[str], expected: str) -> list[tuple[int, Row | str]]:
    """Return the number of the last line of each row of a CSV file, and the row, or what is wrong with it.

    Args:
        name: the dataset's, for the messages.
        file: in UTF-8, with the names of the columns in its first line.
        columns: that must be there once.
        expected: describes the first line.
    """
    remedy = f"save it as CSV in UTF-8, {expected}"
    with (
        as_data_error(f"{name}: {show(file)} cannot be read", remedy),
        file.open(newline="", encoding="utf-8-sig") as text,
    ):
        reader = csv.DictReader(text, strict=True)
        found = reader.fieldnames = [column.strip() for column in reader.fieldnames or ()]
        rows = [(reader.line_num, row) for row in reader]
    if missing := [column for column in columns if column not in found]:
        line = f"its first line is {quote(','.join(found))}"
        raise DataError(f"{name}: {show(file)} has no column {' and '.join(missing)} ({line}): {expected}")
    if twice := [column for column in (*columns, "split") if found.count(column) > 1]:
        raise DataError(f"{name}: {show(file)} has the column {twice[0]} more than once: rename the others")
    return [(line, _check_row(row)) for line, row in rows]


def _check_row(row: dict[str, str | None]) -> Row | str:
    if None in row:  # where `csv` puts fields without a column
        return "more fields than columns"
    filled = {column: value or "" for column, value in row.items()}
    if "split" in row and filled["split"].strip().lower() not in SPLITS:
        return f"split {quote(filled['split'])}, expected train or test"
    return filled


def is_test(row: Row) -> bool:
    """Return whether a row of `read_csv` says that it belongs to the test set."""
    return row.get("split", "").strip().lower() == "test"


def check_rows(name: str, file: Path, parsed: Sequence[tuple[int, Example | str]]) -> list[Example]:
    """Return the examples of a file's rows; raise DataError where a row has a problem instead."""
    if problems := [f"line {line}: {found}" for line, found in parsed if isinstance(found, str)]:
        found = f"{len(problems)} of {len(parsed)} rows of {show(file)} cannot be used: {some(problems, '; ')}"
        raise DataError(f"{name}: {found}: correct or remove them")
    return [found for _, found in parsed if not isinstance(found, str)]


def show(path: Path | str) -> str:
    """Return a path as text of one line."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def quote(text: str) -> str:
    """Return a short text in quotes, in one line."""
    return repr(text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}...")


def some(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first few of some items."""
    return separator.join([*items[:MAX_SHOWN], *["..."] * (len(items) > MAX_SHOWN)])
