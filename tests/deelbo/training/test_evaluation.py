"""The calibration error, by hand and as a loop over bins."""

import pytest
import torch

from deelbo.training.evaluation import calibration_error


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
