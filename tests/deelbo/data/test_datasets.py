"""Tests of splits, normalization, augmentation and the embedded digits, against scikit-learn, numpy and loops."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from deelbo.data import TASKS, Geometry, Images, ImageTransform, Normalization, Task, load_task
from deelbo.data.digits import load_uci
from deelbo.data.splits import check_size


@pytest.mark.parametrize(
    ("n", "pool", "words"),
    [
        (700, 600, "n = 700 is larger than the pool of 600"),
        (105, 600, "n = 105 is not a multiple of the 10 classes.*try 100"),
        (3, 600, "n = 3 is not a multiple of the 10 classes.*try 50"),
        (40, 600, "n = 40 leaves 8 validation examples for 10 classes: choose n >= 50"),
        (0, 600, "choose n >= 50"),
        (49, 49, "n = 49 leaves 9 validation examples"),
    ],
)
def test_impossible_sizes_are_refused(n: int, pool: int, words: str) -> None:
    """An N that is too large, too small or not a multiple of the classes is refused with one that works."""
    with pytest.raises(ValueError, match=words):
        check_size(n, pool, num_classes=10)


@pytest.mark.parametrize(("n", "pool"), [(50, 600), (600, 600), (597, 597)])
def test_possible_sizes(n: int, pool: int) -> None:
    """The smallest size is accepted, and so is the whole pool even if it is not a multiple of the classes."""
    check_size(n, pool, num_classes=10)


@pytest.fixture
def task(toy_images: Callable[[int, int], Images]) -> Task:
    return Task(
        "toy",
        pool=toy_images(200, 1),
        test=toy_images(40, 2),
        transform=ImageTransform(Geometry(side=4, crop=4, pad=1)),
    )


def test_a_task_splits_its_pool(task: Task) -> None:
    """Training and validation images together are the N images that a run without validation trains on."""
    whole, parts = task.split(80, 5, validation=False), task.split(80, 5, validation=True)
    assert whole.validation is None
    assert parts.validation is not None
    assert (len(whole.train), len(parts.train), len(parts.validation)) == (80, 64, 16)
    together = torch.cat([parts.train.pixels, parts.validation.pixels]).flatten(1).tolist()
    assert sorted(together) == sorted(whole.train.pixels.flatten(1).tolist())
    assert torch.equal(parts.transform.normalization.mean, Normalization.of(parts.train).mean)
    assert whole.test is parts.test is task.test


def test_normalization_against_numpy() -> None:
    """Mean and std are the averages over images of each image's own channel mean and std, of pixels in [0, 1]."""
    pixels = torch.randint(0, 256, (6, 3, 5, 4), dtype=torch.uint8)
    pixels[0] //= 4
    scaled = pixels.numpy().astype(np.float64) / 255
    mean = np.mean([[channel.mean() for channel in image] for image in scaled], axis=0)
    std = np.mean([[channel.std(ddof=1) for channel in image] for image in scaled], axis=0)
    normalize = Normalization.of(Images(pixels, torch.zeros(6, dtype=torch.int64), 1))
    np.testing.assert_allclose(normalize.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(normalize.std, std, rtol=1e-5)
    expected = (scaled - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(normalize(pixels), expected, rtol=1e-4, atol=1e-5)
    assert normalize(pixels).dtype == torch.float32


def test_blank_images_can_be_normalized() -> None:
    """Images without contrast do not cause a division by zero."""
    images = Images(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), 1)
    assert torch.isfinite(Normalization.of(images)(images.pixels)).all()


def test_mnist_digits() -> None:
    """The embedded task has 4,000 and 1,000 distinct digits, classes equal in number, uint8 of 16x16."""
    task, entry = load_task("mnist-digits"), TASKS["mnist-digits"]
    assert (len(task.pool), len(task.test)) == (4000, 1000) == (entry.pool_size, entry.test_size)
    assert (entry.channels, entry.image_size, task.pool_size) == (1, 16, 4000)
    assert task.pool.labels.bincount().tolist() == [400] * 10
    assert task.test.labels.bincount().tolist() == [100] * 10
    assert task.pool.num_classes == entry.num_classes == 10
    for images in (task.pool, task.test):
        assert images.pixels.dtype == torch.uint8
        assert images.pixels.shape[1:] == (1, 16, 16)
        assert images.labels.dtype == torch.int64
    both = {bytes(image) for images in (task.pool, task.test) for image in images.pixels.flatten(1).numpy()}
    assert len(both) == 5000
    assert load_task("mnist-digits") is task
    assert load_task("mnist-digits", "/a/folder", image_size=16, verify=False) is task


def test_uci_digits() -> None:
    """The source digits are 1,797 images of 16x16 that use the whole range of grey."""
    images = load_uci(16)
    assert images.pixels.shape == (1797, 1, 16, 16)
    assert (images.pixels.dtype, int(images.pixels.min()), int(images.pixels.max())) == (torch.uint8, 0, 255)
    assert set(images.labels.tolist()) == set(range(10))
