"""A task: a pool of training images, a test set, and the split of a given N and seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from deelbo.tasks.digits import load_mnist
from deelbo.tasks.images import Geometry, Images, Normalisation
from deelbo.tasks.splits import check_size, stratified_subset, validation_fifth

__all__ = ["TASKS", "Geometry", "Images", "Normalisation", "Split", "Task", "TaskEntry", "load_task"]


@dataclass(frozen=True)
class Split:
    """What one run may see. ``validation`` is None where the run trains on all N images."""

    train: Images
    validation: Images | None
    test: Images
    normalisation: Normalisation
    geometry: Geometry


@dataclass(frozen=True)
class Task:
    """A dataset in memory, and how its images are looked at."""

    name: str
    pool: Images
    test: Images
    geometry: Geometry

    def split(self, n: int, seed: int, validation: bool) -> Split:
        """N training images of that seed; with ``validation``, 4/5 of them to train on and 1/5 to choose by.

        Raises:
            ValueError: N is larger than the pool, or cannot be stratified.
        """
        check_size(n, len(self.pool), self.pool.num_classes)
        labels = self.pool.labels.numpy()
        chosen = stratified_subset(labels, n, seed)
        held_out = None
        if validation:
            chosen, fifth = validation_fifth(chosen, labels, seed)
            held_out = self.pool.take(torch.from_numpy(fifth))
        train = self.pool.take(torch.from_numpy(chosen))
        return Split(train, held_out, self.test, Normalisation.of(train), self.geometry)


def _mnist_digits() -> Task:
    pool, test = load_mnist()
    return Task("mnist-digits", pool, test, Geometry(side=16, crop=16, pad=1))


@dataclass(frozen=True)
class TaskEntry:
    """A task that can be had: known sizes, so that a configuration is checked without reading any image."""

    load: Callable[[], Task]
    pool_size: int
    num_classes: int


TASKS = {"mnist-digits": TaskEntry(_mnist_digits, pool_size=4000, num_classes=10)}


@lru_cache(maxsize=2)
def load_task(name: str) -> Task:
    """The named task, read once a process.

    Raises:
        ValueError: an unknown name.
    """
    if name not in TASKS:
        raise ValueError(f"dataset must be one of {', '.join(sorted(TASKS))}, got {name!r}")
    return TASKS[name].load()
