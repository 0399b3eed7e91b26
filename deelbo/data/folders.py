"""A user's own images: a folder with a folder for each class, or a CSV file that lists them.

`list_images` reads names alone and needs no torch; `read_images` decodes the files, once, into the cache of
`deelbo.data.decoding`. Every fault is a `DataError` of one line.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deelbo.data.integrity import DataError, as_data_error
from deelbo.data.listing import (
    SPLITS,
    ExampleList,
    LabeledFile,
    Row,
    check_classes,
    check_rows,
    is_test,
    quote,
    read_csv,
    show,
    some,
    split_examples,
)
from deelbo.paths import expand_user

if TYPE_CHECKING:
    from deelbo.data.dataset import Task

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .bmp .tif .tiff .webp .ppm .pgm .pbm .pnm".split()  # noqa: SIM905 - a list of words
)
LIKE_SPLITS = {*SPLITS, "training", "testing", "val", "valid", "validation"}
COLUMNS = ("path", "label")
EXPECTED = "expected path,label or path,label,split, separated by commas; of texts, name their column (text; --text)"


@dataclass(frozen=True)
class ImageSource:
    """Location of a user's images, and how to read them.

    Attributes:
        path: a folder with ``train/CLASS/*`` and ``test/CLASS/*``, or with ``CLASS/*``; or a manifest.
        is_manifest: whether ``path`` is a CSV file with the columns path (relative to the file's folder), label and,
            not necessarily, split ("train" or "test").
        test_share: share of each class that is held out as the test set, where there is none; the same for every
            seed. 0: no test set.
        skip_unreadable: go on without files that cannot be decoded, instead of refusing all.
    """

    path: str
    is_manifest: bool = False
    test_share: float = 0.2
    skip_unreadable: bool = False


ImageList = ExampleList[LabeledFile]


def list_images(name: str, source: ImageSource) -> ImageList:
    """List a dataset's images without opening one; ``name`` is for the messages."""
    path = expand_user(source.path)
    if not path.exists():
        raise DataError(f"{name}: there is no {show(path)}: correct the path, or bring the images to this machine")
    if path.is_dir() == source.is_manifest:
        is_folder = "is a folder, expected a CSV file: give it as folder, not as csv"
        is_file = "is a file, expected a folder: unpack an archive, or give a CSV file as csv"
        raise DataError(f"{name}: {show(path)} {is_folder if path.is_dir() else is_file}")
    folder = path.parent if source.is_manifest else path
    with as_data_error(f"{name}: {show(path)} cannot be read", "make its files and folders readable for you"):
        files, others = (_list_manifest(name, path), []) if source.is_manifest else _list_folder(name, path)
    return split_examples(name, ExampleList(folder, (), tuple(files), tuple(others)), path, source.test_share)


def read_images(name: str, source: ImageSource, root: Path, image_size: int) -> tuple[Task, ImageList]:
    """Return a dataset and the list of what is in it, decoded or from the cache below ``root``.

    The images are resized as those of Pet and Flowers are. With ``skip_unreadable``, unreadable ones are among others.
    """
    import torch

    from deelbo.data.dataset import Task
    from deelbo.data.decoding import Listing, load_readable
    from deelbo.data.images import Geometry, Images, ImageTransform, resize_side

    listed, side = list_images(name, source), resize_side(image_size)
    check_memory(name, len(listed.examples), side, available_memory())
    numbers = {label: number for number, label in enumerate(listed.classes)}
    parts = listed.training, listed.test
    paths = [[file.path for file in part] for part in parts]
    labels = [[numbers[file.label] for file in part] for part in parts]
    listing = Listing(paths[0], labels[0], paths[1], labels[1])
    pixels, problems = load_readable(listing, side, name, root, listed.folder, source.skip_unreadable)
    if problems and not source.skip_unreadable:
        shown = [f"{show(file.relative_to(listed.folder))} ({why})" for file, why in problems.items()]
        raise DataError(
            f"{name}: {len(problems)} of {len(listed.examples)} images in {show(listed.folder)} cannot be read: "
            f"{some(shown)}: copy them again or remove them, or set datasets.{name}.unreadable to skip "
            "(`finetune`: --unreadable skip)"
        )
    examples = []
    for tensor, part, files in zip(pixels, labels, paths, strict=True):
        rows = [row for row, file in enumerate(files) if file not in problems]
        kept = tensor if len(rows) == len(tensor) else tensor[rows]
        examples.append(Images(kept, torch.tensor([part[row] for row in rows], dtype=torch.int64), len(listed.classes)))
    if problems:
        kept_files = tuple(file for file in listed.examples if file.path not in problems)
        listed = replace(listed, examples=kept_files, others=(*listed.others, *problems))
        check_classes(name, listed, has_test=len(labels[1]) > 0)
    pool, test = examples
    transform = ImageTransform(Geometry(side, image_size, flip=True))
    return Task(name, pool, test, transform, proportional=True, classes=listed.classes), listed


def check_memory(name: str, images: int, side: int, available: int | None) -> None:
    """Raise DataError if so many decoded images of side x side pixels do not fit the ``available`` bytes."""
    needed = images * 3 * side * side
    if available is not None and needed > available:
        raise DataError(
            f"{name}: its {images:,} images take {needed / 2**30:.1f} GiB of memory at {side} x {side} pixels, "
            f"{available / 2**30:.1f} GiB are available: set training.image_size lower, or name a part of the images"
        )


def available_memory() -> int | None:
    """Return the bytes of memory that this process can still take, also in a container; None if they are not known."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    except (OSError, ValueError, StopIteration):  # also a container without a limit, whose file says "max"
        pass
    return min(found, default=None)


def _list_folder(name: str, folder: Path) -> tuple[list[LabeledFile], list[Path]]:
    """Return the images below the folders of classes, and the files there that are not images."""
    entries, root = list(_entries(folder, folder.resolve())), folder.resolve()
    names = {entry.name for entry in entries if entry.is_dir()}
    if "train" in names and names - set(SPLITS):
        found = f"{some(sorted(map(quote, names - set(SPLITS))))} beside train"
        raise DataError(f"{name}: {show(folder)} has {found}, expected test alone: move it away, or rename it to test")
    if "train" not in names and (like := sorted(name for name in names if name.lower() in LIKE_SPLITS)):
        expected = "expected train and test, or folders of classes alone"
        raise DataError(f"{name}: {show(folder)} has the folder {quote(like[0])}, {expected}: rename it")
    splits = [folder / split for split in SPLITS if split in names] if "train" in names else [folder]
    files: list[LabeledFile] = []
    others: list[Path] = []
    for split in splits:
        for entry in _entries(split, root):
            if entry.is_dir():
                label, is_test = unicodedata.normalize("NFC", entry.name), split != folder and split.name == "test"
                for path in _walk(entry, root):
                    if path.suffix.lower() in SUFFIXES and path.is_file():
                        files.append(LabeledFile(path, label, is_test))
                    else:
                        others.append(path)
            elif entry.suffix.lower() in SUFFIXES:
                raise DataError(f"{name}: {show(entry)} lies in no folder of a class: move it into one, or remove it")
    return files, others


def _walk(folder: Path, root: Path) -> Iterator[Path]:
    """Yield the files in a folder and the folders in it."""
    for entry in _entries(folder, root):
        if entry.is_dir():
            yield from _walk(entry, root)
        else:
            yield entry


def _entries(folder: Path, root: Path) -> list[Path]:
    """Return what is in a folder, by name, without hidden files; raise DataError for links that are not followed."""
    entries = [e for e in sorted(folder.iterdir()) if not e.name.startswith(".") and e.name != "__MACOSX"]
    for entry in entries:
        if entry.is_symlink():
            problem = "leads out of it" if not entry.resolve().is_relative_to(root) else "is a folder"
            if problem == "leads out of it" or entry.is_dir() or not entry.exists():
                problem = problem if entry.exists() else "leads nowhere"
                raise DataError(f"{show(root)}: the link {show(entry)} {problem}: copy what it leads to, or remove it")
    return entries


def _list_manifest(name: str, file: Path) -> list[LabeledFile]:
    """Return the files that a manifest lists; its rows must all be right."""
    rows = read_csv(name, file, COLUMNS, EXPECTED)
    parsed: list[tuple[int, LabeledFile | str]] = []
    seen, root = set[Path](), file.parent.resolve()
    for line, row in rows:
        labeled = row if isinstance(row, str) else _labeled_file(row, file.parent, root)
        if isinstance(labeled, LabeledFile) and labeled.path in seen:
            labeled = f"{show(labeled.path)} is there twice"
        if isinstance(labeled, LabeledFile):
            seen.add(labeled.path)
        parsed.append((line, labeled))
    return check_rows(name, file, parsed)


def _labeled_file(row: Row, folder: Path, root: Path) -> LabeledFile | str:
    """Return what a row of a manifest says, or what is wrong with it."""
    path, label = (unicodedata.normalize("NFC", row[column].strip()) for column in COLUMNS)
    if not path or not label:
        return "no path" if not path else "no label"
    found = Path(os.path.normpath(folder / row["path"].strip()))
    if not found.is_relative_to(folder) or not found.resolve().is_relative_to(root):
        return f"{show(found)} is not in {show(folder)} or leads out of it"
    return LabeledFile(found, label, is_test(row)) if found.is_file() else f"no file {show(found)}"
