"""Whether a folder holds a dataset as its authors published it: unpacked, nothing missing, and the version meant.

Every fault is a `DataError` of one line: what was found, what was expected, what to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CIFAR10", "FLOWERS", "PET", "DataError", "Folder", "translated"]


class DataError(ValueError):
    """A dataset that cannot be used as it lies there, said in one line."""


@dataclass(frozen=True)
class Folder:
    """What of a dataset lies where, and how much of it there is.

    Attributes:
        name: the dataset's.
        folder: below the root.
        files: what must be there besides single images; below ``folder``.
        archives: file of each archive and what it becomes where it is unpacked; both below the root.
        num_classes: labels go from 0 to this less 1.
        training_images: in the official split that training images are taken from.
        test_images: in the official test split.
    """

    name: str
    folder: str
    files: tuple[str, ...]
    archives: tuple[tuple[str, str], ...]
    num_classes: int
    training_images: int
    test_images: int

    @property
    def remedy(self) -> str:
        """What to do, with which every complaint ends."""
        return (
            f"run `deelbo-bench prepare CONFIG` where there is a network, or set `data` / $DEELBO_DATA to a folder that"
            f" holds a whole {self.folder}"
        )

    def check_files(self, root: Path, checksums: Mapping[str, str]) -> None:
        """Raises DataError unless the folder is there and unpacked and its files are.

        ``checksums``: the MD5 sums that files, below ``folder``, must have; read only once all files are there.
        """
        folder = root / self.folder
        for archive, becomes in self.archives:
            if (root / archive).is_file() and not (root / becomes).exists():
                raise DataError(
                    f"{self.name} is not unpacked: {root / archive} is there, {root / becomes} is not: unpack it with"
                    f" `tar -xf`, or {self.remedy}"
                )
        if not folder.is_dir():
            if root.name == self.folder and root.is_dir():
                raise DataError(
                    f"{self.name} is looked for below {root}, which is its folder: set `data` / $DEELBO_DATA to the"
                    f" folder above it, {root.parent}"
                )
            raise DataError(f"{self.name} is not there: {root} has no folder {self.folder}: {self.remedy}")
        missing = [file for file in self.files if not (folder / file).is_file()]
        if missing:
            raise DataError(
                f"{self.name} is incomplete: {len(missing)} of {len(self.files)} files are missing in {folder}, the"
                f" first {missing[0]}: {self.remedy}"
            )
        for file, expected in checksums.items():
            found = _md5(folder / file)
            if found != expected:
                raise DataError(
                    f"{self.name} is another version: {folder / file} has MD5 {found}, the official one {expected}:"
                    f" {self.remedy}, or take it with `verify_data: false`"
                )

    def check_images(self, root: Path, images: Sequence[Path]) -> None:
        """Raises DataError where listed images are missing or empty."""
        missing = [image for image in images if not image.is_file() or not image.stat().st_size]
        if missing:
            raise DataError(
                f"{self.name} is incomplete: {len(missing)} of {len(images)} listed images are missing or empty in"
                f" {root / self.folder}, the first {missing[0].name}: {self.remedy}"
            )

    def check_labels(self, root: Path, training: Sequence[int], test: Sequence[int], verify: bool) -> None:
        """Raises DataError where a label cannot be or a class has no training image; with ``verify``, where the number
        of images is not the official one."""
        for words, labels, official in (("training", training, self.training_images), ("test", test, self.test_images)):
            wrong = [label for label in labels if not 0 <= label < self.num_classes]
            if wrong:
                raise DataError(
                    f"{self.name} is another version: label {wrong[0]} among the {words} images of"
                    f" {root / self.folder}, expected 0 to {self.num_classes - 1}: {self.remedy}"
                )
            if verify and len(labels) != official:
                raise DataError(
                    f"{self.name} is another version: {len(labels)} {words} images in {root / self.folder}, officially"
                    f" {official}: {self.remedy}, or take it with `verify_data: false`"
                )
        absent = sorted(set(range(self.num_classes)) - set(training))
        if absent or not test:
            what = f"training image of class {absent[0]}" if absent else "test image"
            raise DataError(
                f"{self.name} is incomplete: no {what} in {root / self.folder}, expected {self.num_classes} classes:"
                f" {self.remedy}"
            )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def translated(what: str, remedy: str) -> Iterator[None]:
    """Any error inside becomes a DataError of one line: ``what`` (error): ``remedy``."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # the first words of an error say what it is; torchvision's go on for several lines
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{what} ({words[:200]}): {remedy}") from error


CIFAR10 = Folder(
    name="CIFAR-10",
    folder="cifar-10-batches-py",
    files=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    archives=(("cifar-10-python.tar.gz", "cifar-10-batches-py"),),
    num_classes=10,
    training_images=50_000,
    test_images=10_000,
)
PET = Folder(
    name="Oxford-IIIT_Pet",
    folder="oxford-iiit-pet",
    files=("annotations/trainval.txt", "annotations/test.txt"),
    archives=(
        ("oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet/images"),
        ("oxford-iiit-pet/annotations.tar.gz", "oxford-iiit-pet/annotations"),
    ),
    num_classes=37,
    training_images=3_680,
    test_images=3_669,
)
FLOWERS = Folder(
    name="Flowers-102",
    folder="flowers-102",
    files=("imagelabels.mat", "setid.mat"),
    archives=(("flowers-102/102flowers.tgz", "flowers-102/jpg"),),
    num_classes=102,
    training_images=1_020,
    test_images=6_149,
)
