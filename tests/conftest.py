"""Fixtures of all tests: small datasets in their true formats on disk, and a folder that has them all."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

Writer = Callable[..., Path]
Random = np.random.Generator


def write_cifar10(root: Path, training: int = 400, test: int = 60, seed: int = 0) -> Path:
    """``root``/cifar-10-batches-py: pickled batches of ``training`` and ``test`` images in all, 10 classes of their
    own mean colors, as many images of each in random order; and the classes' names."""
    random = np.random.default_rng(seed)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"class{c}" for c in range(10)]
    sizes = {f"data_batch_{i}": training // 5 for i in range(1, 6)} | {"test_batch": test}
    labels = random.permutation(np.arange(training) % 10).tolist() + random.permutation(np.arange(test) % 10).tolist()
    colors = random.integers(40, 216, (10, 3, 1))
    for name, size in sizes.items():
        own, labels = labels[:size], labels[size:]
        pixels = colors[own] + random.integers(-40, 40, (size, 3, 1024))
        batch = {
            "batch_label": name,
            "labels": own,
            "data": pixels.astype(np.uint8).reshape(size, 3072),
            "filenames": [f"{names[c]}_{i:06d}.png" for i, c in enumerate(own)],
        }
        _pickle(folder / name, batch)
    _pickle(folder / "batches.meta", {"num_cases_per_batch": training // 5, "label_names": names, "num_vis": 3072})
    return folder


def write_fashion_mnist(root: Path, training: int = 200, test: int = 30, seed: int = 0) -> Path:
    """``root``/FashionMNIST/raw: the four IDX files of ``training`` and ``test`` gray images, 10 classes of their own
    mean gray, as many images of each in random order."""
    random = np.random.default_rng(seed)
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for split, count in (("train", training), ("t10k", test)):
        labels = random.permutation(np.arange(count) % 10).astype(np.uint8)
        pixels = (20 * labels[:, None, None] + random.integers(0, 60, (count, 28, 28))).astype(np.uint8)
        # a magic number (0, 0, type, dimensions), the sizes as big-endian integers of 32 bits, the content
        for kind, content in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, content.ndim]) + np.array(content.shape, dtype=">i4").tobytes()
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + content.tobytes())
    return folder.parent


def write_pet(root: Path, test: int = 2, seed: int = 0) -> Path:
    """``root``/oxford-iiit-pet: 37 classes of 10 to 14 trainval and ``test`` test images, JPEGs that are not square."""
    random = np.random.default_rng(seed)
    folder = root / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for split, counts in (("trainval", [10 + c % 5 for c in range(37)]), ("test", [test] * 37)):
        lines = []
        for c, count in enumerate(counts):
            for i in range(count):
                name = f"Some_Breed{c:02d}_{i + (split == 'test') * 100}"
                _photograph(folder / "images" / f"{name}.jpg", c / 37, random)
                # name, class from 1, cat or dog, number of the breed among cats or dogs
                lines.append(f"{name} {c + 1} {1 + c % 2} {c // 2 + 1}\n")
        (folder / "annotations" / f"{split}.txt").write_text("".join(lines))
    return folder


def write_flowers(root: Path, training: int = 5, test: int = 1, seed: int = 0) -> Path:
    """``root``/flowers-102: 102 classes of so many images, their numbers in random order, and the two .mat files."""
    random = np.random.default_rng(seed)
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    numbers = random.permutation(102 * (training + 1 + test)) + 1
    classes = np.zeros(len(numbers), dtype=np.uint8)
    ids: dict[str, list[int]] = {"trnid": [], "valid": [], "tstid": []}
    taken = iter(numbers.tolist())
    for split, count in (("trnid", training), ("valid", 1), ("tstid", test)):
        for c in range(102):
            for number in (next(taken) for _ in range(count)):
                ids[split].append(number)
                classes[number - 1] = c + 1
                _photograph(folder / "jpg" / f"image_{number:05d}.jpg", c / 102, random)
    savemat(folder / "imagelabels.mat", {"labels": classes[None]})
    savemat(folder / "setid.mat", {split: np.array([numbers], dtype=np.uint16) for split, numbers in ids.items()})
    return folder


def _pickle(path: Path, content: dict[str, Any]) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=2)


def _photograph(path: Path, hue: float, random: Random) -> None:
    """A JPEG of that hue under soft blotches, from 24 to 48 pixels a side."""
    size = (int(random.integers(24, 49)), int(random.integers(24, 49)))
    color = Image.new("HSV", (1, 1), (int(255 * hue), 200, 160)).convert("RGB").getpixel((0, 0))
    blotches = np.clip(np.array(color) + random.integers(-50, 50, (4, 5, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


@pytest.fixture(scope="session")
def cifar10_writer() -> Writer:
    """`write_cifar10`, for tests that need files of their own."""
    return write_cifar10


@pytest.fixture(scope="session")
def pet_writer() -> Writer:
    """`write_pet`."""
    return write_pet


@pytest.fixture(scope="session")
def flowers_writer() -> Writer:
    """`write_flowers`."""
    return write_flowers


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small CIFAR-10, Fashion-MNIST, Oxford-IIIT_Pet and Flowers-102, read with ``verify=False``.

    It is not to be changed. Pools: 400 images (40 a class over 5 batches); 200 (20 a class); 370 (10 a class of the 10
    to 14 there are); 510 (5 a class).
    """
    root = tmp_path_factory.mktemp("data")
    write_cifar10(root)
    write_fashion_mnist(root)
    write_pet(root)
    write_flowers(root)
    return root
