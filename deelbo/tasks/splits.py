"""The N training images of a seed, and the fifth of them that a method may hold out. Never depends on the method."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import train_test_split

__all__ = ["check_size", "stratified_subset", "validation_fifth"]

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


def check_size(n: int, pool: int, num_classes: int) -> None:
    """Raises ValueError where N images cannot be drawn in equal numbers a class, or their fifth would miss a class."""
    if n > pool:
        raise ValueError(f"n = {n} is larger than the pool of {pool} training images: choose n <= {pool}")
    if n < pool and n % num_classes:
        lower = max(n // num_classes, 5) * num_classes
        raise ValueError(
            f"n = {n} is not a multiple of the {num_classes} classes, as stratification needs: try {lower}"
        )
    if n // 5 < num_classes:
        raise ValueError(
            f"n = {n} leaves {n // 5} validation images for {num_classes} classes: choose n >= {5 * num_classes}"
        )


def stratified_subset(labels: Indices, n: int, seed: int) -> Indices:
    """Indices of the N training images: all of them, in order, where N is the whole pool."""
    everything = np.arange(len(labels))
    if n == len(labels):
        return everything
    chosen, _ = train_test_split(everything, train_size=n, stratify=labels, random_state=seed)
    return np.asarray(chosen)


def validation_fifth(indices: Indices, labels: Indices, seed: int) -> tuple[Indices, Indices]:
    """``indices`` (N,) as (training, validation), validation being int(N/5) of them. ``labels``: the whole pool's."""
    size = len(indices) // 5
    training, validation = train_test_split(indices, test_size=size, stratify=labels[indices], random_state=seed)
    return np.asarray(training), np.asarray(validation)
