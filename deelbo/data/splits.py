"""The N training images of a seed, and the fifth of them that a method may hold out. Independent of the method."""

import numpy as np

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


MIN_PER_CLASS = 5
"""Training images of each class, so that the fifth for validation has one of it."""


def check_size(n: int, pool: int, num_classes: int, smallest: int | None = None) -> None:
    """Raise ValueError where N images cannot be split over the classes, or their fifth would miss a class.

    The classes get equally many, or, where the ``smallest`` has a known number of the pool, in proportion.
    """
    if n > pool:
        raise ValueError(f"n = {n} is larger than the pool of {pool} training examples: choose n <= {pool}")
    if smallest is not None:
        if n * smallest // pool < MIN_PER_CLASS:
            found = f"{n * smallest // pool} examples of the smallest class, which has {smallest} of {pool}"
            raise ValueError(f"n = {n} leaves {found}: choose n >= {-(-MIN_PER_CLASS * pool // smallest)}")
        if pool - num_classes < n < pool:
            raise ValueError(f"n = {n} leaves out less than one example a class of {pool}: choose {pool}, or fewer")
        return
    if n < pool and n % num_classes:
        lower, found = (
            max(n // num_classes, MIN_PER_CLASS) * num_classes,
            f"not a multiple of the {num_classes} classes",
        )
        raise ValueError(f"n = {n} is {found}, as stratification needs: try {lower}")
    if n // 5 < num_classes:
        found = f"{n // 5} validation examples for {num_classes} classes"
        raise ValueError(f"n = {n} leaves {found}: choose n >= {5 * num_classes}")


def balanced_draw(labels: Indices, images_per_class: int, num_classes: int, seed: int) -> Indices:
    """Return indices of ``images_per_class`` images of every class; shape (images_per_class * num_classes,).

    One ``numpy.random.RandomState(seed)`` draws from the indices of class 0 without replacement, then from those of
    class 1, and so on. The result has this order.
    """
    random = np.random.RandomState(seed)
    by_class = [np.flatnonzero(labels == c) for c in range(num_classes)]
    return np.concatenate([random.choice(indices, images_per_class, replace=False) for indices in by_class])


def stratified_subset(labels: Indices, n: int, seed: int) -> Indices:
    """Return the indices of N training images; all of them, in order, where N is the whole pool."""
    from sklearn.model_selection import train_test_split  # takes a second to import

    indices = np.arange(len(labels))
    if n == len(labels):
        return indices
    chosen, _ = train_test_split(indices, train_size=n, stratify=labels, random_state=seed)
    return np.asarray(chosen)


def validation_fifth(indices: Indices, labels: Indices, seed: int) -> tuple[Indices, Indices]:
    """Split ``indices`` (N,) into training and int(N/5) validation indices. ``labels`` are the whole pool's."""
    from sklearn.model_selection import train_test_split

    size = len(indices) // 5
    training, validation = train_test_split(indices, test_size=size, stratify=labels[indices], random_state=seed)
    return np.asarray(training), np.asarray(validation)
