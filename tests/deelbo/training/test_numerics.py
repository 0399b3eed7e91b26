"""Tests of precision and memory layout: their effects, and what stays unchanged."""

import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from deelbo import MAP, DataEmphasizedELBO, Schedule, evaluate, make_groups
from deelbo.data import Geometry, Images, ImageTransform, Split
from deelbo.objectives.base import Objective
from deelbo.training.fit import fit
from deelbo.training.numerics import PRECISIONS, Numerics
from deelbo.training.run import TrainingRun

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _switches() -> Iterator[None]:
    """Restore torch's flags after each test."""
    before = switches()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


def switches() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark


@pytest.mark.parametrize("precision", ["fp16", "", "BF16", None, 16])
def test_an_unknown_precision_is_refused(precision: object) -> None:
    """An unknown precision is refused with the known ones."""
    with pytest.raises(ValueError, match="precision must be one of float32, tf32, bf16, got") as refused:
        Numerics(precision)  # type: ignore[arg-type]
    assert repr(precision) in str(refused.value)


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True), ("bf16", True)])
@pytest.mark.parametrize("before", [(False, False, False), (True, True, True), (True, False, False)])
def test_flags_are_set_inside_the_block_only(precision: str, tf32: bool, before: tuple[bool, bool, bool]) -> None:
    """Inside the block TF32 and cuDNN's search are set by the precision; afterwards the flags are restored."""
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before
    with Numerics(precision).backend_flags():
        assert switches() == (tf32, tf32, True)
    assert switches() == before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_flags_are_restored_after_an_error(precision: str) -> None:
    """A block that raises restores torch's flags, and the error is passed on."""
    before = switches()
    with pytest.raises(RuntimeError, match="in the middle"), Numerics(precision).backend_flags():
        raise RuntimeError("in the middle")
    assert switches() == before


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has no fp32_precision flags"
)
def test_an_inherited_precision_is_inherited_again() -> None:
    """After the block, matrix products follow torch's general precision again if they did before."""
    torch.backends.cuda.matmul.fp32_precision = "none"
    with Numerics("tf32").backend_flags():
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == "none"


@pytest.fixture
def split() -> Split:
    """Return 80 color images of 4 classes with their own color and place, and 40 test images."""

    def images(count: int, seed: int) -> Images:
        random = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 4
        pixels = torch.randint(0, 90, (count, 3, 8, 8), generator=random)
        for c in range(4):
            pixels[labels == c, c % 3, 4 * (c // 2) : 4 * (c // 2) + 4] += 120
        return Images(pixels.to(torch.uint8), labels, 4)

    train = images(80, 1)
    return Split(train, None, images(40, 2), ImageTransform(Geometry(side=8, crop=6, flip=True)).fit(train))


@pytest.fixture
def model() -> nn.Module:
    """Return a small convolutional network with BatchNorm; its head is ``4``."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), pool, nn.Linear(32, 4))


def objective_of(model: nn.Module, kind: str, n: int = 80) -> Objective:
    groups = make_groups(model, "4", "l2-sp")
    if kind == "map":
        return MAP(groups, n, {"backbone": 0.01, "head": 0.01})
    return DataEmphasizedELBO(groups, n, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["map", "de-elbo"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_activations_are_in_bf16_and_the_rest_is_not(precision: str, kind: str, split: Split, model: nn.Module) -> None:
    """In bf16 convolutions and the head give bf16; weights, gradients, momentum, rho and loss stay float32."""
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for layer in (model[0], model[4]):  # type: ignore[index]
        layer.register_forward_hook(lambda module, _, output: seen[module.training].add(output.dtype))
    objective = objective_of(model, kind)
    run = TrainingRun(model.train(), split, objective, Schedule(0.01, steps=4, batch_size=20), 0, Numerics(precision))
    losses = [run.step(batch) for batch in run.batches()[:2]]
    run.evaluate(split.test)
    expected = {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert seen == {True: expected, False: expected}
    weights = [*objective.weights, *objective.parameters()]
    kept = [
        *weights,
        *(p.grad for p in weights),
        *(run.optimizer.state[p]["momentum_buffer"] for p in weights),
        *losses,
    ]
    assert {tensor.dtype for tensor in kept if tensor is not None} == {torch.float32}
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_have_the_memory_layout(channels_last: bool, split: Split, model: nn.Module) -> None:
    """With channels_last every batch reaches the model in that layout, else contiguous."""
    seen: list[tuple[bool, bool, bool]] = []
    inputs: list[Tensor] = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        seen.append((module.training, x.is_contiguous(), x.is_contiguous(memory_format=LAST)))
        inputs.append(x.detach().contiguous())

    model.register_forward_pre_hook(note)
    numerics = Numerics(channels_last=channels_last)
    run = TrainingRun(
        model.train(), split, objective_of(model, "map"), Schedule(0.01, steps=4, batch_size=20), 0, numerics
    )
    (batch, *_) = run.batches()
    run.step(batch)
    run.evaluate(split.test)
    assert seen == [(True, not channels_last, channels_last), (False, not channels_last, channels_last)]
    view = split.transform.geometry
    expected = split.transform.normalization(view.training(split.train.pixels[batch[0]], batch[1]))
    assert torch.equal(inputs[0], expected.contiguous())
    assert torch.equal(inputs[1], split.transform.normalization(view.evaluation(split.test.pixels)).contiguous())


@pytest.mark.parametrize("kind", ["map", "de-elbo"])
@pytest.mark.parametrize(
    "numerics", [Numerics(), Numerics("tf32"), Numerics("bf16"), Numerics("bf16", True), Numerics(channels_last=True)]
)
def test_training_helps_in_any_numerics(numerics: Numerics, kind: str, split: Split, model: nn.Module) -> None:
    """A run in any precision and layout classifies new images and restores torch's flags."""
    before = switches()
    schedule = Schedule(0.1, steps=60, batch_size=20, posterior_passes=1)
    result = fit(model, split, objective_of(model, kind), schedule, numerics=numerics)
    assert result.status == "completed"
    assert result.metrics["test_acc"] > 0.9
    assert result.series[-1]["train_nll"] < 0.8 * result.series[0]["train_nll"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert switches() == before


def test_layouts_agree(split: Split, model: nn.Module) -> None:
    """A run with channels last gives the numbers of one without, up to rounding."""
    results = [
        fit(other, split, objective_of(other, "de-elbo"), Schedule(0.05, steps=12, batch_size=20), numerics=numerics)
        for numerics in (Numerics(), Numerics(channels_last=True))
        for other in [copy.deepcopy(model)]
    ]
    assert results[0].metrics == pytest.approx(results[1].metrics, rel=1e-4)


def test_evaluation_is_in_float32_by_default(split: Split, model: nn.Module) -> None:
    """Without numerics a network is evaluated in float32; its NLL in bf16 is another, near to it."""
    arguments = (model, split.test, split.transform)
    plain, half = evaluate(*arguments), evaluate(*arguments, Numerics("bf16"))
    assert plain == evaluate(*arguments, Numerics("float32"))
    assert half[0] != plain[0]
    assert half[0] == pytest.approx(plain[0], rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_is_the_same_run(toy_split: Split, toy_model: nn.Module) -> None:
    """torch.compile gives eager training's losses and weights up to rounding; evaluation is not compiled."""
    toy_model[3].p = 0.0  # a compiled dropout draws its own numbers
    found = []
    for compiled in (False, True):
        own = copy.deepcopy(toy_model).train()
        numerics, schedule = Numerics(compile=compiled), Schedule(0.05, steps=4, batch_size=40)
        run = TrainingRun(own, toy_split, objective_of(own, "de-elbo", 160), schedule, 0, numerics)
        assert (run.forward is not own) is compiled
        losses = [float(run.step(batch)) for batch in run.batches()[:3]]
        found.append((losses, [p.detach() for p in own.parameters()], run.evaluate(toy_split.test)[0]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
