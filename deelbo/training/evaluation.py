"""Evaluation of a network on a set of examples."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo.data.examples import Examples, Transform
from deelbo.training.numerics import Numerics

BATCH_SIZE = 500


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error, the mean over examples of |accuracy - confidence| of their bin.

    The confidence is the largest probability; the bins ((m - 1) / bins, m / bins] of it are equally wide. Source: Guo
    et al. 2017, "On Calibration of Modern Neural Networks", equation 3, with 15 bins as there.

    Args:
        probabilities: of the classes, each row with the sum 1; (n, classes).
        labels: int64 (n,).
        bins: number of bins.
    """
    confidence, predicted = probabilities.double().max(1)
    gaps = (predicted == labels).double() - confidence
    rows = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    return float(torch.zeros(bins, dtype=torch.float64).index_add_(0, rows, gaps).abs().sum()) / len(labels)


@torch.no_grad()
def evaluate(
    model: nn.Module, examples: Examples, transform: Transform, numerics: Numerics | None = None
) -> tuple[float, float]:
    """Return the mean NLL in nats and the class-balanced accuracy, the mean over classes of each class's accuracy.

    Args:
        model: the network, on the examples' device; it is left in evaluation mode.
        examples: inputs and labels. Classes without an example do not count in the accuracy.
        transform: makes the network's input.
        numerics: precision and memory layout; None: float32.
    """
    model.eval()
    numerics, device = numerics or Numerics(), examples.labels.device
    nll = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros(examples.num_classes, dtype=torch.float64, device=device)
    for inputs, labels in zip(examples.inputs.split(BATCH_SIZE), examples.labels.split(BATCH_SIZE), strict=True):
        x = numerics.to_memory_format(transform.evaluation(inputs))
        with numerics.autocast(device):
            logits = model(x).float()
        nll += F.cross_entropy(logits, labels, reduction="sum").double()
        correct.index_add_(0, labels, (logits.argmax(1) == labels).double())
    count = torch.bincount(examples.labels, minlength=examples.num_classes)
    return float(nll) / len(examples), float((correct / count)[count > 0].mean())
