"""Evaluation of a network on a set of images."""

import torch
from torch import nn
from torch.nn import functional as F

from deelbo.data.images import Geometry, Images, Normalization
from deelbo.training.numerics import Numerics

BATCH_SIZE = 500


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Images,
    normalization: Normalization,
    geometry: Geometry | None = None,
    numerics: Numerics | None = None,
) -> tuple[float, float]:
    """Return the mean NLL in nats and the class-balanced accuracy, the mean over classes of each class's accuracy.

    Args:
        model: the network, on the images' device; it is left in evaluation mode.
        images: the images and their labels. Classes without an image do not count in the accuracy.
        normalization: channel means and standard deviations.
        geometry: resizing and center crop; None: the stored pixels as they are.
        numerics: precision and memory layout; None: float32.
    """
    model.eval()
    numerics, device = numerics or Numerics(), images.labels.device
    nll = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros(images.num_classes, dtype=torch.float64, device=device)
    for pixels, labels in zip(images.pixels.split(BATCH_SIZE), images.labels.split(BATCH_SIZE), strict=True):
        x = numerics.to_memory_format(normalization(pixels if geometry is None else geometry.evaluation(pixels)))
        with numerics.autocast(device):
            logits = model(x).float()
        nll += F.cross_entropy(logits, labels, reduction="sum").double()
        correct.index_add_(0, labels, (logits.argmax(1) == labels).double())
    count = torch.bincount(images.labels, minlength=images.num_classes)
    return float(nll) / len(images), float((correct / count)[count > 0].mean())
