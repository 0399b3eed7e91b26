"""Tests of the protocol's splits of the real datasets, recomputed with numpy and scikit-learn only."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from deelbo.data import Geometry, Images, ImageTransform, Split, Task
from deelbo.data.splits import balanced_draw

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
SEEDS = [1001, 2001, 3001]


def published(labels: Indices, n: int, seed: int, a_class: int | None = None) -> tuple[Indices, Indices, Indices]:
    """Return all N indices, the training indices and the validation indices."""
    pool = np.arange(len(labels))
    if a_class is not None:
        random = np.random.RandomState(seed)
        draws = [random.choice(np.where(labels == c)[0], a_class, replace=False) for c in np.unique(labels)]
        pool = np.concatenate(draws)
    if n < len(pool):
        pool = train_test_split(pool, train_size=n, stratify=labels[pool], random_state=seed)[0]
    training, validation = train_test_split(pool, test_size=int(n / 5), stratify=labels[pool], random_state=seed)
    return pool, training, validation


def numbered(labels: Indices, num_classes: int, images_per_class: int | None = None) -> Task:
    """Return a task whose images have two pixels that encode their index."""
    index = torch.arange(len(labels))
    pixels = torch.stack([index // 256, index % 256], 1).to(torch.uint8).view(-1, 1, 1, 2)
    images = Images(pixels, torch.from_numpy(labels), num_classes)
    return Task("numbered", images, images.take(index[:1]), ImageTransform(Geometry(1, 1)), images_per_class)


def indices(images: Images | None) -> list[int]:
    assert images is not None
    return [256 * high + low for high, low in images.pixels.flatten(1).tolist()]


def check(task: Task, split: Split, parts: Split, expected: tuple[Indices, Indices, Indices]) -> None:
    assert indices(split.train) == expected[0].tolist()
    assert split.validation is None
    assert indices(parts.train) == expected[1].tolist()
    assert indices(parts.validation) == expected[2].tolist()
    for images in (split.train, parts.train, parts.validation):
        assert images is not None
        assert torch.equal(images.labels, task.pool.labels[indices(images)])


@pytest.fixture(scope="module")
def cifar10_labels() -> Indices:
    """Return 50,000 labels in random order, 5,000 of each class."""
    return np.random.default_rng(3).permutation(np.repeat(np.arange(10), 5000))


@pytest.fixture(scope="module")
def pet_labels() -> Indices:
    """Return the 3,680 labels of 37 sorted classes of the official trainval split, 93 to 100 of each."""
    counts = np.array([93, 96, *[100] * 29, *[99] * 4, 97, 98])
    assert counts.sum() == 3680
    return np.repeat(np.arange(37), counts)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [50, 100, 1000, 10_000, 49_990, 50_000])
def test_splits_of_cifar10(cifar10_labels: Indices, n: int, seed: int) -> None:
    """CIFAR-10's N images are a stratified subset of all 50,000, or all in order, with a validation fifth."""
    task = numbered(cifar10_labels, 10)
    expected = published(cifar10_labels, n, seed)
    check(task, task.split(n, seed, validation=False), task.split(n, seed, validation=True), expected)
    assert task.pool_size == 50_000


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [370, 1850, 3441])
def test_splits_of_pet(pet_labels: Indices, n: int, seed: int) -> None:
    """Pet's N images are from the seed's draw of 93 per class; 3,441 are that draw in its order."""
    task = numbered(pet_labels, 37, images_per_class=93)
    expected = published(pet_labels, n, seed, a_class=93)
    check(task, task.split(n, seed, validation=False), task.split(n, seed, validation=True), expected)
    assert np.bincount(pet_labels[expected[0]]).tolist() == [n // 37] * 37
    assert task.pool_size == 3441


def test_the_pool_of_pet_depends_on_the_seed(pet_labels: Indices) -> None:
    """Two seeds draw different pools, neither of them the first 3,441 images as in the published runs."""
    task = numbered(pet_labels, 37, images_per_class=93)
    pools = [set(indices(task.split(3441, seed, validation=False).train)) for seed in SEEDS]
    assert all(len(pool) == 3441 for pool in pools)
    assert len({frozenset(pool) for pool in [*pools, set(range(3441))]}) == 4


def test_a_split_never_changes(cifar10_labels: Indices, pet_labels: Indices) -> None:
    """Seed 1001 gives the images that it gave with numpy 2.4 and scikit-learn 1.9."""
    assert balanced_draw(pet_labels, 93, 37, 1001)[[0, 1, 92, 93, 3440]].tolist() == [27, 60, 9, 110, 3634]
    subset = indices(numbered(cifar10_labels, 10).split(100, 1001, validation=False).train)
    assert subset[:5] == [41927, 45366, 22605, 26917, 32076]


@pytest.mark.parametrize(("images_per_class", "drawn"), [(93, 7), (5, 5)])
def test_the_smallest_class_limits_the_draw(images_per_class: int, drawn: int) -> None:
    """Every class gives as many images as are drawn per class, or as the smallest class has if that is fewer."""
    labels = np.repeat(np.arange(3), [9, 7, 12])
    task = numbered(labels, 3, images_per_class)
    assert task.pool_size == 3 * drawn
    split = task.split(3 * drawn, 5, validation=False)
    assert split.train.labels.tolist() == [0] * drawn + [1] * drawn + [2] * drawn
    assert indices(split.train) == published(labels, 3 * drawn, 5, a_class=drawn)[0].tolist()


def test_n_is_checked_against_the_balanced_pool(pet_labels: Indices) -> None:
    """An N that the images would allow but the draw of 93 per class does not is refused."""
    with pytest.raises(ValueError, match="n = 3478 is larger than the pool of 3441 training examples"):
        numbered(pet_labels, 37, images_per_class=93).split(3478, 1001, validation=False)
