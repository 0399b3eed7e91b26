"""A dataset in memory, and what of it one run may see."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from deelbo.data.images import Geometry, Images, Normalization
from deelbo.data.splits import balanced_draw, check_size, stratified_subset, validation_fifth

__all__ = ["Split", "Task"]


HASHED_BYTES = 2**26  # of the pixels of a pool, and as many of a test set


@dataclass(frozen=True)
class Split:
    """What one run may see. ``validation`` is None where the run trains on all N images."""

    train: Images
    validation: Images | None
    test: Images
    normalization: Normalization
    geometry: Geometry


@dataclass(frozen=True)
class Task:
    """A dataset in memory, and how its images are looked at.

    Attributes:
        pool: the training images that there are.
        balanced: where given, a seed's N images come from this many a class, which that seed draws from ``pool``; as
            many as the smallest class has, where that is fewer.
    """

    name: str
    pool: Images
    test: Images
    geometry: Geometry
    balanced: int | None = None

    @property
    def pool_size(self) -> int:
        """The largest N."""
        return len(self.pool) if self.balanced is None else self._a_class(self.balanced) * self.pool.num_classes

    @cached_property
    def fingerprint(self) -> str:
        """Which data this is: 16 hex digits of a SHA-256 over all labels, and over pixels of every image.

        Of a large set every k-th byte of each image is hashed, k as small as a few tenths of a second allow.
        """
        digest = hashlib.sha256()
        for images in (self.pool, self.test):
            flat = images.pixels.flatten(1)
            step = -(-flat.numel() // HASHED_BYTES)
            digest.update(repr((tuple(images.pixels.shape), images.num_classes)).encode())
            digest.update(images.labels.cpu().contiguous().numpy().tobytes())
            # copied to contiguous memory a part at a time: a memory-mapped set is larger than what is hashed of it
            for part in flat.split(512):
                digest.update(part[:, :: max(step, 1)].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def split(self, n: int, seed: int, validation: bool) -> Split:
        """N training images of that seed; with ``validation``, 4/5 of them to train on and 1/5 to choose by.

        Raises:
            ValueError: N is larger than the pool, or cannot be stratified.
        """
        check_size(n, self.pool_size, self.pool.num_classes)
        labels = self.pool.labels.numpy()
        available = np.arange(len(labels))
        if self.balanced is not None:
            available = balanced_draw(labels, self._a_class(self.balanced), self.pool.num_classes, seed)
        chosen = available[stratified_subset(labels[available], n, seed)]
        held_out = None
        if validation:
            chosen, fifth = validation_fifth(chosen, labels, seed)
            held_out = self.pool.take(torch.from_numpy(fifth))
        rows = torch.from_numpy(chosen)
        return Split(self.pool.take(rows), held_out, self.test, Normalization.of(self.pool, rows), self.geometry)

    def _a_class(self, balanced: int) -> int:
        return min(balanced, int(self.pool.labels.bincount(minlength=self.pool.num_classes).min()))
