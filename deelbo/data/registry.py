"""The tasks that can be had by name, what is known of each without reading an image, and where their data lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from deelbo.data.integrity import CIFAR10, FLOWERS, PET, Folder

if TYPE_CHECKING:
    from deelbo.data.dataset import Task

__all__ = ["TASKS", "TaskEntry", "check_task", "crop_size", "data_folder", "download_task", "load_task"]


DIGIT_SIZE = 16  # pixels
PET_A_CLASS = 93  # of the official trainval split's smallest class


@dataclass(frozen=True)
class TaskEntry:
    """A task that can be had: known sizes, so that a configuration is checked without reading any image.

    Attributes:
        load: makes the task from (folder of the datasets, side of the crop, whether to verify).
        pool_size: the largest N.
        test_size: number of test images.
        channels: 1 for grey, 3 for RGB.
        image_size: side of what the network sees, unless another is asked for.
        folder: what lies where on disk; None where the images come with an installed package.
    """

    load: Callable[[Path, int, bool], Task]
    pool_size: int
    test_size: int
    num_classes: int
    channels: int
    image_size: int
    folder: Folder | None = None


def _mnist_digits(root: Path, image_size: int, verify: bool) -> Task:
    from deelbo.data.dataset import Task
    from deelbo.data.digits import load_mnist
    from deelbo.data.images import Geometry

    pool, test = load_mnist(DIGIT_SIZE)
    return Task("mnist-digits", pool, test, Geometry(side=DIGIT_SIZE, crop=image_size, pad=1))


def _published(folder: Folder, balanced: int | None = None) -> TaskEntry:
    def load(root: Path, image_size: int, verify: bool) -> Task:
        from deelbo.data import (
            torchvision_datasets as official,  # here, as torchvision.datasets takes seconds to import
        )

        return official.load(folder, root, image_size, verify, balanced)

    pool_size = folder.training_images if balanced is None else balanced * folder.num_classes
    return TaskEntry(load, pool_size, folder.test_images, folder.num_classes, channels=3, image_size=224, folder=folder)


TASKS = {
    "mnist-digits": TaskEntry(_mnist_digits, 4000, 1000, 10, channels=1, image_size=DIGIT_SIZE),
    CIFAR10.name: _published(CIFAR10),
    PET.name: _published(PET, balanced=PET_A_CLASS),
    FLOWERS.name: _published(FLOWERS),
}


def data_folder() -> Path:
    """Where datasets are looked for unless said otherwise: $DEELBO_DATA, or ``data`` in the cache folder of deelbo."""
    if folder := os.environ.get("DEELBO_DATA"):
        return Path(folder)
    if folder := os.environ.get("DEELBO_CACHE"):
        return Path(folder) / "data"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deelbo" / "data"


def crop_size(name: str, image_size: int | None = None) -> int:
    """The side of what the network sees of the named task: its own where ``image_size`` is None.

    Raises:
        ValueError: an unknown name, or a size that the task does not have.
    """
    entry = _entry(name)
    if image_size is None:
        return entry.image_size
    if entry.folder is None and image_size != entry.image_size:
        raise ValueError(
            f"image_size of {name} must be {entry.image_size}, the size of its images, got {image_size}: leave it out"
        )
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}: {entry.image_size} is usual")
    return image_size


def load_task(
    name: str, root: str | os.PathLike[str] | None = None, image_size: int | None = None, verify: bool = True
) -> Task:
    """The named task, read once a process.

    Args:
        name: a key of `TASKS`.
        root: the folder of the datasets; `data_folder` where None.
        image_size: side of the crop that the network sees, cut from images resized to 256 / 224 of it; the task's own
            where None.
        verify: whether the data must be the official ones, to the checksum and the number of images. Without, all that
            has the right format is taken, such as a small set to rehearse with. Nothing that a file holds is executed
            either way.

    Raises:
        ValueError: an unknown name, a size that the task does not have, or data that are not there, not whole, another
            version or not readable: one line that says what was found, what was expected and what to do.
    """
    crop = crop_size(name, image_size)
    if TASKS[name].folder is None:
        return _loaded(name, Path(), crop, True)  # the same task, whatever the folder
    return _loaded(name, _absolute(root), crop, verify)


def check_task(name: str, root: str | os.PathLike[str] | None = None, verify: bool = True) -> None:
    """Whether `load_task` would find its data whole: decodes no image, takes a second or so, returns nothing.

    Raises:
        ValueError: as `load_task`, but for images that are there and cannot be decoded.
    """
    folder = _entry(name).folder
    if folder is not None:
        from deelbo.data import torchvision_datasets as official

        official.check(folder, _absolute(root), verify)


def download_task(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Downloads what of the named task is missing below ``root``, and says where its data lie.

    Nothing is downloaded for a task that comes with an installed package.

    Raises:
        ValueError: an unknown name, or a download that failed; one line.
    """
    folder = _entry(name).folder
    if folder is None:
        return _absolute(root)
    from deelbo.data.download import download

    return download(folder, _absolute(root))


def _entry(name: str) -> TaskEntry:
    if name not in TASKS:
        raise ValueError(f"dataset must be one of {', '.join(sorted(TASKS))}, got {name!r}")
    return TASKS[name]


def _absolute(root: str | os.PathLike[str] | None) -> Path:
    return (data_folder() if root is None else Path(root)).expanduser().absolute()


@lru_cache(maxsize=2)
def _loaded(name: str, root: Path, crop: int, verify: bool) -> Task:
    return TASKS[name].load(root, crop, verify)
