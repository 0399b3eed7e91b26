"""Published datasets from their official files, read and downloaded with torchvision's help.

Nothing that the files contain is executed, and no image outside of their folders is read. `download` is the only place
of the library that uses the network. torchvision.datasets takes seconds to import, so this module is imported where
data are read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from deelbo.data.cifar_pickle import read_batch, read_pickle
from deelbo.data.dataset import Task
from deelbo.data.decoding import Listing, load_decoded
from deelbo.data.images import Geometry, Images, ImageTransform, resize_side
from deelbo.data.integrity import (
    CIFAR10,
    FASHION_MNIST,
    FLOWERS,
    PET,
    DataError,
    DatasetFiles,
    as_data_error,
)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# torchvision has the sums of the archives alone; these are of their contents
FASHION_MNIST_MD5 = (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)
IMAGE_FOLDERS = {PET.name: "images", FLOWERS.name: "jpg"}
READERS: dict[str, Any] = {
    CIFAR10.name: datasets.CIFAR10,
    FASHION_MNIST.name: datasets.FashionMNIST,
    PET.name: datasets.OxfordIIITPet,
    FLOWERS.name: datasets.Flowers102,
}


def _reader(name: str, is_complete: Callable[[str | Path], bool]) -> Any:
    """Return torchvision's class with another check than its own, which accepts half-unpacked folders.

    Fashion-MNIST's files of old versions of torchvision (``processed/*.pt``) are not read: they have no checksums.
    """

    def check(dataset: Any) -> bool:
        return is_complete(dataset.root)

    reader = READERS[name]
    checks = {"_check_exists": check, "_check_integrity": check, "_check_legacy_exist": lambda _: False}
    return type(reader.__name__, (reader,), checks)  # torchvision names Fashion-MNIST's folder after the class


def load(files: DatasetFiles, root: Path, image_size: int, verify: bool, images_per_class: int | None = None) -> Task:
    """Read a dataset; the arguments are those of `deelbo.data.load_task` and `Task`.

    CIFAR-10 and Fashion-MNIST are stored in their own size and resized on the device; the others are stored resized.
    Half of the training images are mirrored, also Fashion-MNIST's, as its authors' table of results calls standard.
    """
    side = resize_side(image_size)
    if files.name == CIFAR10.name:
        pool, test = read_cifar10(files, root, verify)
        classes: tuple[str, ...] = CIFAR10_CLASSES
    elif files.name == FASHION_MNIST.name:
        pool, test = read_fashion_mnist(files, root, verify)
        classes = tuple(datasets.FashionMNIST.classes)
    else:
        listing = list_images(files, root, verify)
        classes = tuple(datasets.Flowers102.classes) if files.name == FLOWERS.name else _breeds(listing)
        decoded = load_decoded(listing, side, files.name, root, root / files.folder)
        labels = (listing.training_labels, listing.test_labels)
        pool, test = (Images(x, torch.tensor(y), files.num_classes) for x, y in zip(decoded, labels, strict=True))
    transform = ImageTransform(Geometry(side, image_size, flip=True))
    return Task(files.name, pool, test, transform, images_per_class, classes=classes)


def _breeds(listing: Listing) -> tuple[str, ...]:
    """Return Pet's classes in the order of their labels; an image's name is that of its class and a number."""
    names = {
        label: file.stem.rpartition("_")[0]
        for file, label in zip(listing.training, listing.training_labels, strict=True)
    }
    return tuple(names[label] for label in sorted(names))


def check(files: DatasetFiles, root: Path, verify: bool) -> None:
    """Raise what `load` would raise, except for images that cannot be decoded. Takes about a second."""
    read = {CIFAR10.name: read_cifar10, FASHION_MNIST.name: read_fashion_mnist}.get(files.name, list_images)
    read(files, root, verify)


def download(files: DatasetFiles, root: Path) -> Path:
    """Download what is missing of a dataset, check it, and return its folder.

    An archive that is complete is unpacked and not downloaded again.
    """

    def is_complete(root: str | Path) -> bool:
        try:
            check(files, Path(root), verify=True)
        except DataError:
            return False
        return True

    remedy = (
        f"run it where there is a network, or bring {files.folder} from a machine that has it and set `data` /"
        " $DEELBO_DATA to the folder that holds it"
    )
    with as_data_error(f"{files.name} could not be downloaded to {root}", remedy):
        root.mkdir(parents=True, exist_ok=True)
        _reader(files.name, is_complete)(str(root), download=True)
    check(files, root, verify=True)
    return root / files.folder


def checksums(files: DatasetFiles) -> dict[str, str]:
    """Return the official MD5 sums of unpacked files, by their names below the dataset's folder."""
    if files.name == CIFAR10.name:
        meta = datasets.CIFAR10.meta
        return dict([*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list, (meta["filename"], meta["md5"])])
    if files.name == FASHION_MNIST.name:
        return dict(zip(files.files, FASHION_MNIST_MD5, strict=True))
    if files.name == FLOWERS.name:
        return dict(datasets.Flowers102._file_dict[key] for key in ("label", "setid"))
    return {}


def read_cifar10(files: DatasetFiles, root: Path, verify: bool) -> tuple[Images, Images]:
    """Return training images in the order of the files, and test images; uint8 (n, 3, 32, 32). See `load`."""
    folder = root / files.folder
    with as_data_error(f"{files.name} cannot be read in {folder}", files.remedy):
        files.check_files(root, checksums(files) if verify else {})
        parts = []
        for names in (datasets.CIFAR10.train_list, datasets.CIFAR10.test_list):
            batches = [read_batch(folder / name) for name, _ in names]
            pixels = np.concatenate([pixels for pixels, _ in batches])
            labels = [label for _, labels in batches for label in labels]
            if pixels.dtype != np.uint8 or len(pixels) != len(labels):
                found = f"{len(labels)} labels and {len(pixels)} images of {pixels.dtype}"
                raise files.error(f"cannot be read in {folder}: {found}, expected one label an image, uint8")
            parts.append((pixels.reshape(-1, 3, 32, 32), labels))
        if "label_names" not in read_pickle(folder / datasets.CIFAR10.meta["filename"]):
            raise KeyError("label_names")
        files.check_labels(root, parts[0][1], parts[1][1], verify)
    pool, test = (Images(torch.from_numpy(pixels), torch.tensor(labels), files.num_classes) for pixels, labels in parts)
    return pool, test


def read_fashion_mnist(files: DatasetFiles, root: Path, verify: bool) -> tuple[Images, Images]:
    """Return training and test images in the order of the files; uint8 (n, 3, 28, 28), gray. See `load`."""
    folder = root / files.folder
    with as_data_error(f"{files.name} cannot be read in {folder}", files.remedy):
        files.check_files(root, checksums(files) if verify else {})
        reader = _reader(files.name, lambda _: True)
        parts = [reader(str(root), train) for train in (True, False)]
        for part in parts:
            if part.data.shape != (len(part.targets), 28, 28):
                found = f"{len(part.targets)} labels and images {tuple(part.data.shape)}"
                raise files.error(f"cannot be read in {folder}: {found}, expected one label an image of (28, 28)")
        files.check_labels(root, parts[0].targets.tolist(), parts[1].targets.tolist(), verify)
    # the three channels are one in memory
    pool, test = (Images(part.data[:, None].expand(-1, 3, -1, -1), part.targets, files.num_classes) for part in parts)
    return pool, test


def list_images(files: DatasetFiles, root: Path, verify: bool) -> Listing:
    """Return the image files and labels of Pet or Flowers-102 in the official order. All files exist. See `load`."""
    with as_data_error(f"{files.name} cannot be read in {root / files.folder}", files.remedy):
        files.check_files(root, checksums(files) if verify else {})
        reader = _reader(files.name, lambda _: True)
        listed = []
        for split in ("trainval" if files.name == PET.name else "train", "test"):
            dataset = reader(str(root), split)
            listed += [dataset._images if files.name == PET.name else dataset._image_files, dataset._labels]
        listing = Listing(*listed)
        _check_listing(files, root, listing)
        files.check_labels(root, listing.training_labels, listing.test_labels, verify)
        files.check_images(root, [*listing.training, *listing.test])
    return listing


def _check_listing(files: DatasetFiles, root: Path, listing: Listing) -> None:
    """Raise DataError for a label that is no whole number or a name with a path, which could be that of any file."""
    images = root / files.folder / IMAGE_FOLDERS[files.name]
    for file in (*listing.training, *listing.test):
        if file.parent != images or not file.name.isprintable() or "\\" in file.name:
            found = f"its lists name {str(file)[-60:]!r}, expected names of images in {images}"
            raise files.error(f"cannot be read in {root / files.folder}: {found}")
    for label in (*listing.training_labels, *listing.test_labels):
        if type(label) is not int:
            found = f"label {str(label)[:60]!r}, expected a whole number"
            raise files.error(f"cannot be read in {root / files.folder}: {found}")
