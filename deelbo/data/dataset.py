"""A dataset in memory, and the part of it that one run uses."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from deelbo.data.examples import Examples, Transform
from deelbo.data.splits import balanced_draw, check_size, stratified_subset, validation_fifth

HASHED_NUMBERS = 2**26  # at most so many of a pool, and of a test set


@dataclass(frozen=True)
class Split:
    """The examples of one run. ``validation`` is None where it trains on all N examples."""

    train: Examples
    validation: Examples | None
    test: Examples
    transform: Transform  # fitted to the training examples


@dataclass(frozen=True)
class Task:
    """A dataset in memory; ``pool`` has all training examples, and each split fits ``transform`` to its own of them.

    With ``images_per_class``, the N examples of a seed are taken from so many of each class, which the seed draws
    from the pool; at most as many as the smallest class has. ``proportional`` classes need not be equally large: N
    images are split over them as the pool is. ``content`` is the fingerprint of inputs that are not the data
    themselves, such as token ids, which another tokenizer makes otherwise of the same texts. ``classes`` has the names
    of the labels; without any, labels are their own names.
    """

    name: str
    pool: Examples
    test: Examples
    transform: Transform
    images_per_class: int | None = None
    proportional: bool = False
    content: str | None = None
    classes: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label."""
        return self.classes or tuple(map(str, range(self.pool.num_classes)))

    @property
    def pool_size(self) -> int:
        """The largest N."""
        if self.images_per_class is None:
            return len(self.pool)
        return self._balanced_size(self.images_per_class) * self.pool.num_classes

    @cached_property
    def fingerprint(self) -> str:
        """``content``, or 16 hex digits of a SHA-256 over all labels and over inputs of every example.

        Of a large dataset every k-th number of each example is hashed, which takes a few tenths of a second.
        """
        if self.content is not None:
            return self.content
        digest = hashlib.sha256()
        for examples in (self.pool, self.test):
            flat = examples.inputs.flatten(1)
            step = -(-flat.numel() // HASHED_NUMBERS)
            digest.update(repr((tuple(examples.inputs.shape), examples.num_classes)).encode())
            digest.update(examples.labels.cpu().contiguous().numpy().tobytes())
            # copied to contiguous memory in parts, as a memory-mapped dataset is larger than what is hashed of it
            for part in flat.split(512):
                digest.update(part[:, :: max(step, 1)].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def check_size(self, n: int) -> None:
        """Raise ValueError if N examples cannot be taken; see `deelbo.data.splits.check_size`."""
        smallest = self._smallest_class() if self.proportional else None
        check_size(n, self.pool_size, self.pool.num_classes, smallest)

    def split(self, n: int, seed: int, validation: bool) -> Split:
        """Return a seed's N training examples, of which ``validation`` holds out a fifth; raises as `check_size`."""
        self.check_size(n)
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
        return Split(self.pool.take(rows), held_out, self.test, self.transform.fit(self.pool, rows))

    def _balanced_size(self, images_per_class: int) -> int:
        return min(images_per_class, self._smallest_class())

    def _smallest_class(self) -> int:
        return int(self.pool.labels.bincount(minlength=self.pool.num_classes).min())
