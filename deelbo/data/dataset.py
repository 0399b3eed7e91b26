"""A dataset in memory, and the part of it that one run uses."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from deelbo.data.images import Geometry, Images, Normalization
from deelbo.data.splits import balanced_draw, check_size, stratified_subset, validation_fifth

HASHED_BYTES = 2**26  # at most so many pixels of a pool, and of a test set


@dataclass(frozen=True)
class Split:
    """The images of one run. ``validation`` is None where it trains on all N images."""

    train: Images
    validation: Images | None
    test: Images
    normalization: Normalization
    geometry: Geometry


@dataclass(frozen=True)
class Task:
    """A dataset in memory; ``pool`` has all training images.

    With ``images_per_class``, the N images of a seed are taken from so many images of each class, which the seed draws
    from the pool; at most as many as the smallest class has.
    """

    name: str
    pool: Images
    test: Images
    geometry: Geometry
    images_per_class: int | None = None

    @property
    def pool_size(self) -> int:
        """The largest N."""
        if self.images_per_class is None:
            return len(self.pool)
        return self._balanced_size(self.images_per_class) * self.pool.num_classes

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over all labels and over pixels of every image.

        Of a large dataset every k-th byte of each image is hashed, which takes a few tenths of a second.
        """
        digest = hashlib.sha256()
        for images in (self.pool, self.test):
            flat = images.pixels.flatten(1)
            step = -(-flat.numel() // HASHED_BYTES)
            digest.update(repr((tuple(images.pixels.shape), images.num_classes)).encode())
            digest.update(images.labels.cpu().contiguous().numpy().tobytes())
            # copied to contiguous memory in parts, as a memory-mapped dataset is larger than what is hashed of it
            for part in flat.split(512):
                digest.update(part[:, :: max(step, 1)].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def split(self, n: int, seed: int, validation: bool) -> Split:
        """Return the N training images of a seed, of which ``validation`` holds out a fifth; raises as `check_size`."""
        check_size(n, self.pool_size, self.pool.num_classes)
        labels = self.pool.labels.numpy()
        available = np.arange(len(labels))
        if self.images_per_class is not None:
            size = self._balanced_size(self.images_per_class)
            available = balanced_draw(labels, size, self.pool.num_classes, seed)
        chosen = available[stratified_subset(labels[available], n, seed)]
        held_out = None
        if validation:
            chosen, fifth = validation_fifth(chosen, labels, seed)
            held_out = self.pool.take(torch.from_numpy(fifth))
        rows = torch.from_numpy(chosen)
        return Split(self.pool.take(rows), held_out, self.test, Normalization.of(self.pool, rows), self.geometry)

    def _balanced_size(self, images_per_class: int) -> int:
        return min(images_per_class, int(self.pool.labels.bincount(minlength=self.pool.num_classes).min()))
