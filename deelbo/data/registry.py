"""Datasets by name, their sizes, and functions to find, check, download and load them. This module needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deelbo.data.folders import ImageSource, list_images, read_images
from deelbo.data.integrity import CIFAR10, FASHION_MNIST, FLOWERS, PET, DatasetFiles
from deelbo.data.texts import TextSource, check_texts, list_texts, read_texts
from deelbo.paths import expand_user
from deelbo.plugins import Registry
from deelbo.plugins import describe as describe_error

if TYPE_CHECKING:
    from deelbo.data.dataset import Task
    from deelbo.data.listing import ExampleList

DIGIT_SIZE, PHOTO_SIZE = 16, 224  # pixels
PET_IMAGES_PER_CLASS = 93  # in the smallest class of the official trainval split
Source = ImageSource | TextSource
"""Where a dataset of the user's own is."""


@dataclass(frozen=True)
class TaskEntry:
    """A dataset's sizes, from which a configuration is checked without reading an image."""

    load: Callable[[Path, int, bool], Task]  # given (folder of the datasets, side of the crop, whether to verify)
    pool_size: int  # the largest N
    test_size: int  # number of test images
    num_classes: int
    channels: int  # 1: grey, 3: RGB
    image_size: int  # side in pixels of what the network sees by default; 0 without images
    files: DatasetFiles | None = None  # None: the images come with an installed package, or are the user's own
    smallest_class: int | None = None  # training images of it, where classes may have different sizes
    others: tuple[Path, ...] = ()  # files beside the images that are left out
    inputs: str = "images"  # kind of data


def _mnist_digits(_root: Path, image_size: int, _verify: bool) -> Task:
    from deelbo.data.dataset import Task
    from deelbo.data.digits import load_mnist
    from deelbo.data.images import Geometry, ImageTransform

    pool, test = load_mnist(DIGIT_SIZE)
    return Task("mnist-digits", pool, test, ImageTransform(Geometry(side=DIGIT_SIZE, crop=image_size, pad=1)))


def _published(files: DatasetFiles, images_per_class: int | None = None) -> TaskEntry:
    def load(root: Path, image_size: int, verify: bool) -> Task:
        from deelbo.data import torchvision_datasets  # takes seconds to import

        return torchvision_datasets.load(files, root, image_size, verify, images_per_class)

    pool_size = files.training_images if images_per_class is None else images_per_class * files.num_classes
    return TaskEntry(
        load, pool_size, files.test_images, files.num_classes, channels=3, image_size=PHOTO_SIZE, files=files
    )


TASKS = {
    CIFAR10.name: _published(CIFAR10),
    FASHION_MNIST.name: _published(FASHION_MNIST),
    FLOWERS.name: _published(FLOWERS),
    PET.name: _published(PET, PET_IMAGES_PER_CLASS),
    "mnist-digits": TaskEntry(_mnist_digits, 4000, 1000, 10, channels=1, image_size=DIGIT_SIZE),
}


def _find_fault(_name: str, entry: object) -> str | None:
    """Return what is wrong with the entry that a plug-in gives."""
    if not isinstance(entry, TaskEntry):
        return f"it is of the type {type(entry).__name__}, expected deelbo.data.TaskEntry"
    numbers = ("pool_size", "test_size", "num_classes", "channels", "image_size")
    bad = next((name for name in numbers if type(getattr(entry, name)) is not int), None)
    return bad and f"its {bad} is {getattr(entry, bad)!r}, expected a whole number"


DATASETS = Registry("dataset", TASKS, _find_fault)
"""The datasets of `TASKS`, and those of plug-ins."""


def cache_folder() -> Path:
    """Return the folder of pretrained weights and datasets: $DEELBO_CACHE, or ``deelbo`` in the user's cache folder.

    Raises:
        ValueError: none is set, and the user has no home folder.
    """
    if folder := os.environ.get("DEELBO_CACHE"):
        return expand_user(folder)
    try:
        return expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "deelbo"
    except ValueError as error:
        raise ValueError(f"there is no folder for pretrained weights ({error}): set $DEELBO_CACHE to one") from None


def data_folder() -> Path:
    """Return the default folder of the datasets: $DEELBO_DATA, or ``data`` in `cache_folder`."""
    folder = os.environ.get("DEELBO_DATA")
    return expand_user(folder) if folder else cache_folder() / "data"


def source_from(fields: Mapping[str, Any]) -> Source:
    """Return the source that `dataclasses.asdict` and JSON made these fields of."""
    if "text" in fields:
        return TextSource(**{**fields, "text": tuple(fields["text"])})
    return ImageSource(**fields)


def crop_size(name: str, image_size: int | None = None, source: Source | None = None) -> int:
    """Return the side in pixels of what the network sees: the dataset's default, or a possible ``image_size``.

    It is 0 for texts, which have no ``image_size``.
    """
    if isinstance(source, TextSource):
        if image_size is not None:
            raise ValueError(f"image_size = {image_size}, but {name} has texts: leave it out")
        return 0
    default = PHOTO_SIZE if source is not None else DATASETS.find(name).image_size
    if image_size is None:
        return default
    if is_embedded(name, source) and image_size != default:
        expected = f"{default}, the size of its images"
        raise ValueError(f"image_size of {name} must be {expected}, got {image_size}: leave it out")
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}: {default} is usual")
    return image_size


def find_task(
    name: str,
    source: Source | None = None,
    root: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
) -> TaskEntry:
    """Return the sizes of a dataset, with the arguments of `load_task`.

    The user's own images are listed, and not opened except where unreadable ones are to be skipped; own texts are read.

    Raises:
        ValueError: an unknown name, or data that cannot be used; one line.
    """
    if source is None:
        return DATASETS.find(name)
    if isinstance(source, TextSource):
        return _own_texts(name, source)
    return _own_images(name, source, root, image_size)


def _own_images(
    name: str, source: ImageSource, root: str | os.PathLike[str] | None, image_size: int | None
) -> TaskEntry:
    def load(root: Path, image_size: int, _verify: bool) -> Task:
        return read_images(name, source, root, image_size)[0]

    if source.skip_unreadable:
        listed = read_images(name, source, _absolute(root), image_size or PHOTO_SIZE)[1]
    else:
        listed = list_images(name, source)
    return _own_entry(load, listed, channels=3, image_size=PHOTO_SIZE)


def _own_texts(name: str, source: TextSource) -> TaskEntry:
    def load(_root: Path, _image_size: int, _verify: bool) -> Task:
        return read_texts(name, source)

    return _own_entry(load, list_texts(name, source), channels=0, image_size=0)


def _own_entry(
    load: Callable[[Path, int, bool], Task], listed: ExampleList[Any], channels: int, image_size: int
) -> TaskEntry:
    return TaskEntry(
        load,
        pool_size=len(listed.training),
        test_size=len(listed.test),
        num_classes=len(listed.classes),
        channels=channels,
        image_size=image_size,
        smallest_class=listed.smallest_class,
        others=listed.others,
        inputs="text" if listed.kind == "texts" else listed.kind,
    )


def load_task(
    name: str,
    root: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    verify: bool = True,
    source: Source | None = None,
    fresh: bool = False,
) -> Task:
    """Return the named dataset, which is read once per process.

    Args:
        name: a name of `DATASETS`; with a ``source``, any name for it.
        root: the folder of the datasets, and of the cache of decoded images; None: `data_folder`.
        image_size: side of the crop that the network sees, cut from images resized to 256 / 224 of it; None: the
            dataset's default.
        verify: whether the data must be the official ones by checksums and number of images. If not, everything in the
            right format is accepted, such as a small set for a rehearsal. No code in a file is executed either way.
        source: where the user's own images or texts are; None for a dataset of `DATASETS`.
        fresh: whether it is read again, as its files may have changed.

    Raises:
        ValueError: an unknown name, a size that the dataset does not have, or data that are missing, incomplete,
            another version or unreadable; one line.
    """
    crop = crop_size(name, image_size, source)
    embedded = is_embedded(name, source)  # the same for every folder
    load = _load_once.__wrapped__ if fresh else _load_once
    return load(name, Path() if embedded else _absolute(root), crop, embedded or verify, source)


def check_task(
    name: str, root: str | os.PathLike[str] | None = None, verify: bool = True, source: Source | None = None
) -> None:
    """Raise what `load_task` would raise, except for images that cannot be decoded.

    It takes about a second; but a plug-in's dataset is loaded.
    """
    if isinstance(source, TextSource):
        check_texts(name, source)
    elif source is not None:
        list_images(name, source)
    elif name not in TASKS:
        load_task(name, root, verify=verify)
    elif (files := TASKS[name].files) is not None:
        from deelbo.data import torchvision_datasets

        torchvision_datasets.check(files, _absolute(root), verify)


def download_task(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Download what is missing of the named dataset below ``root``, and return its folder.

    Nothing is downloaded for a dataset that comes with an installed package. A failed download raises ValueError.
    """
    if (files := DATASETS.find(name).files) is None:
        return _absolute(root)
    from deelbo.data import torchvision_datasets

    return torchvision_datasets.download(files, _absolute(root))


def is_embedded(name: str, source: Source | None = None) -> bool:
    """Return whether a dataset comes with a package that deelbo needs, so that there is nothing to check or choose."""
    return source is None and name in TASKS and TASKS[name].files is None


def _absolute(root: str | os.PathLike[str] | None) -> Path:
    return (data_folder() if root is None else expand_user(root)).absolute()


@lru_cache(maxsize=2)
def _load_once(name: str, root: Path, crop: int, verify: bool, source: Source | None) -> Task:
    entry = find_task(name, source, root, crop)
    plugin = DATASETS.plugin(name) if source is None else None
    return (
        entry.load(root, crop, verify)
        if plugin is None
        else _load_plugin(f"{plugin}: {name}", entry, root, crop, verify)
    )


def _load_plugin(name: str, entry: TaskEntry, root: Path, crop: int, verify: bool) -> Task:
    """Load a plug-in's dataset; raise ValueError, one line, for whatever it raises, and if it returns no task."""
    from deelbo.data.dataset import Task

    try:
        task: object = entry.load(root, crop, verify)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{name} cannot be loaded ({describe_error(error)}): correct the data or the plug-in"
        ) from error
    if not isinstance(task, Task):
        raise ValueError(f"{name}: load returned {type(task).__name__}, expected deelbo.data.Task: correct the plug-in")
    return task
