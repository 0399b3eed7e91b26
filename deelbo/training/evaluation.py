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


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean over examples of the squared distance of the probabilities from the true class; 0 to 2.

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability", which sums over all classes.

    Args:
        probabilities: of the classes, each row with the sum 1; (n, classes).
        labels: int64 (n,).
    """
    truth = F.one_hot(labels, probabilities.shape[1])
    return float((probabilities.double() - truth).square().sum(1).mean())


@torch.no_grad()
def predict_logits(model: nn.Module, inputs: Tensor, transform: Transform, numerics: Numerics | None = None) -> Tensor:
    """Return the network's outputs in evaluation mode, in which it is left; float32 (n, classes).

    Args:
        model: the network, on the inputs' device.
        inputs: of the examples, before the transform.
        transform: makes the network's input.
        numerics: precision and memory layout; None: float32.
    """
    model.eval()
    numerics, logits = numerics or Numerics(), []
    for part in inputs.split(BATCH_SIZE):
        x = numerics.to_memory_format(transform.evaluation(part))
        with numerics.autocast(inputs.device):
            logits.append(model(x).float())
    return torch.cat(logits)


def evaluate(
    model: nn.Module, examples: Examples, transform: Transform, numerics: Numerics | None = None
) -> tuple[float, float]:
    """Return the mean NLL in nats and the class-balanced accuracy of a network, which is left in evaluation mode.

    See `predict_logits` for the arguments, and `nll_and_accuracy` for the results.
    """
    return nll_and_accuracy(predict_logits(model, examples.inputs, transform, numerics), examples)


@torch.no_grad()
def nll_and_accuracy(logits: Tensor, examples: Examples) -> tuple[float, float]:
    """Return the mean NLL in nats and the class-balanced accuracy, the mean over classes of each class's accuracy.

    Args:
        logits: float (n, classes), up to a constant of each row.
        examples: the n examples. Classes without an example do not count in the accuracy.
    """
    labels, classes = examples.labels, examples.num_classes
    parts = zip(logits.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)
    nll = sum(F.cross_entropy(part, target, reduction="sum").double() for part, target in parts)
    correct = torch.bincount(labels[logits.argmax(1) == labels], minlength=classes).double()
    count = torch.bincount(labels, minlength=classes)
    return float(nll) / len(examples), float((correct / count)[count > 0].mean())


def classification_metrics(logits: Tensor, examples: Examples, prefix: str) -> dict[str, float]:
    """Return nll and acc of `nll_and_accuracy`, and ece and brier of the probabilities, each after the prefix."""
    nll, accuracy = nll_and_accuracy(logits, examples)
    probabilities = logits.double().softmax(1)
    ece = calibration_error(probabilities, examples.labels)
    scores = {"nll": nll, "acc": accuracy, "ece": ece, "brier": brier_score(probabilities, examples.labels)}
    return {f"{prefix}_{name}": value for name, value in scores.items()}
