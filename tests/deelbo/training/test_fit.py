"""Tests of a training run: schedule, metrics, booked seconds, and what stays unchanged."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, log_loss
from torch import Tensor, nn

from deelbo import ELBO, MAP, DataEmphasizedELBO, FitResult, Handover, PhaseClock, Schedule, evaluate, make_groups
from deelbo.data import Geometry, Images, ImageTransform, Split
from deelbo.objectives.hypergradient import HypergradientMAP
from deelbo.pretrained.backbones import build_backbone
from deelbo.training.fit import fit
from deelbo.training.run import TrainingRun

SHORT = Schedule(0.05, steps=30, batch_size=32, posterior_passes=2)


def bound(model: nn.Module, n: int = 160) -> ELBO:
    return DataEmphasizedELBO(make_groups(model, "4", "l2-sp"), n)


def point(model: nn.Module, n: int = 160) -> MAP:
    return MAP(make_groups(model, "4", "l2-sp"), n, {"backbone": 0.01, "head": 0.01})


@pytest.mark.parametrize(
    ("n", "steps", "batch"), [(80, 6000, 80), (100, 6000, 100), (370, 6000, 128), (1000, 5999, 128), (50000, 5850, 128)]
)
def test_steps_are_whole_epochs(n: int, steps: int, batch: int) -> None:
    """Nominal steps are rounded down to whole epochs of floor(n / 128) batches, but never to zero."""
    assert Schedule(0.1).total_steps(n) == steps
    assert Schedule(0.1).batch(n) == batch
    assert Schedule(0.1, steps=100).total_steps(50_000) == 100  # less than an epoch


@pytest.mark.parametrize(("steps", "batch_size", "run"), [(33, 32, 30), (3, 32, 3), (7, 200, 7), (10, 50, 9)])
def test_total_steps_are_trained(toy_split: Split, toy_model: nn.Module, steps: int, batch_size: int, run: int) -> None:
    """`total_steps` optimizer steps are taken, each on a full batch."""
    sizes: list[int] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        if toy_model.training:
            sizes.append(len(args[0]))

    toy_model.register_forward_hook(note)
    schedule = Schedule(0.01, steps=steps, batch_size=batch_size)
    result = fit(toy_model, toy_split, point(toy_model), schedule)
    warm_up = sizes[:2]
    assert sizes[2:] == [min(batch_size, 160)] * run
    assert warm_up == [min(batch_size, 160)] * 2
    assert result.steps == schedule.total_steps(160) == run


@pytest.mark.parametrize("make", [bound, point])
def test_one_seed_gives_the_same_bits(toy_split: Split, toy_model: nn.Module, make: Callable[[nn.Module], Any]) -> None:
    """The same seed gives the same bits of metrics, state and weights, another seed others."""
    models = [copy.deepcopy(toy_model) for _ in range(3)]
    results = []
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.rand(7)
        results.append(fit(model, toy_split, make(model), SHORT, seed=seed))
    same, again, other = results
    assert same.metrics == again.metrics
    assert same.state == again.state
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert same.metrics["train_nll"] != other.metrics["train_nll"]


def test_the_metrics_of_a_bound(toy_split: Split, toy_model: nn.Module) -> None:
    """Test and validation metrics are at the posterior mean; the objective is NLL under q plus the regularizer."""
    objective = bound(toy_model)
    result = fit(toy_model, toy_split, objective, SHORT)
    metrics = result.metrics
    assert (metrics["test_nll"], metrics["test_acc"]) == evaluate(toy_model, toy_split.test, toy_split.transform)
    at_mean = evaluate(toy_model, toy_split.validation or toy_split.test, toy_split.transform)
    assert (metrics["val_nll"], metrics["val_acc"]) == at_mean
    assert metrics["objective"] == metrics["nll_under_q"] + float(objective.regularizer())
    assert result.state == objective.describe() | {"gradient_equivalents": result.state["gradient_equivalents"]}


def test_nll_under_q_averages_draws(toy_split: Split, toy_model: nn.Module) -> None:
    """NLL under q is the NLL at the mean for a tiny sigma, and another for a large one."""
    for sigma, agrees in ((1e-9, True), (1.0, False)):
        objective = ELBO(make_groups(toy_model, "4", "l2-sp"), 160, sigma=sigma)
        run = TrainingRun(toy_model, toy_split, objective, SHORT, seed=0)
        at_mean, _ = evaluate(toy_model, toy_split.train, toy_split.transform)
        assert (run.nll_under_posterior() == pytest.approx(at_mean, rel=1e-4)) is agrees
        assert evaluate(toy_model, toy_split.train, toy_split.transform)[0] == at_mean


def test_optional_metrics(toy_split: Split, toy_model: nn.Module) -> None:
    """Without test, validation images or a posterior, their metrics are absent."""
    split = Split(toy_split.train, None, toy_split.test, toy_split.transform)
    result = fit(toy_model, split, point(toy_model), SHORT, test=False)
    assert set(result.metrics) == {"train_nll"}
    assert result.seconds["test"] == result.seconds["select"] == 0


def test_no_test_examples(toy_split: Split, toy_model: nn.Module) -> None:
    """An empty test set is as none: its metrics are left out, and the run is completed."""
    empty = toy_split.test.take(torch.empty(0, dtype=torch.int64))
    split = Split(toy_split.train, None, empty, toy_split.transform)
    result = fit(toy_model, split, bound(toy_model, len(split.train)), SHORT)
    assert result.status == "completed"
    assert not {"test_nll", "test_acc"} & set(result.metrics)


@pytest.mark.parametrize(("kind", "learning_rate"), [("bound", 1e6), ("point", 1e30)])
def test_a_diverged_run(toy_split: Split, toy_model: nn.Module, kind: str, learning_rate: float) -> None:
    """A run whose loss is not finite ends early with status "diverged" and does not raise."""
    objective = bound(toy_model) if kind == "bound" else point(toy_model)
    schedule = Schedule(learning_rate, steps=1000, batch_size=32, clip_norm=1e9)
    result: FitResult = fit(toy_model, toy_split, objective, schedule)
    assert result.status == "diverged"
    assert result.steps == result.series[-1]["step"] < 1000
    assert len(result.series) < 20
    assert not math.isfinite(result.metrics["train_nll"])


@pytest.mark.parametrize(("steps", "points", "rows"), [(30, 20, 6), (200, 20, 20), (200, 7, 7), (200, 1, 1)])
def test_the_series(toy_split: Split, toy_model: nn.Module, steps: int, points: int, rows: int) -> None:
    """The series has at most ``series_points`` rows up to the last step, and on_epoch gets each."""
    seen: list[dict[str, float]] = []
    schedule = Schedule(0.01, steps=steps, batch_size=32, series_points=points)
    result = fit(toy_model, toy_split, bound(toy_model), schedule, on_epoch=seen.append)
    at = [row["step"] for row in result.series]
    assert len(at) == rows
    assert at == sorted(set(at))
    assert at[-1] == result.steps == steps
    assert seen == result.series


def test_every_method_sees_the_same_images(toy_split: Split, toy_model: nn.Module) -> None:
    """Order and augmentation depend on the seed alone, not on the objective's or model's random numbers."""
    seen: list[list[Tensor]] = []
    for make in (bound, point):
        model, inputs = copy.deepcopy(toy_model), []

        def note(module: nn.Module, args: tuple[Tensor, ...], into: list[Tensor] = inputs) -> None:
            if module.training:
                into.append(args[0].clone())

        model.register_forward_pre_hook(note)
        fit(model, toy_split, make(model), SHORT, seed=3, test=False)
        seen.append(inputs)
    assert len(seen[0]) == len(seen[1]) == 2 + 30
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_train_nll_is_the_mean_since_the_last_evaluation(
    toy_split: Split, toy_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row's train_nll is the mean loss of the steps since the row before."""
    losses: list[float] = []
    step = TrainingRun.step

    def noted(run: TrainingRun, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = step(run, batch)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(TrainingRun, "step", noted)
    result = fit(toy_model, toy_split, bound(toy_model), Schedule(0.1, steps=50, batch_size=32, series_points=3))
    ends = [int(row["step"]) for row in result.series]
    del losses[:2]  # the warm-up's
    assert len(losses) == ends[-1] == 50
    for start, end, row in zip([0, *ends], ends, result.series, strict=False):
        assert row["train_nll"] == pytest.approx(sum(losses[start:end]) / (end - start), rel=1e-5)
    assert result.metrics["train_nll"] == result.series[-1]["train_nll"]


def test_the_learning_rate_follows_a_cosine(toy_split: Split, toy_model: nn.Module) -> None:
    """In every row the last step's learning rate is lr/2 (1 + cos(pi t / T)), with t from 0."""
    schedule = Schedule(0.2, steps=50, batch_size=32)
    for row in fit(toy_model, toy_split, point(toy_model), schedule).series:
        expected = 0.1 * (1 + math.cos(math.pi * (row["step"] - 1) / 50))
        assert row["learning_rate"] == pytest.approx(expected, rel=1e-6)
    assert row["step"] == 50


def test_seconds_of_the_callback_are_booked_nowhere(toy_split: Split, toy_model: nn.Module) -> None:
    """Time in on_epoch is in no phase, that of training steps in ``train`` and in the rows."""
    hand = [0.0]

    def in_the_hook(_: dict[str, float]) -> None:
        hand[0] += 1000

    def in_a_step(_: nn.Module, __: Any, ___: Any) -> None:
        hand[0] += 1 if toy_model.training else 0.125

    toy_model.register_forward_hook(in_a_step)
    clock = PhaseClock(now=lambda: hand[0])
    result = fit(toy_model, toy_split, bound(toy_model), SHORT, clock=clock, on_epoch=in_the_hook)
    assert [row["train_seconds"] for row in result.series] == [row["step"] for row in result.series]
    looks, passes = 6, 2
    booked = {name: seconds for name, seconds in result.seconds.items() if seconds}
    on_the_way, last = (looks - 1) / 8, 1 / 8
    assert booked == {
        "warmup": 2 + 2 / 8,  # two steps, and a batch of each set that counts
        "train": 30,
        "monitor": on_the_way,
        "evaluate": last,
        "test": 1 / 8,
        "select": passes / 8,
    }


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_evaluate_against_sklearn(toy_images: Callable[[int, int], Images]) -> None:
    """NLL and class-balanced accuracy are scikit-learn's, over several batches and unequal classes."""
    images = toy_images(1600, 4)
    keep = (images.labels != 3) & ((images.labels != 1) | (torch.arange(1600) % 8 == 1))
    images = images.take(torch.where(keep)[0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4)).train()
    before = copy.deepcopy(model.state_dict())
    transform = ImageTransform(Geometry(4, 4)).fit(images)
    nll, accuracy = evaluate(model, images, transform)
    with torch.no_grad():
        logits = model.eval()(transform.evaluation(images.pixels)).double()
    labels = images.labels.numpy()
    assert len(images) > 500
    assert accuracy == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1).numpy()), rel=1e-9)
    assert accuracy != pytest.approx(float((logits.argmax(1) == images.labels).double().mean()), rel=1e-3)
    assert nll == pytest.approx(log_loss(labels, logits.softmax(1).numpy(), labels=range(4)), rel=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_wrong_number_of_examples_is_refused(toy_split: Split, toy_model: nn.Module) -> None:
    """An objective made for another N than the split's is refused with both numbers."""
    with pytest.raises(ValueError, match="made for N = 200, the split has 160"):
        fit(toy_model, toy_split, bound(toy_model, 200), SHORT)


def test_warm_up_leaves_no_trace(toy_split: Split, toy_model: nn.Module) -> None:
    """Warming up changes no weight, buffer, gradient or random number, also with dropout."""
    run = TrainingRun(toy_model, toy_split, bound(toy_model), SHORT, seed=0)
    before, random = copy.deepcopy(toy_model.state_dict()), torch.random.get_rng_state()
    order = run.generator.get_state()
    run.warm_up()
    assert all(torch.equal(tensor, before[name]) for name, tensor in toy_model.state_dict().items())
    assert all(p.grad is None for p in toy_model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.equal(run.generator.get_state(), order)
    assert run.steps_done == 0


def test_global_random_numbers_do_not_change(
    toy_split: Split, toy_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run does not change torch's global random numbers, and on the CPU reseeds no GPU, as building a network."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("a GPU was reseeded"))
    before = torch.random.get_rng_state()
    fit(toy_model, toy_split, bound(toy_model), SHORT)
    build_backbone("digits-resnet", 4)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("make", [bound, point])
def test_warm_up_evaluates_batches_of_all_sizes(
    toy_images: Callable[[int, int], Images], toy_model: nn.Module, make: Callable[[nn.Module, int], Any]
) -> None:
    """Each size of batch that a method's own evaluation has was evaluated in the warm-up, and the mode is training."""
    train, validation = toy_images(520, 1), toy_images(530, 2)
    split = Split(train, validation, toy_images(4, 3), ImageTransform(Geometry(side=4, crop=4)).fit(train))
    run = TrainingRun(toy_model, split, make(toy_model, 520), SHORT, seed=0)
    sizes: set[int] = set()
    toy_model.register_forward_hook(lambda module, args, _: None if module.training else sizes.add(len(args[0])))
    run.warm_up()
    warmed_up = set(sizes)
    assert toy_model.training
    sizes.clear()
    run.evaluate(validation)
    if run.objective.is_bayesian:
        run.nll_under_posterior()
    assert sizes == warmed_up == ({500, 30, 20} if run.objective.is_bayesian else {500, 30})


def test_clipping_bounds_the_step(toy_split: Split, toy_model: nn.Module) -> None:
    """One step moves all trained parameters, rho included, by at most lr * (1 + momentum) * clip_norm."""
    objective = bound(toy_model)
    trained = [*toy_model.parameters(), *objective.parameters()]
    before = [p.detach().clone() for p in trained]
    schedule = Schedule(0.5, steps=1, batch_size=32, clip_norm=1e-3)
    run = TrainingRun(toy_model, toy_split, objective, schedule, seed=0)
    run.step((torch.arange(32), torch.zeros(2, 32, dtype=torch.int64)))
    moved = math.sqrt(sum((p - b).square().sum().item() for p, b in zip(trained, before, strict=True)))
    assert moved == pytest.approx(0.5 * 1.9 * 1e-3, rel=1e-3)


def test_work_is_counted_in_gradients_of_a_batch(toy_split: Split, toy_model: nn.Module) -> None:
    """A step is 1, a forward pass 1/3, each by its images; monitoring, testing and warm-up are not counted."""
    steps, validation = 30, 40 / 32 / 3
    for objective, more in (
        (point(toy_model), 0.0),
        (bound(toy_model), 2 * 160 / 32 / 3),  # two posterior passes
        (HypergradientMAP(make_groups(toy_model, "4", "l2-sp"), 160, {"backbone": 0.1, "head": 0.1}, every=10), 3.0),
    ):
        result = fit(toy_model, toy_split, objective, SHORT)
        assert result.state["gradient_equivalents"] == pytest.approx(steps + validation + more)


def test_work_of_segments_adds_up(toy_split: Split, toy_model: nn.Module) -> None:
    """A run in two segments has the work of both, with its last validation."""
    kept: list[bytes] = []
    for until in (0.5, 1.0):
        handover = Handover(lambda: kept[-1] if kept else None, kept.append)
        model = copy.deepcopy(toy_model)
        result = fit(model, toy_split, point(model), SHORT, until=until, handover=handover)
    assert result.state["gradient_equivalents"] == pytest.approx(30 + 40 / 32 / 3)
