"""Check that a folder holds a dataset as its authors published it: unpacked, complete, and the official version.

Every fault is a `DataError` with a message of one line: what was found, what was expected, what to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CIFAR10", "FLOWERS", "PET", "DataError", "DatasetFiles", "as_data_error"]


class DataError(ValueError):
    """A dataset on disk cannot be used; the message has one line."""


@dataclass(frozen=True)
class DatasetFiles:
    """The files and the size of a dataset.

    Attributes:
        name: the dataset's name.
        folder: its folder below the root, which is the folder of all datasets.
        files: files besides the images that it must contain; paths below ``folder``.
        archives: each archive's file and what unpacking it creates; both below the root.
        num_classes: labels are 0 to ``num_classes - 1``.
        training_images: number of images in the official split that training images are taken from.
        test_images: number of images in the official test split.
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
        """The end of every error message: what to do."""
        return (
            f"run `deelbo-bench prepare CONFIG` where there is a network, or set `data` / $DEELBO_DATA to a folder that"
            f" holds a whole {self.folder}"
        )

    def check_files(self, root: Path, checksums: Mapping[str, str]) -> None:
        """Raise DataError unless the folder exists, is unpacked and contains its files.

        Args:
            root: the folder of the datasets.
            checksums: MD5 sums by file below ``folder``; they are compared once all files exist.
        """
        folder = root / self.folder
        for archive, becomes in self.archives:
            if (root / archive).is_file() and not (root / becomes).exists():
                raise DataError(
                    f"{self.name} is not unpacked: {root / archive} exists, {root / becomes} does not: unpack it with"
                    f" `tar -xf`, or {self.remedy}"
                )
        if not folder.is_dir():
            if root.name == self.folder and root.is_dir():
                raise DataError(
                    f"{self.name} was searched below {root}, which is its own folder: set `data` / $DEELBO_DATA to the"
                    f" folder above it, {root.parent}"
                )
            raise DataError(f"{self.name} was not found: {root} has no folder {self.folder}: {self.remedy}")
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
        """Raise DataError where listed images are missing or empty."""
        missing = [image for image in images if not image.is_file() or not image.stat().st_size]
        if missing:
            raise DataError(
                f"{self.name} is incomplete: {len(missing)} of {len(images)} listed images are missing or empty in"
                f" {root / self.folder}, the first {missing[0].name}: {self.remedy}"
            )

    def check_labels(self, root: Path, training: Sequence[int], test: Sequence[int], verify: bool) -> None:
        """Raise DataError for an impossible label or a class without training image.

        With ``verify``, also where the number of images is not the official one.
        """
        for split, labels, official in (("training", training, self.training_images), ("test", test, self.test_images)):
            wrong = [label for label in labels if not 0 <= label < self.num_classes]
            if wrong:
                raise DataError(
                    f"{self.name} is another version: label {wrong[0]} among the {split} images of"
                    f" {root / self.folder}, expected 0 to {self.num_classes - 1}: {self.remedy}"
                )
            if verify and len(labels) != official:
                raise DataError(
                    f"{self.name} is another version: {len(labels)} {split} images in {root / self.folder}, officially"
                    f" {official}: {self.remedy}, or take it with `verify_data: false`"
                )
        absent = sorted(set(range(self.num_classes)) - set(training))
        if absent or not test:
            missing = f"training image of class {absent[0]}" if absent else "test image"
            raise DataError(
                f"{self.name} is incomplete: no {missing} in {root / self.folder}, expected {self.num_classes} classes:"
                f" {self.remedy}"
            )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def as_data_error(problem: str, remedy: str) -> Iterator[None]:
    """Turn any error inside the block into a DataError of one line: "``problem`` (error): ``remedy``"."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        description = " ".join(f"{type(error).__name__}: {error}".split())  # torchvision's errors have several lines
        raise DataError(f"{problem} ({description[:200]}): {remedy}") from error


CIFAR10 = DatasetFiles(
    name="CIFAR-10",
    folder="cifar-10-batches-py",
    files=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    archives=(("cifar-10-python.tar.gz", "cifar-10-batches-py"),),
    num_classes=10,
    training_images=50_000,
    test_images=10_000,
)
PET = DatasetFiles(
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
FLOWERS = DatasetFiles(
    name="Flowers-102",
    folder="flowers-102",
    files=("imagelabels.mat", "setid.mat"),
    archives=(("flowers-102/102flowers.tgz", "flowers-102/jpg"),),
    num_classes=102,
    training_images=1_020,
    test_images=6_149,
)
