"""Tests of the published datasets with small folders in their official formats."""

import gzip
import hashlib
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2 as transforms

from deelbo.data import (
    TASKS,
    Geometry,
    Images,
    ImageTransform,
    Task,
    check_task,
    crop_size,
    data_folder,
    download_task,
    load_task,
)
from deelbo.data.images import resize_side

NAMES = ["CIFAR-10", "Fashion-MNIST", "Oxford-IIIT_Pet", "Flowers-102"]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def cifar10(data_root: Path) -> Task:
    return load_task("CIFAR-10", data_root, verify=False)


@pytest.fixture(scope="module")
def fashion_mnist(data_root: Path) -> Task:
    return load_task("Fashion-MNIST", data_root, image_size=64, verify=False)


@pytest.fixture(scope="module")
def pet(data_root: Path) -> Task:
    return load_task("Oxford-IIIT_Pet", data_root, image_size=32, verify=False)


@pytest.fixture(scope="module")
def flowers(data_root: Path) -> Task:
    return load_task("Flowers-102", data_root, image_size=32, verify=False)


def resized(path: Path, side: int) -> Tensor:
    """Return the file as torchvision's Resize and conversion make it."""
    to_tensor = transforms.Compose([transforms.Resize((side, side)), transforms.PILToTensor()])
    with Image.open(path) as image:
        pixels: Tensor = to_tensor(image.convert("RGB"))
    return pixels


def test_the_names_of_the_labels(cifar10: Task, fashion_mnist: Task, pet: Task, flowers: Task) -> None:
    """Published datasets have the names of their classes, in the order of the labels; digits are their own names."""
    assert (cifar10.class_names[3], len(cifar10.class_names)) == ("cat", 10)
    assert (fashion_mnist.class_names[6], len(fashion_mnist.class_names)) == ("Shirt", 10)
    assert pet.class_names == tuple(f"Some_Breed{c:02d}" for c in range(37))
    assert (flowers.class_names[0], len(flowers.class_names)) == ("pink primrose", 102)
    assert load_task("mnist-digits").class_names == tuple("0123456789")


def test_cifar10_is_read_from_its_batches(data_root: Path, cifar10: Task) -> None:
    """CIFAR-10 is its five batches in order and the test batch, uint8 of 32x32 with red first."""
    names = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
    for images, files in zip((cifar10.pool, cifar10.test), names, strict=True):
        batches = [pickle.loads((data_root / "cifar-10-batches-py" / file).read_bytes()) for file in files]  # noqa: S301
        assert images.labels.tolist() == [label for batch in batches for label in batch["labels"]]
        assert images.labels.dtype == torch.int64
        planes = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        assert images.pixels.dtype == torch.uint8
        np.testing.assert_array_equal(images.pixels.numpy(), planes)
    assert (len(cifar10.pool), len(cifar10.test), cifar10.pool.num_classes) == (400, 60, 10)
    assert cifar10.transform.geometry == Geometry(side=256, crop=224, flip=True)
    assert cifar10.images_per_class is None


def test_fashion_mnist_is_read_from_its_idx_files(data_root: Path, fashion_mnist: Task) -> None:
    """Fashion-MNIST is its images in order, uint8 of 28x28, the gray repeated in three channels."""
    folder = data_root / "FashionMNIST" / "raw"
    for images, split in ((fashion_mnist.pool, "train"), (fashion_mnist.test, "t10k")):
        labels = np.fromfile(folder / f"{split}-labels-idx1-ubyte", dtype=np.uint8)[8:]
        gray = np.fromfile(folder / f"{split}-images-idx3-ubyte", dtype=np.uint8)[16:].reshape(-1, 1, 28, 28)
        assert images.labels.tolist() == labels.tolist()
        assert (images.labels.dtype, images.pixels.dtype) == (torch.int64, torch.uint8)
        np.testing.assert_array_equal(images.pixels.numpy(), np.repeat(gray, 3, axis=1))
    assert (len(fashion_mnist.pool), len(fashion_mnist.test), fashion_mnist.pool.num_classes) == (200, 30, 10)
    assert fashion_mnist.transform.geometry == Geometry(side=73, crop=64, flip=True)
    assert fashion_mnist.images_per_class is None


def test_old_files_of_fashion_mnist_are_not_read(data_root: Path, tmp_path: Path) -> None:
    """Files that old versions of torchvision made, which torchvision would prefer, are not read."""
    shutil.copytree(data_root / "FashionMNIST", tmp_path / "FashionMNIST")
    processed = tmp_path / "FashionMNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(10, 28, 28, dtype=torch.uint8), torch.arange(10)), processed / name)
    assert load_task("Fashion-MNIST", tmp_path, verify=False).pool_size == 200


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_official_fashion_mnist(tmp_path: Path) -> None:
    """The checksums are of the contents of the archives whose checksums torchvision has; their images are read.

    Debian packed the archives again without the file's name and its time, which are put back here.
    """
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for archive, official in datasets.FashionMNIST.resources:
        packed, name = (DEBIAN / archive).read_bytes(), archive.removesuffix(".gz")
        changed = 1504176606 if name.startswith("train") else 1504176627  # seconds since 1970
        header = packed[:3] + b"\x08" + changed.to_bytes(4, "little") + b"\0\x03" + name.encode() + b"\0"
        assert hashlib.md5(header + packed[10:], usedforsecurity=False).hexdigest() == official
        (raw / name).write_bytes(gzip.decompress(packed))
    task = load_task("Fashion-MNIST", tmp_path, image_size=64)
    for images, count in ((task.pool, 60_000), (task.test, 10_000)):
        assert images.pixels.shape == (count, 3, 28, 28)
        assert images.labels.bincount().tolist() == [count // 10] * 10
    assert [task.class_names[label] for label in task.pool.labels[:3]] == ["Ankle boot", "T-shirt/top", "T-shirt/top"]


def test_pet_is_read_from_its_lists(data_root: Path, pet: Task) -> None:
    """Pet is the images of trainval.txt and test.txt in order, resized by torchvision, labels from 0."""
    folder = data_root / "oxford-iiit-pet"
    for images, split in ((pet.pool, "trainval"), (pet.test, "test")):
        lines = [line.split() for line in (folder / "annotations" / f"{split}.txt").read_text().splitlines()]
        assert images.labels.tolist() == [int(label) - 1 for _, label, _, _ in lines]
        expected = torch.stack([resized(folder / "images" / f"{name}.jpg", 37) for name, *_ in lines])
        assert torch.equal(images.pixels, expected)
    assert (len(pet.pool), len(pet.test), pet.pool.num_classes) == (441, 74, 37)
    assert pet.transform.geometry == Geometry(side=37, crop=32, flip=True)
    assert (pet.images_per_class, pet.pool_size) == (93, 370)  # 37 times the smallest class


def test_flowers_are_read_from_the_mat_files(data_root: Path, flowers: Task) -> None:
    """Flowers-102 is the images of trnid and tstid in order, with the labels of imagelabels.mat from 0."""
    folder = data_root / "flowers-102"
    ids, labels = loadmat(folder / "setid.mat"), loadmat(folder / "imagelabels.mat")["labels"][0]
    for images, split in ((flowers.pool, "trnid"), (flowers.test, "tstid")):
        numbers = ids[split][0].tolist()
        assert images.labels.tolist() == [int(labels[number - 1]) - 1 for number in numbers]
        expected = torch.stack([resized(folder / "jpg" / f"image_{number:05d}.jpg", 37) for number in numbers])
        assert torch.equal(images.pixels, expected)
    assert (len(flowers.pool), len(flowers.test), flowers.pool.num_classes) == (510, 102, 102)
    assert flowers.pool_size == 510


@pytest.mark.parametrize("name", NAMES)
def test_a_split_can_be_trained_on(name: str, data_root: Path) -> None:
    """A split of each dataset gives distinct training and evaluation batches of the right size."""
    task = load_task(name, data_root, image_size=32, verify=False)
    split = task.split(task.pool_size, 1001, validation=True)
    plan = split.transform.geometry.draw(8, torch.Generator().manual_seed(0))
    for batch in (
        split.transform.geometry.training(split.train.pixels[:8], plan),
        split.transform.geometry.evaluation(split.test.pixels[:8]),
    ):
        x = split.transform.normalization(batch)
        assert (x.shape, x.dtype) == ((8, 3, 32, 32), torch.float32)
        assert len(torch.unique(x.flatten(1).mean(1))) == 8
    assert split.validation is not None
    assert len(split.train) + len(split.validation) == task.pool_size


@pytest.mark.parametrize(
    ("name", "pool", "trained", "test", "classes"),
    [
        ("CIFAR-10", 50_000, 50_000, 10_000, 10),
        ("Fashion-MNIST", 60_000, 60_000, 10_000, 10),
        ("Oxford-IIIT_Pet", 3441, 3680, 3669, 37),
        ("Flowers-102", 1020, 1020, 6149, 102),
    ],
)
def test_sizes_known_without_data(name: str, pool: int, trained: int, test: int, classes: int) -> None:
    """The registry has the official sizes, and the network's input of 224x224 RGB."""
    entry = TASKS[name]
    assert (entry.pool_size, entry.test_size, entry.num_classes) == (pool, test, classes)
    assert (entry.image_size, entry.channels) == (224, 3)
    assert entry.files is not None
    assert (entry.files.training_images, entry.files.test_images) == (trained, test)


@pytest.mark.parametrize(("crop", "side"), [(224, 256), (32, 37), (64, 73), (28, 32), (1, 1)])
def test_images_are_resized_in_proportion(crop: int, side: int) -> None:
    """The side is 256 for a crop of 224, and in proportion, rounded, for others."""
    assert resize_side(crop) == side


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("mnist-digits", 32, "image_size of mnist-digits must be 16, the size of its images, got 32: leave it out"),
        ("CIFAR-10", 0, "image_size must be at least 1 pixel, got 0: 224 is usual"),
        ("cifar", None, "dataset must be one of CIFAR-10, .*, got 'cifar'"),
    ],
)
def test_impossible_image_sizes(name: str, size: int | None, words: str) -> None:
    """An unknown dataset and a size that a dataset does not have raise one line before images are read."""
    for ask in (crop_size, lambda name, size: load_task(name, "/nowhere", size)):
        with pytest.raises(ValueError, match=f"^{words}$"):
            ask(name, size)


def test_possible_image_sizes() -> None:
    """The default size of a dataset is used if none is given."""
    sizes = {("CIFAR-10", None): 224, ("mnist-digits", None): 16, ("mnist-digits", 16): 16, ("Flowers-102", 64): 64}
    assert {asked: crop_size(*asked) for asked in sizes} == sizes


def test_a_task_is_read_once(data_root: Path) -> None:
    """The same folder, size and verification give the same object; another size gives another."""
    task = load_task("CIFAR-10", data_root, verify=False)
    assert load_task("CIFAR-10", str(data_root), image_size=224, verify=False) is task
    assert load_task("CIFAR-10", data_root, image_size=32, verify=False) is not task


def test_the_folder_of_the_datasets(monkeypatch: pytest.MonkeyPatch, data_root: Path, tmp_path: Path) -> None:
    """The default root is $DEELBO_DATA, else data in $DEELBO_CACHE, else in deelbo of the user's cache."""
    for name in ("DEELBO_DATA", "DEELBO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "deelbo" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert data_folder() == Path("/xdg/deelbo/data")
    monkeypatch.setenv("DEELBO_CACHE", "/cache")
    assert data_folder() == Path("/cache/data")
    with pytest.raises(ValueError, match="/cache/data has no folder cifar-10-batches-py"):
        check_task("CIFAR-10")
    monkeypatch.setenv("DEELBO_DATA", str(data_root))
    assert data_folder() == data_root
    check_task("CIFAR-10", verify=False)


def test_the_embedded_task_needs_no_folder(tmp_path: Path) -> None:
    """The embedded task needs no check and no download, and creates no folder."""
    check_task("mnist-digits", tmp_path / "none")
    assert download_task("mnist-digits", tmp_path / "none") == tmp_path / "none"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("size", [(6, 1, 2, 2), (50, 3, 64, 64)])
def test_fingerprints_of_different_data_differ(monkeypatch: pytest.MonkeyPatch, size: tuple[int, ...]) -> None:
    """Other labels, order, pixels of any image or test images change the fingerprint, equal data do not."""
    monkeypatch.setattr("deelbo.data.dataset.HASHED_NUMBERS", 100_000)
    pixels, labels = torch.randint(0, 256, size, dtype=torch.uint8), torch.arange(size[0]) % 3

    def task(pixels: Tensor = pixels, labels: Tensor = labels, test: Tensor = pixels) -> Task:
        return Task("any", Images(pixels, labels, 3), Images(test, labels, 3), ImageTransform(Geometry(2, 2)))

    other = pixels.clone()
    other[4] = 255 - other[4]
    varied = [
        task(),
        task(labels=labels.flip(0)),
        task(pixels=pixels.flip(0)),
        task(pixels=other),
        task(test=other),
        task(pixels=pixels.transpose(1, 2)),
    ]
    prints = [made.fingerprint for made in varied]
    assert len(set(prints)) == len(varied)
    assert all(re.fullmatch("[0-9a-f]{16}", made) for made in prints)
    assert task(pixels=pixels.clone()).fingerprint == prints[0]
    assert replace(task(), name="b", transform=ImageTransform(Geometry(9, 9))).fingerprint == prints[0]
