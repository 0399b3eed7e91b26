"""Scores of predicted probabilities: by hand, as a loop over bins, and as scikit-learn computes them."""

import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from deelbo.data.images import Images
from deelbo.training.evaluation import brier_score, calibration_error, classification_metrics


def test_by_hand() -> None:
    """Two predictions in one bin and one in another: (2 |1/2 - 0.9| + |1 - 0.6|) / 3."""
    probabilities = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])
    labels = torch.tensor([0, 0, 1])
    assert calibration_error(probabilities, labels) == pytest.approx((2 * 0.4 + 0.4) / 3, abs=1e-6)


@pytest.mark.parametrize(("confidence", "expected"), [(1.0, 0.0), (0.5, 0.5)])
def test_predictions_that_are_right(confidence: float, expected: float) -> None:
    """Certain ones are calibrated; the confidence 1 belongs to the last bin."""
    probabilities = torch.tensor([[confidence, 1 - confidence]]).repeat(4, 1)
    assert calibration_error(probabilities, torch.zeros(4, dtype=torch.int64)) == pytest.approx(expected)


def test_as_a_loop() -> None:
    """Equal to the definition, bin by bin."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(500, 4, generator=generator).mul(2).softmax(1)
    labels = torch.randint(0, 4, (500,), generator=generator)
    confidence, predicted = probabilities.double().max(1)
    total = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            accuracy = (predicted == labels)[inside].double().mean()
            total += float(inside.double().mean() * (accuracy - confidence[inside].mean()).abs())
    assert calibration_error(probabilities, labels) == pytest.approx(total)


def test_brier_score_as_scikit_learn() -> None:
    torch.manual_seed(0)
    probabilities, labels = torch.randn(60, 5).double().softmax(1), torch.randint(5, (60,))
    expected = brier_score_loss(labels.numpy(), probabilities.numpy(), labels=range(5), scale_by_half=False)
    assert brier_score(probabilities, labels) == pytest.approx(expected, rel=1e-12)


def test_metrics_of_logits() -> None:
    """A constant added to a row of the logits changes nothing, so logarithms of probabilities will do."""
    torch.manual_seed(0)
    logits, labels = torch.randn(1200, 5).double(), torch.randint(5, (1200,))
    images = Images(torch.zeros(1200, 1, 1, 1, dtype=torch.uint8), labels, 5)
    scores = classification_metrics(logits, images, "test")
    probabilities = logits.softmax(1)
    assert scores["test_nll"] == pytest.approx(log_loss(labels.numpy(), probabilities.numpy()), rel=1e-12)
    assert scores["test_ece"] == calibration_error(probabilities, labels)
    assert scores["test_brier"] == brier_score(probabilities, labels)
    assert classification_metrics(probabilities.log(), images, "test") == pytest.approx(scores, rel=1e-12)
