"""Check that a folder holds a dataset as its authors published it: unpacked, complete, and the official version.

Every fault is a `DataError` with a message of one line: what was found, what was expected, what to do.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
UNVERIFIED = ", or take it with `verify_data: false`"


class DataError(ValueError):
    """A dataset on disk cannot be used; the message has one line."""


@dataclass(frozen=True)
class DatasetFiles:
    """The files and the size of a dataset."""

    name: str
    folder: str  # below the root, which is the folder of all datasets
    files: tuple[str, ...]  # files besides the images that it must contain; paths below ``folder``
    archives: tuple[tuple[str, str], ...]  # each archive and what unpacking it creates; both below the root
    num_classes: int  # labels are 0 to ``num_classes - 1``
    training_images: int  # number of images in the official split that training images are taken from
    test_images: int  # number of images in the official test split

    @property
    def remedy(self) -> str:
        """The end of every error message: what to do."""
        return (
            f"run `deelbo-bench prepare CONFIG` where there is a network, or set `data` / $DEELBO_DATA to a folder that"
            f" holds a whole {self.folder}"
        )

    def error(self, problem: str, alternative: str = "") -> DataError:
        """Return the error "dataset ``problem``: `remedy` ``alternative``"."""
        return DataError(f"{self.name} {problem}: {self.remedy}{alternative}")

    def check_files(self, root: Path, checksums: Mapping[str, str]) -> None:
        """Raise DataError unless the folder exists, is unpacked and contains its files, with these MD5 sums."""
        folder = root / self.folder
        for archive, becomes in self.archives:
            if (root / archive).is_file() and not (root / becomes).exists():
                found = f"{root / archive} exists, {root / becomes} does not"
                command = "tar -xf" if archive.endswith((".tar.gz", ".tgz")) else "gunzip -k"
                raise DataError(f"{self.name} is not unpacked: {found}: unpack it with `{command}`, or {self.remedy}")
        if not folder.is_dir():
            if root.name == self.folder and root.is_dir():
                remedy = f"set `data` / $DEELBO_DATA to the folder above it, {root.parent}"
                raise DataError(f"{self.name} was searched below {root}, which is its own folder: {remedy}")
            raise self.error(f"was not found: {root} has no folder {self.folder}")
        if missing := [file for file in self.files if not (folder / file).is_file()]:
            count = f"{len(missing)} of {len(self.files)}"
            raise self.error(f"is incomplete: {count} files are missing in {folder}, the first {missing[0]}")
        for file, expected in checksums.items():
            with (folder / file).open("rb") as content:
                found = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if found != expected:
                problem = f"is another version: {folder / file} has MD5 {found}, the official one {expected}"
                raise self.error(problem, UNVERIFIED)

    def check_images(self, root: Path, images: Sequence[Path]) -> None:
        """Raise DataError where listed images are missing or empty."""
        if missing := [image for image in images if not image.is_file() or not image.stat().st_size]:
            where = f"missing or empty in {root / self.folder}, the first {missing[0].name}"
            raise self.error(f"is incomplete: {len(missing)} of {len(images)} listed images are {where}")

    def check_labels(self, root: Path, training: Sequence[int], test: Sequence[int], verify: bool) -> None:
        """Raise DataError for an impossible label, a class without image or, with ``verify``, an unofficial number."""
        folder, classes = root / self.folder, self.num_classes
        for split, labels, official in (("training", training, self.training_images), ("test", test, self.test_images)):
            if wrong := [label for label in labels if not 0 <= label < classes]:
                found = f"label {wrong[0]} among the {split} images of {folder}"
                raise self.error(f"is another version: {found}, expected 0 to {classes - 1}")
            if verify and len(labels) != official:
                found = f"{len(labels)} {split} images in {folder}"
                raise self.error(f"is another version: {found}, officially {official}", UNVERIFIED)
        absent = sorted(set(range(classes)) - set(training))
        if absent or not test:
            missing = f"training image of class {absent[0]}" if absent else "test image"
            raise self.error(f"is incomplete: no {missing} in {folder}, expected {classes} classes")


@contextmanager
def as_data_error(problem: str, remedy: str) -> Iterator[None]:
    """Turn any error inside the block into a DataError of one line: "``problem`` (error): ``remedy``"."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # torchvision's errors have several lines, or no text
        description = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
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
FASHION_MNIST = DatasetFiles(
    name="Fashion-MNIST",
    folder="FashionMNIST",
    files=tuple(f"raw/{name}" for name in IDX_FILES),
    archives=tuple((f"FashionMNIST/raw/{name}.gz", f"FashionMNIST/raw/{name}") for name in IDX_FILES),
    num_classes=10,
    training_images=60_000,
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
