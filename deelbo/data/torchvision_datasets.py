"""CIFAR-10, Oxford-IIIT Pet and Flowers-102 from their official files; the lists of the latter two are read by
torchvision's classes. Nothing that the files hold is executed, and no image outside of their folders is read.

This module imports torchvision.datasets, which takes seconds: import it where data are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from deelbo.data.cifar_pickle import read_batch, read_pickle
from deelbo.data.dataset import Task
from deelbo.data.decoding import Listing, decoded
from deelbo.data.images import Geometry, Images, resize_side
from deelbo.data.integrity import CIFAR10, FLOWERS, PET, DataError, Folder, translated

__all__ = ["check", "checksums", "list_photographs", "load", "read_cifar10"]


IMAGES = {PET.name: "images", FLOWERS.name: "jpg"}


class _Pet(datasets.OxfordIIITPet):  # type: ignore[misc]
    """Says which files and labels it has: reading them one by one would decode them in one thread."""

    def _check_exists(self) -> bool:
        return True

    def listed(self) -> tuple[list[Path], list[int]]:
        return self._images, self._labels


class _Flowers(datasets.Flowers102):  # type: ignore[misc]
    """As `_Pet`."""

    def _check_integrity(self) -> bool:
        return True

    def listed(self) -> tuple[list[Path], list[int]]:
        return self._image_files, self._labels


def load(folder: Folder, root: Path, image_size: int, verify: bool, balanced: int | None = None) -> Task:
    """The dataset below ``root``. CIFAR-10 stays at 32x32 and is resized on the device; photographs are kept resized.

    Args:
        folder: which dataset: that of `CIFAR10`, `PET` or `FLOWERS`.
        root: the folder of the datasets.
        image_size: side of the crop that the network sees.
        verify: whether checksums, where torchvision has them, and the numbers of images must be the official ones.
            Without, all that has the right format is taken.
        balanced: as in `Task`.

    Raises:
        DataError: the data are not there, or not whole, or another version, or cannot be read.
    """
    side = resize_side(image_size)
    geometry = Geometry(side, image_size, flip=True)
    if folder.name == CIFAR10.name:
        pool, test = read_cifar10(folder, root, verify)
        return Task(folder.name, pool, test, geometry, balanced)
    listing = list_photographs(folder, root, verify)
    training, testing = decoded(listing, side, folder.name, root, root / folder.folder)
    pool = Images(training, torch.tensor(listing.training_labels), folder.num_classes)
    test = Images(testing, torch.tensor(listing.test_labels), folder.num_classes)
    return Task(folder.name, pool, test, geometry, balanced)


def check(folder: Folder, root: Path, verify: bool) -> None:
    """Raises what `load` would raise, but for images that are there and cannot be decoded; takes a second or so."""
    if folder.name == CIFAR10.name:
        read_cifar10(folder, root, verify)
    else:
        list_photographs(folder, root, verify)


def checksums(folder: Folder) -> dict[str, str]:
    """The MD5 sums that torchvision has of unpacked files, by their names below the folder."""
    if folder.name == CIFAR10.name:
        meta = datasets.CIFAR10.meta
        return dict([*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list, (meta["filename"], meta["md5"])])
    if folder.name == FLOWERS.name:
        return dict(datasets.Flowers102._file_dict[key] for key in ("label", "setid"))
    return {}


def read_cifar10(folder: Folder, root: Path, verify: bool) -> tuple[Images, Images]:
    """Training images in the order of the files, and test images; uint8 (n, 3, 32, 32). Arguments as in `load`."""
    with translated(f"{folder.name} cannot be read in {root / folder.folder}", folder.remedy):
        folder.check_files(root, checksums(folder) if verify else {})
        parts = []
        for names in (datasets.CIFAR10.train_list, datasets.CIFAR10.test_list):
            batches = [read_batch(root / folder.folder / name) for name, _ in names]
            pixels = np.concatenate([batch.pixels for batch in batches])
            labels = [label for batch in batches for label in batch.labels]
            if pixels.dtype != np.uint8 or len(pixels) != len(labels):
                raise DataError(
                    f"{folder.name} cannot be read in {root / folder.folder}: {len(labels)} labels and {len(pixels)}"
                    f" images of {pixels.dtype}, expected one label an image, uint8: {folder.remedy}"
                )
            parts.append((pixels.reshape(-1, 3, 32, 32), labels))
        if "label_names" not in read_pickle(root / folder.folder / datasets.CIFAR10.meta["filename"]):
            raise KeyError("label_names")
        folder.check_labels(root, parts[0][1], parts[1][1], verify)
    pool, test = (
        Images(torch.from_numpy(pixels), torch.tensor(labels), folder.num_classes) for pixels, labels in parts
    )
    return pool, test


def list_photographs(folder: Folder, root: Path, verify: bool) -> Listing:
    """The images of Pet or Flowers-102, all of them there, in the order of the official lists. As `load` otherwise."""
    reader, training, test = (_Pet, "trainval", "test") if folder.name == PET.name else (_Flowers, "train", "test")
    with translated(f"{folder.name} cannot be read in {root / folder.folder}", folder.remedy):
        folder.check_files(root, checksums(folder) if verify else {})
        listing = Listing(*reader(str(root), training).listed(), *reader(str(root), test).listed())
        _check_listing(folder, root, listing)
        folder.check_labels(root, listing.training_labels, listing.test_labels, verify)
        folder.check_images(root, [*listing.training, *listing.test])
    return listing


def _check_listing(folder: Folder, root: Path, listing: Listing) -> None:
    """Raises DataError where a list names anything but images of its folder and whole numbers.

    A name with a path in it could be that of any file of this machine.
    """
    images = root / folder.folder / IMAGES[folder.name]
    for file in (*listing.training, *listing.test):
        if file.parent != images or not file.name.isprintable() or "\\" in file.name:
            raise DataError(
                f"{folder.name} cannot be read in {root / folder.folder}: its lists name {str(file)[-60:]!r}, expected"
                f" names of images in {images}: {folder.remedy}"
            )
    for label in (*listing.training_labels, *listing.test_labels):
        if type(label) is not int:
            raise DataError(
                f"{folder.name} cannot be read in {root / folder.folder}: label {str(label)[:60]!r}, expected a whole"
                f" number: {folder.remedy}"
            )
