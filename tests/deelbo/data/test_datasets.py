"""Tests of splits, normalization, augmentation and the embedded digits, against scikit-learn, numpy and loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from deelbo.data import TASKS, Geometry, Images, Normalization, Task, load_task
from deelbo.data.digits import load_uci
from deelbo.data.splits import check_size, stratified_subset, validation_fifth


@pytest.fixture(scope="module")
def labels() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))


@pytest.mark.parametrize("seed", [1001, 2001])
@pytest.mark.parametrize("n", [50, 70, 100, 590, 600])
def test_splits_are_sklearns(labels: np.ndarray[tuple[int], np.dtype[np.int64]], n: int, seed: int) -> None:
    """The subset and its validation fifth are scikit-learn's stratified train_test_split with the seed."""
    expected = np.arange(600)
    if n < 600:
        expected, _ = train_test_split(np.arange(600), train_size=n, stratify=labels, random_state=seed)
    chosen = stratified_subset(labels, n, seed)
    assert chosen.tolist() == expected.tolist()
    training, validation = validation_fifth(chosen, labels, seed)
    expected_training, expected_validation = train_test_split(
        expected, test_size=int(n / 5), stratify=labels[expected], random_state=seed
    )
    assert training.tolist() == expected_training.tolist()
    assert validation.tolist() == expected_validation.tolist()
    assert len(validation) == int(n / 5)
    assert np.bincount(labels[chosen]).tolist() == [n // 10] * 10
    assert sorted([*training, *validation]) == sorted(chosen)


@pytest.mark.parametrize(
    ("n", "pool", "words"),
    [
        (700, 600, "n = 700 is larger than the pool of 600"),
        (105, 600, "n = 105 is not a multiple of the 10 classes.*try 100"),
        (3, 600, "n = 3 is not a multiple of the 10 classes.*try 50"),
        (40, 600, "n = 40 leaves 8 validation images for 10 classes: choose n >= 50"),
        (0, 600, "choose n >= 50"),
        (49, 49, "n = 49 leaves 9 validation images"),
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
    return Task("toy", pool=toy_images(200, 1), test=toy_images(40, 2), geometry=Geometry(side=4, crop=4, pad=1))


def test_a_task_splits_its_pool(task: Task) -> None:
    """Training and validation images together are the N images that a run without validation trains on."""
    whole, parts = task.split(80, 5, validation=False), task.split(80, 5, validation=True)
    assert whole.validation is None
    assert parts.validation is not None
    assert (len(whole.train), len(parts.train), len(parts.validation)) == (80, 64, 16)
    together = torch.cat([parts.train.pixels, parts.validation.pixels]).flatten(1).tolist()
    assert sorted(together) == sorted(whole.train.pixels.flatten(1).tolist())
    assert torch.equal(parts.normalization.mean, Normalization.of(parts.train).mean)
    assert whole.test is parts.test is task.test


def test_splits_are_repeatable(task: Task) -> None:
    """The same N and seed give the same images in the same order, another seed others."""
    first = task.split(80, 5, validation=True)
    torch.rand(3)
    task.split(40, 6, validation=False)
    again, other = task.split(80, 5, validation=True), task.split(80, 6, validation=True)
    assert torch.equal(first.train.pixels, again.train.pixels)
    assert torch.equal(first.train.labels, again.train.labels)
    assert not torch.equal(first.train.pixels, other.train.pixels)


def test_the_whole_pool_in_order(task: Task) -> None:
    """N equal to the pool gives all images, in order, for every seed."""
    for seed in (1, 2):
        assert torch.equal(task.split(200, seed, validation=False).train.pixels, task.pool.pixels)


def test_a_task_checks_the_size(task: Task) -> None:
    """A task refuses an N that its pool cannot give."""
    with pytest.raises(ValueError, match="larger than the pool of 200"):
        task.split(204, 1, validation=False)


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


@pytest.mark.parametrize("most", [1, 2])
def test_shifts_against_a_loop(most: int) -> None:
    """Each image is shifted by its own offset with zeros moving in, and every offset occurs."""
    pixels = torch.randint(1, 256, (200, 2, 6, 6), dtype=torch.uint8)
    geometry = Geometry(side=6, crop=6, pad=most)
    result = geometry.training(pixels, geometry.draw(200, torch.Generator().manual_seed(1)))
    found = set()
    for image, moved in zip(pixels.numpy(), result.numpy(), strict=True):
        offsets = []
        for down in range(-most, most + 1):
            for across in range(-most, most + 1):
                expected = np.zeros_like(image)
                for row in range(6):
                    for column in range(6):
                        if 0 <= row - down < 6 and 0 <= column - across < 6:
                            expected[:, row, column] = image[:, row - down, column - across]
                if np.array_equal(expected, moved):
                    offsets.append((down, across))
        assert len(offsets) == 1
        found.add(offsets[0])
    assert len(found) == (2 * most + 1) ** 2
    assert result.dtype == torch.uint8


def test_no_shift_is_the_same_images() -> None:
    """A shift of at most 0 pixels changes nothing."""
    pixels = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    geometry = Geometry(side=4, crop=4)
    assert torch.equal(geometry.training(pixels, geometry.draw(3, torch.Generator())), pixels)


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


def test_an_unknown_task_is_refused() -> None:
    """An unknown dataset raises a ValueError that lists the known ones."""
    with pytest.raises(ValueError, match="one of CIFAR-10, Flowers-102, Oxford-IIIT_Pet, mnist-digits, got 'cifar'"):
        load_task("cifar")
