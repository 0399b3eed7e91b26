"""New estimates of running statistics, and where `fit` takes them: at the posterior mean, or for each draw."""

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import deelbo
from deelbo import DataEmphasizedELBO, Schedule, fit, make_groups
from deelbo.training.batchnorm import update_batchnorm


class WithStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.second = nn.InstanceNorm1d(3, track_running_stats=True)
        self.frozen = FrozenBatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.frozen(self.second(self.drop(self.norm(x)))[..., None])


def test_statistics_are_the_mean_over_batches() -> None:
    """They equal sums by hand; dropout is off, modes and momenta are as before. Other layers keep their statistics."""
    torch.manual_seed(1)
    model, batches = WithStatistics().double(), [torch.randn(8, 3, 4).double() for _ in range(3)]
    for layer in (model.norm, model.second, model.frozen):
        layer.running_mean.fill_(7.0)
    model.train()
    model.drop.eval()
    update_batchnorm(model, iter(batches))
    mean = torch.stack([b.mean((0, 2)) for b in batches]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, mean, rtol=1e-12, atol=1e-12)
    variance = torch.stack([b.transpose(0, 1).reshape(3, -1).var(1) for b in batches]).mean(0)
    torch.testing.assert_close(model.norm.running_var, variance, rtol=1e-12, atol=1e-12)
    assert model.frozen.running_mean.tolist() == [7.0] * 3
    assert (model.norm.momentum, model.second.momentum) == (0.3, 0.1)
    assert (model.training, model.norm.training, model.drop.training) == (True, True, False)


def test_statistics_of_instances() -> None:
    """InstanceNorm's are the mean over batches and over each batch's examples."""
    torch.manual_seed(2)
    model, batches = nn.InstanceNorm1d(3, track_running_stats=True).double(), [torch.randn(4, 3, 5).double() + 2] * 2
    batches.append(torch.randn(4, 3, 5).double())
    update_batchnorm(model, batches)
    expected = torch.stack([batch.mean((0, 2)) for batch in batches]).mean(0)
    torch.testing.assert_close(model.running_mean, expected, rtol=1e-12, atol=1e-12)
    variance = torch.stack([batch.var(2).mean(0) for batch in batches]).mean(0)
    torch.testing.assert_close(model.running_var, variance, rtol=1e-12, atol=1e-12)


def test_a_layer_that_is_called_twice() -> None:
    """Its statistics are the mean over all of its calls, as those of torch's `update_bn`."""
    norm = nn.BatchNorm1d(3).double()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + self.norm(x + 5)

    batches = [torch.randn(8, 3).double() for _ in range(2)]
    update_batchnorm(Twice(), batches)
    found = norm.running_mean.clone()
    torch.optim.swa_utils.update_bn(batches, Twice())
    torch.testing.assert_close(found, norm.running_mean, rtol=1e-12, atol=1e-12)


def test_a_network_without_statistics_reads_no_batch() -> None:
    update_batchnorm(nn.Linear(2, 2), iter([]))


def test_an_error_restores_the_layers() -> None:
    model = WithStatistics()
    with pytest.raises(RuntimeError):
        update_batchnorm(model, [torch.zeros(2, 5, 4)])
    assert (model.norm.momentum, model.norm.training) == (0.3, True)


def train(split: Any, model: nn.Module, **settings: Any) -> Any:
    objective = DataEmphasizedELBO(
        make_groups(model, None, "l2-sp"), len(split.train), generator=torch.Generator().manual_seed(5)
    )
    return fit(model, split, objective, Schedule(0.1, steps=6, batch_size=4, posterior_passes=2, **settings), seed=2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))


def ready(split: Any) -> nn.Module:
    model = network()
    model.eval()
    model(split.transform.evaluation(split.train.inputs[:2]))
    return model


def test_the_trained_network_has_the_statistics_of_the_mean(toy_split: Any) -> None:
    """With "mean" only the statistics and what depends on them change; they are those of the training images."""
    plain, again = ready(toy_split), ready(toy_split)
    first, second = train(toy_split, plain), train(toy_split, again, final_batchnorm="mean")
    assert torch.equal(plain[0].weight, again[0].weight)
    assert not torch.equal(plain[1].running_mean, again[1].running_mean)
    with torch.no_grad():
        hidden = again[0](toy_split.transform.evaluation(toy_split.train.inputs))
    torch.testing.assert_close(again[1].running_mean, hidden.mean((0, 2, 3)))
    torch.testing.assert_close(again[1].running_var, hidden.transpose(0, 1).reshape(4, -1).var(1))
    assert first.metrics["test_nll"] != second.metrics["test_nll"]
    assert second.metrics["test_nll"] == deelbo.evaluate(again, toy_split.test, toy_split.transform)[0]
    assert second.seconds["select"] > 0


def test_statistics_of_each_draw(toy_split: Any) -> None:
    """With "draw" the closing objective changes, and the network does not."""
    plain, again = ready(toy_split), ready(toy_split)
    first, second = train(toy_split, plain), train(toy_split, again, closing_batchnorm="draw")
    assert first.metrics["test_nll"] == second.metrics["test_nll"]
    assert first.metrics["nll_under_q"] != second.metrics["nll_under_q"]
    for name, value in plain.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_statistics_of_a_part_of_the_images(toy_split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more images than the limit every k-th counts, and the work on the record is theirs."""
    plain, again = ready(toy_split), ready(toy_split)
    first = train(toy_split, plain)
    monkeypatch.setattr("deelbo.training.run.STATISTICS_EXAMPLES", 5)
    second = train(toy_split, again, final_batchnorm="mean")
    size = len(toy_split.train)
    part = toy_split.train.inputs[:: -(-size // 5)]
    assert len(part) <= 5 < size
    with torch.no_grad():
        hidden = again[0](toy_split.transform.evaluation(part))
    torch.testing.assert_close(again[1].running_mean, hidden.mean((0, 2, 3)))
    work = [result.state["gradient_equivalents"] for result in (first, second)]
    assert work[1] - work[0] == pytest.approx(len(part) / 4 / 3)


def test_frozen_statistics_are_not_estimated(toy_split: Any) -> None:
    plain, again = ready(toy_split), ready(toy_split)
    first = train(toy_split, plain, batchnorm="frozen")
    second = train(toy_split, again, batchnorm="frozen", final_batchnorm="mean", closing_batchnorm="draw")
    assert first.metrics == second.metrics
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("statistics", ["running", "draw"])
def test_predictions_averaged_over_the_posterior(toy_split: Any, statistics: str) -> None:
    """They are the mean of the draws' probabilities, by the metrics and under a phase of their own; else nothing moves.

    The draws follow those of the closing objective, so an equal run without predictions can draw them by hand.
    """
    plain, again = ready(toy_split), ready(toy_split)
    images, transform = toy_split.test, toy_split.transform
    first = train(toy_split, again, closing_batchnorm=statistics, predictive_draws=3)
    objective = DataEmphasizedELBO(
        make_groups(plain, None, "l2-sp"), len(toy_split.train), generator=torch.Generator().manual_seed(5)
    )
    schedule = Schedule(0.1, steps=6, batch_size=4, posterior_passes=2, closing_batchnorm=statistics)
    second = fit(plain, toy_split, objective, schedule, seed=2)
    assert second.metrics.items() < first.metrics.items()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in plain.state_dict().items())
    total = torch.zeros((), dtype=torch.float64)
    for _ in range(3):
        with torch.no_grad(), objective.step():
            if statistics == "draw":
                deelbo.update_batchnorm(plain, [transform.evaluation(toy_split.train.inputs)])
            plain.eval()
            total = total + plain(transform.evaluation(images.inputs)).double().softmax(1)
    nll = -(total / 3)[torch.arange(len(images)), images.labels].log().mean()
    assert first.metrics["predictive_nll"] == pytest.approx(float(nll), rel=1e-6)
    assert first.state == second.state
    assert {"predictive_acc", "predictive_ece", "predictive_brier"} < first.metrics.keys()
    assert first.seconds["predictive"] > 0 == second.seconds["predictive"]


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_the_noise_ends(toy_split: Any, share: float) -> None:
    """The strengths are those of the step at which the noise ended; a whole run with noise is as before to the bit."""
    model = ready(toy_split)
    objective = DataEmphasizedELBO(
        make_groups(model, None, "l2-sp"), len(toy_split.train), generator=torch.Generator().manual_seed(5)
    )
    schedule = Schedule(0.1, steps=6, batch_size=4, noise_until=share, series_points=6)
    result = fit(model, toy_split, objective, schedule, seed=2)
    assert objective.is_frozen == (share < 1)
    strengths = [row["weight_decay_backbone"] for row in result.series]
    steps = [row["step"] for row in result.series]
    noisy = schedule.noisy_steps(len(toy_split.train))
    late = [strength for strength, step in zip(strengths, steps, strict=True) if step > noisy]
    assert all(strength == result.state["weight_decay_backbone"] for strength in late)
    reference = ready(toy_split)
    other = train(toy_split, reference)
    same = torch.equal(reference[0].weight, model[0].weight)
    assert same == (share == 1)
    assert other.series


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"final_batchnorm": "none"}, "final_batchnorm must be one of running, mean, got 'none'"),
        ({"closing_batchnorm": "mean"}, "closing_batchnorm must be one of running, draw, got 'mean'"),
        ({"noise_until": 1.5}, "noise_until must be a share of the steps, above 0 and at most 1, got 1.5"),
        ({"noise_until": 0.0}, "noise_until must be a share"),
        ({"noise_until": float("nan")}, "noise_until must be a share"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Schedule(0.1, **settings)


def test_a_run_that_diverges_before_its_noise_ends(toy_split: Any, toy_model: nn.Module) -> None:
    """It is diverged, as without `noise_until`: strengths that are not numbers are not fixed."""
    with torch.no_grad():
        next(toy_model.parameters()).fill_(float("nan"))
    objective = DataEmphasizedELBO(make_groups(toy_model, None, "l2-zero"), len(toy_split.train))
    result = fit(toy_model, toy_split, objective, Schedule(0.1, steps=6, batch_size=4, noise_until=0.5))
    assert result.status == "diverged"
