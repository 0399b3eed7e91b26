"""Tests of `LearnedL2` in training loops: accumulation and scalers against float64 autograd, and what is refused."""

import copy
import io
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deelbo import Isotropic, LearnedL2
from tests.helpers.whole_objective import PRIORS, TiedAndUnused, expected_gradients, gradients, make_problem, noise_of

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(5)).double(), torch.arange(12) % 3


def optimizer_of(model: nn.Module, reg: LearnedL2, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD([*model.parameters(), *reg.parameters()], **({"lr": 0.1} | options))


def backward(model: nn.Module, part: slice = slice(None), share: float = 1.0) -> None:
    (F.cross_entropy(model(X[part]), Y[part]) * share).backward()


def mean_nll(network: Callable[[Tensor], Tensor]) -> Tensor:
    return F.cross_entropy(network(X), Y)


def one_block(model: nn.Module, reg: LearnedL2) -> None:
    with reg.sample():
        backward(model)


def several_backwards(model: nn.Module, reg: LearnedL2) -> None:
    with reg.sample():
        for start in range(0, 12, 4):
            backward(model, slice(start, start + 4), 1 / 3)


def several_blocks(model: nn.Module, reg: LearnedL2) -> None:
    for start in range(0, 12, 4):
        with reg.sample(accumulate=True):
            backward(model, slice(start, start + 4), 1 / 3)


def blocks_around_an_evaluation(model: nn.Module, reg: LearnedL2) -> None:
    for start in range(0, 12, 4):
        with reg.sample(accumulate=True):
            backward(model, slice(start, start + 4), 1 / 3)
        with torch.no_grad(), reg.sample():
            model(X)


@pytest.mark.parametrize("form", [one_block, several_backwards, several_blocks, blocks_around_an_evaluation])
@pytest.mark.parametrize(
    ("prior", "groups"), [*((prior, "backbone+head") for prior in PRIORS), ("l2-zero", "layer"), ("l2-sp", "layer")]
)
def test_gradients_of_a_step(prior: str, groups: str, form: Callable[[nn.Module, LearnedL2], None]) -> None:
    """However a batch is divided, the gradients are those of its mean NLL at one draw plus KL / (kappa N) once."""
    model, reg, covariance = make_problem(prior, groups)
    opt = optimizer_of(model, reg, lr=0.0)
    for seed in (7, 8):  # the second step begins with the gradients of the first one
        assert reg.generator is not None
        reg.generator.manual_seed(seed)
        expected = expected_gradients(model, reg, covariance, mean_nll, noise_of(reg, seed))
        form(model, reg)
        for found, wanted in zip(gradients(reg), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14)
        opt.step()


@pytest.mark.parametrize("where", ["no scaler", "disabled", "inside", "after", "accumulated"])
def test_grad_scaler(where: str) -> None:
    """With a GradScaler the unscaled gradients are those without it, wherever ``unscale_`` is called."""
    model, reg, covariance = make_problem("l2-sp")
    expected = expected_gradients(model, reg, covariance, mean_nll, noise_of(reg))
    opt = optimizer_of(model, reg)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, enabled=where not in ("no scaler", "disabled"))
    for part in [slice(0, 6), slice(6, 12)] if where == "accumulated" else [slice(None)]:
        with reg.sample(accumulate=where == "accumulated"):
            loss = F.cross_entropy(model(X[part]), Y[part]) * len(X[part]) / 12
            (loss if where == "no scaler" else scaler.scale(loss)).backward()
            if where == "inside":
                scaler.unscale_(opt)
    if where != "inside":
        scaler.unscale_(opt)
    for found, wanted in zip(gradients(reg), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14)
    before = reg.posterior.rho.item()
    scaler.step(opt)
    scaler.update()
    assert reg.posterior.rho.item() != before


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_step_that_a_scaler_skips(accumulate: bool) -> None:
    """After gradients that overflowed, the next block begins anew, with finite gradients."""
    model, reg, _ = make_problem("l2-sp")
    opt, scaler = optimizer_of(model, reg), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = [p.detach().clone() for p in model.parameters()]
    for factor in (float("inf"), 1.0):
        with reg.sample(accumulate=accumulate):
            scaler.scale(F.cross_entropy(model(X), Y) * factor).backward()
        scaler.step(opt)
        scaler.update()
        moved = not all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert moved == (factor == 1.0)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def unscale_one_of_two(model: nn.Module, reg: LearnedL2, scaler: torch.amp.GradScaler) -> None:
    first = optimizer_of(model.get_submodule("head"), reg)
    with reg.sample():
        scaler.scale(F.cross_entropy(model(X), Y)).backward()
        scaler.unscale_(first)


def unscale_in_the_last_block(model: nn.Module, reg: LearnedL2, scaler: torch.amp.GradScaler) -> None:
    for is_last in (False, True):
        with reg.sample(accumulate=True):
            scaler.scale(F.cross_entropy(model(X), Y) / 2).backward()
            if is_last:
                scaler.unscale_(optimizer_of(model, reg))


def two_scalers(model: nn.Module, reg: LearnedL2, scaler: torch.amp.GradScaler) -> None:
    with reg.sample():
        for each in (scaler, torch.amp.GradScaler("cpu")):
            each.scale(F.cross_entropy(model(X), Y) / 2).backward()


def step_without_the_scaler(model: nn.Module, reg: LearnedL2, scaler: torch.amp.GradScaler) -> None:
    with reg.sample():
        scaler.scale(F.cross_entropy(model(X), Y)).backward()
    optimizer_of(model, reg).step()


def scale_the_loss_of_another_model(model: nn.Module, reg: LearnedL2, scaler: torch.amp.GradScaler) -> None:
    with reg.sample():
        backward(model)
        scaler.scale(torch.ones(()))
    optimizer_of(model, reg).step()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (unscale_one_of_two, r"for an optimizer without first\.weight, first\.bias, second\.bias"),
        (unscale_in_the_last_block, "adds to earlier gradients: call it after"),
        (two_scalers, "two GradScalers"),
        (step_without_the_scaler, r"SGD steps gradients that a GradScaler has scaled: call scaler\.step"),
        (scale_the_loss_of_another_model, "scale another model's loss outside"),
    ],
)
def test_scalers_that_would_give_wrong_gradients(act: Callable[..., None], words: str) -> None:
    """Where only some gradients are in a GradScaler's unit, or those of a plain step are, it is refused."""
    model, reg, _ = make_problem("l2-sp")
    with pytest.raises(RuntimeError, match=words):
        act(model, reg, torch.amp.GradScaler("cpu", init_scale=2.0**10))


def test_fused_optimizers_unscale_by_themselves() -> None:
    """A fused optimizer is given the scale instead of unscaled gradients, and steps as one without a scaler."""
    found = []
    for enabled in (True, False):
        model, reg, _ = make_problem("l2-sp")
        opt = torch.optim.AdamW([*model.parameters(), *reg.parameters()], lr=0.01, weight_decay=0, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        for _ in range(2):
            with reg.sample():
                scaler.scale(F.cross_entropy(model(X), Y)).backward()
            scaler.step(opt)
            scaler.update()
        found.append([p.detach() for p in [*model.parameters(), *reg.parameters()]])
    for scaled, plain in zip(*found, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-10, atol=1e-12)


def test_a_scaler_of_another_thread() -> None:
    """A loss that another thread scales meanwhile leaves the gradients of this thread's block alone."""
    model, reg, covariance = make_problem("l2-sp")
    expected = expected_gradients(model, reg, covariance, mean_nll, noise_of(reg))
    scaler = torch.amp.GradScaler("cpu")
    with reg.sample():
        backward(model)
        thread = threading.Thread(target=lambda: scaler.scale(torch.ones(())))
        thread.start()
        thread.join()
    for found, wanted in zip(gradients(reg), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14)


def freeze(model: TiedAndUnused) -> None:
    model.first.weight.requires_grad_(False)


def replace(model: TiedAndUnused) -> None:
    model.head = nn.Linear(4, 3).double()


def extend(model: TiedAndUnused) -> None:
    model.spare.extra = nn.Parameter(torch.zeros(2).double())


def parametrize(model: TiedAndUnused) -> None:
    nn.utils.parametrizations.weight_norm(model.head)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (freeze, "no longer trains first.weight: make LearnedL2 anew"),
        (replace, "no longer trains head.weight, head.bias and also trains head.weight, head.bias"),
        (extend, "the model also trains spare.extra"),
        (parametrize, "no longer trains head.weight and also trains head.parametrizations.weight.original0"),
        (lambda model: model.float(), r"first.weight, .*and \d+ more changed .*float32 on cpu, was torch.float64"),
        (lambda model: model.head.half(), "head.weight, head.bias changed .*float16"),
    ],
    ids=["freeze", "replace", "extend", "parametrize", "all to float32", "head to float16"],
)
def test_a_model_that_changed_is_refused(change: Callable[[Any], object], words: str) -> None:
    """A block of a model whose trained weights are other ones than before says which, and changes nothing."""
    model, reg, _ = make_problem("l2-sp")
    change(model)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=words), reg.sample():
        pass
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_weight_unfrozen_later_is_refused() -> None:
    """A weight that was frozen when LearnedL2 was made and is trained now has no prior, so the block is refused."""
    model = TiedAndUnused()
    model.spare.requires_grad_(False)
    reg = LearnedL2(model, 10, head="head")
    model.spare.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"also trains spare\.weight, spare\.bias"), reg.sample():
        pass


def test_unfreezing_with_the_same_optimizer() -> None:
    """LearnedL2 made anew can keep sigma and the pretrained weights as the prior's mean, in the same optimizer."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    pretrained = {name: p.detach().clone() for name, p in model.named_parameters()}
    model[0].requires_grad_(False)
    reg = LearnedL2(model, 50, head="4")
    opt = optimizer_of(model, reg, momentum=0.9)
    for _ in range(2):
        one_block(model, reg)
        opt.step()
    model[0].requires_grad_(True)
    sigma, names = reg.sigma, [name for name in pretrained if not name.startswith("4.")]
    mean = torch.cat([pretrained[name].reshape(-1) for name in names])
    reg = LearnedL2(model, 50, Isotropic(mean), "4", sigma=sigma)
    opt.add_param_group({"params": reg.parameters()})
    reg.check(opt)
    assert reg.sigma == pytest.approx(sigma, rel=1e-12)
    moved = sum(float((model.get_parameter(name) - pretrained[name]).detach().square().sum()) for name in names)
    assert reg.lambda_ == pytest.approx(sigma**2 + moved / len(mean), rel=1e-9)
    assert float(opt.state[model[2].weight]["momentum_buffer"].norm()) > 0
    one_block(model, reg)
    opt.step()


def test_changes_that_keep_the_trained_weights() -> None:
    """Frozen or weightless modules may be added, and modules with the same weights renamed."""
    model, reg, _ = make_problem("l2-sp")
    model.norm, model.again = nn.BatchNorm1d(4, affine=False), model.get_submodule("first")
    model.frozen = nn.Linear(2, 2).requires_grad_(False)
    for _ in range(2):
        one_block(model, reg)
        optimizer_of(model, reg).step()


def clamp(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_submodule("head").weight.clamp_(-1, 1)


@pytest.mark.parametrize("act", ["clamp", "step", "step with a closure"])
def test_weights_that_change_inside_a_block(act: str) -> None:
    """A clamp or an optimizer step inside a block is refused, and the weights are put back."""
    model, reg, _ = make_problem("l2-sp")
    opt = optimizer_of(model, reg)
    before = [p.detach().clone() for p in model.parameters()]
    words = r"head\.weight changed in place inside sample\(\)" if act == "clamp" else "steps inside sample"

    def wrong() -> None:
        with reg.sample():
            backward(model)
            if act == "clamp":
                clamp(model)
            else:
                opt.step(None if act == "step" else lambda: 0.0)

    with pytest.raises(RuntimeError, match=words):
        wrong()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    one_block(model, reg)
    opt.step()
    assert not torch.equal(model.get_submodule("head").weight, before[-2])


def test_optimizers_in_backward_hooks_are_refused() -> None:
    """Optimizers that step as soon as a gradient is there would step inside the block."""
    model, reg, _ = make_problem("l2-sp")
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: torch.optim.SGD([p], lr=0.1).step())
    with pytest.raises(RuntimeError, match="steps inside sample"):
        one_block(model, reg)


def test_an_embedding_that_renormalizes_is_refused() -> None:
    """Embedding(max_norm) writes its weight in the forward pass, which leaving the block would undo."""
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.Flatten(), nn.Linear(6, 2))
    reg = LearnedL2(model, 10, head="2")
    with pytest.raises(RuntimeError, match=r"0\.weight changed in place.*max_norm"), reg.sample():
        model(torch.tensor([[1, 2], [3, 4]])).sum().backward()


def test_gradients_that_no_step_used() -> None:
    """A second block before a step is refused, but not after ``zero_grad`` of either kind."""
    model, reg, _ = make_problem("l2-sp")
    opt = optimizer_of(model, reg)
    one_block(model, reg)
    with pytest.raises(RuntimeError, match=r"not been used by an optimizer step.*accumulate=True.*zero_grad"):
        one_block(model, reg)
    for discard in (opt.zero_grad, model.zero_grad, lambda: opt.zero_grad(set_to_none=False)):
        discard()
        one_block(model, reg)


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
@pytest.mark.parametrize("with_rho", [True, False])
def test_accumulation_after_gradients_changed_is_refused(clip: Callable[..., object], with_rho: bool) -> None:
    """Clipping between blocks of one step, or clearing inside one, is refused; zeroing in place begins a new step."""
    model, reg, _ = make_problem("l2-sp")
    opt = optimizer_of(model, reg)
    several_blocks(model, reg)
    clip([*model.parameters(), *(reg.parameters() if with_rho else [])], 1e-3)
    with pytest.raises(RuntimeError, match="clipped or changed otherwise between"):
        several_blocks(model, reg)
    opt.step()
    several_blocks(model, reg)

    def clear_inside() -> None:
        with reg.sample(accumulate=True):
            opt.zero_grad()
            backward(model)

    with pytest.raises(RuntimeError, match="cleared inside sample"):
        clear_inside()
    several_blocks(model, reg)
    opt.zero_grad(set_to_none=False)
    with reg.sample(accumulate=True):
        backward(model)
    assert float(reg.parameters()[0].grad) != 0


def test_a_backward_outside() -> None:
    """Gradients that arrive outside a block are refused where they would be mixed, or cleared by the next block."""
    model, reg, _ = make_problem("l2-sp")
    opt = optimizer_of(model, reg)
    with pytest.warns(RuntimeWarning, match=r"left without a backward pass.*no_grad"), reg.sample():
        loss = F.cross_entropy(model(X), Y)
    with pytest.raises(RuntimeError, match=r"arrived outside sample|modified by an inplace operation"):
        loss.backward()
    opt.zero_grad()
    one_block(model, reg)
    with pytest.raises(RuntimeError, match="arrived outside"):
        backward(model)  # would be mixed with the block's
    opt.step()
    opt.zero_grad()
    backward(model)  # for another purpose
    with pytest.raises(RuntimeError, match=r"would be cleared.*zero_grad"):
        one_block(model, reg)
    opt.zero_grad()
    one_block(model, reg)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_from_another_model_s_loss(set_to_none: bool) -> None:
    """The generator's loss reaches the discriminator, whose ``zero_grad`` of either kind discards that."""
    generator, discriminator = nn.Linear(3, 3), nn.Linear(3, 1)
    regs = [LearnedL2(generator, 10), LearnedL2(discriminator, 10)]
    first, second = (optimizer_of(*pair) for pair in zip((generator, discriminator), regs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            second.zero_grad(set_to_none=set_to_none)
            with regs[1].sample():
                discriminator(generator(torch.ones(4, 3)).detach()).mean().backward()
            second.step()
            with regs[0].sample():
                discriminator(generator(torch.ones(4, 3))).mean().backward()
            first.step()


def whole_step_outside(model: nn.Module, reg: LearnedL2) -> None:
    backward(model)


def evaluation_with_gradients(model: nn.Module, reg: LearnedL2) -> None:
    with torch.no_grad(), reg.sample(), torch.enable_grad():
        backward(model)


@pytest.mark.parametrize("act", [whole_step_outside, evaluation_with_gradients])
def test_a_step_without_the_regularizer(act: Callable[[nn.Module, LearnedL2], None]) -> None:
    """Where an optimizer steps gradients from outside a block, even clipped ones, it warns; a block may follow."""
    model, reg, _ = make_problem("l2-sp")
    opt = optimizer_of(model, reg)
    act(model, reg)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.warns(RuntimeWarning, match=r"SGD has stepped a gradient of .* outside sample"):
        opt.step()
    one_block(model, reg)


def test_two_models_that_share_weights() -> None:
    """Two objects may share weights if an optimizer steps after each block; otherwise gradients would be lost."""
    trunk = nn.Linear(4, 4)
    models = [nn.Sequential(trunk, nn.Linear(4, 2)) for _ in range(2)]
    regs = [LearnedL2(model, 10, head="1") for model in models]
    opt = torch.optim.SGD(dict.fromkeys(p for part in (*models, *regs) for p in part.parameters()), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, reg in zip(models, regs, strict=True):
            with reg.sample():
                model(torch.ones(5, 4)).sum().backward()
            opt.step()
    with regs[0].sample():
        models[0](torch.ones(5, 4)).sum().backward()
    with (
        pytest.raises(RuntimeError, match=r"of 0\.weight, 0\.bias from a block of another LearnedL2"),
        regs[1].sample(),
    ):
        pass


def test_a_linear_probe_outside() -> None:
    """Where torch cannot notice that the weights have changed since the forward pass, the backward pass is refused."""
    model = TiedAndUnused()
    reg = LearnedL2(model.requires_grad_(False).head.requires_grad_(True) and model, 10, head="head")
    with pytest.warns(RuntimeWarning), reg.sample():
        loss = F.cross_entropy(model(X.float()), Y)
    with pytest.raises(RuntimeError, match=r"head\.(weight|bias) arrived outside"):
        loss.backward()


def test_a_draw_under_inference_mode_first() -> None:
    """A first draw for evaluation leaves memory that later training steps can use, and no gradient."""
    model, reg, _ = make_problem("l2-sp")
    with torch.inference_mode(), reg.sample():
        model(X)
    assert all(p.grad is None for p in model.parameters())
    one_block(model, reg)
    optimizer_of(model, reg).step()


def test_evaluation_keeps_gradients() -> None:
    """A block under ``no_grad`` changes neither gradients nor, with rho, the next draws' distribution."""
    model, reg, _ = make_problem("l2-sp")
    one_block(model, reg)
    before = gradients(reg)
    with torch.no_grad(), reg.sample():
        drawn = model.get_submodule("head").weight.clone()
    assert not torch.equal(drawn, model.get_submodule("head").weight)
    assert all(torch.equal(a, b) for a, b in zip(gradients(reg), before, strict=True))
    optimizer_of(model, reg).step()


def without(model: nn.Module, reg: LearnedL2) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def head_only(model: nn.Module, reg: LearnedL2) -> torch.optim.Optimizer:
    return torch.optim.SGD([*model.get_submodule("head").parameters(), *reg.parameters()], lr=0.1)


def adamw(model: nn.Module, reg: LearnedL2) -> torch.optim.Optimizer:
    return torch.optim.AdamW([*model.parameters(), *reg.parameters()])


def ascending(model: nn.Module, reg: LearnedL2) -> torch.optim.Optimizer:
    return optimizer_of(model, reg, maximize=True)


def decay_of_the_head(model: nn.Module, reg: LearnedL2) -> torch.optim.Optimizer:
    backbone = [p for name, p in model.named_parameters() if not name.startswith("head")]
    groups = [{"params": backbone}, {"params": model.get_submodule("head").parameters(), "weight_decay": 0.1}]
    return torch.optim.SGD([*groups, {"params": reg.parameters()}], lr=0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (without, r"does not train reg\.parameters\(\): give it"),
        (head_only, r"does not train first\.weight, first\.bias, second\.bias and 2 more"),
        (adamw, r"AdamW has weight_decay=0\.01 on first\.weight, .*set it to 0"),
        (ascending, r"SGD has maximize=True on first\.weight, .*minimize the mean negative log-likelihood"),
        (decay_of_the_head, r"SGD has weight_decay=0\.1 on head\.weight, head\.bias: set"),
    ],
)
def test_optimizers_are_checked(make: Callable[..., torch.optim.Optimizer], words: str) -> None:
    """`check` refuses a wrong optimizer, and without it two steps warn of it once."""
    model, reg, _ = make_problem("l2-sp")
    opt = make(model, reg)
    with pytest.raises(ValueError, match=words):
        reg.check(opt)

    def steps() -> None:
        for _ in range(4):
            one_block(model, reg)
            opt.step()

    with pytest.warns(RuntimeWarning, match=words) as caught:
        steps()
    assert len(caught) == 1


def test_right_optimizers_do_not_warn() -> None:
    """One optimizer, or one for the backbone and one for the head and rho, pass the check and do not warn."""
    model, reg, _ = make_problem("l2-sp")
    backbone = [p for name, p in model.named_parameters() if not name.startswith("head")]
    decayed = nn.Parameter(torch.ones(()))  # not the model's
    first = torch.optim.SGD([{"params": backbone}, {"params": [decayed], "weight_decay": 0.5}], lr=0.1)
    second = torch.optim.SGD([*model.get_submodule("head").parameters(), *reg.parameters()], lr=0.1)
    reg.check(first, second)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            one_block(model, reg)
            first.step()
            second.step()


def test_other_parameters_are_left_alone() -> None:
    """A learned temperature outside the model is neither regularized nor cleared nor drawn."""
    model, reg, _ = make_problem("l2-sp")
    temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
    opt = torch.optim.SGD([*model.parameters(), *reg.parameters(), temperature], lr=0.0)
    for count in (1, 2):
        reg.generator.manual_seed(7)  # type: ignore[union-attr]
        with reg.sample():
            assert float(temperature.detach()) == 1
            F.cross_entropy(model(X) / temperature, Y).backward()
        assert temperature.grad is not None
        if count == 1:
            once = float(temperature.grad)
        opt.step()
    assert float(temperature.grad) == pytest.approx(2 * once)
    assert reg.dim == sum(p.numel() for p in model.parameters())


class Old(torch.optim.Optimizer):
    """An optimizer that writes through ``data``, which does not raise the weights' version counters."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(0.1 * p.grad)


def lbfgs(model: nn.Module, reg: LearnedL2) -> Callable[[], None]:
    opt = torch.optim.LBFGS([*model.parameters(), *reg.parameters()], lr=0.1, max_iter=3)

    def closure() -> Tensor:
        with reg.sample():
            loss = F.cross_entropy(model(X), Y)
            loss.backward()
        return loss.detach()

    return lambda: opt.step(closure)


def closure_of_sgd(model: nn.Module, reg: LearnedL2) -> Callable[[], None]:
    opt = optimizer_of(model, reg)

    def closure() -> None:
        with reg.sample():
            loss = F.cross_entropy(model(X), Y)
            opt.zero_grad()  # as Lightning does, between forward and backward
            loss.backward()

    return lambda: opt.step(closure)


def block_around_a_closure(model: nn.Module, reg: LearnedL2) -> Callable[[], None]:
    opt = optimizer_of(model, reg)

    def step() -> None:
        block = reg.sample(accumulate=True)  # left in the closure, as by a Lightning callback
        block.__enter__()

        def closure() -> None:
            loss = F.cross_entropy(model(X), Y)
            opt.zero_grad()
            loss.backward()
            block.__exit__(None, None, None)

        opt.step(closure)

    return step


def writes_data(model: nn.Module, reg: LearnedL2) -> Callable[[], None]:
    opt = Old([*model.parameters(), *reg.parameters()], {})

    def step() -> None:
        one_block(model, reg)
        opt.step()

    return step


def no_torch_optimizer(model: nn.Module, reg: LearnedL2) -> Callable[[], None]:
    def step() -> None:
        one_block(model, reg)
        with torch.no_grad():
            for p in [*model.parameters(), *reg.parameters()]:
                p.sub_(0.1 * p.grad)

    return step


@pytest.mark.parametrize("make", [lbfgs, closure_of_sgd, block_around_a_closure, writes_data, no_torch_optimizer])
def test_unusual_optimizers(make: Callable[[nn.Module, LearnedL2], Callable[[], None]]) -> None:
    """Closures, optimizers that hide what they write, and updates by hand count as steps."""
    model, reg, _ = make_problem("l2-sp")
    step = make(model, reg)
    before = F.cross_entropy(model(X), Y).item()
    for _ in range(20):
        step()
    assert F.cross_entropy(model(X), Y).item() < before


def test_a_second_object_takes_over() -> None:
    """A new LearnedL2 for the same weights is not disturbed by an older one that was left in the middle of a step."""
    model, old, _ = make_problem("l2-sp")
    one_block(model, old)
    model.zero_grad()
    reg = LearnedL2(model, 50, head="head")
    opt = optimizer_of(model, reg)
    for _ in range(2):
        one_block(model, reg)
        opt.step()
    assert old.dim == reg.dim


@pytest.mark.parametrize("how", ["copy", "pickle"])
def test_copies_and_files(how: str) -> None:
    """A model with LearnedL2's hooks can be copied and saved; a copy of both trains, and is checked, by itself."""
    model, reg, _ = make_problem("l2-sp", generator=None)
    one_block(model, reg)
    torch.save(model, io.BytesIO())
    other, copied = copy.deepcopy((model, reg)) if how == "copy" else pickle.loads(pickle.dumps((model, reg)))  # noqa: S301
    optimizer_of(other, copied).step()
    for _ in range(2):  # each with a draw of its own
        before = copied.posterior.rho.item()
        one_block(other, copied)
        drawn = gradients(copied)[-1]
        optimizer_of(other, copied).step()
        assert copied.posterior.rho.item() != before
    one_block(other, copied)
    assert not torch.equal(gradients(copied)[-1], drawn)
    optimizer_of(other, copied).step()
    other.get_submodule("head").requires_grad_(False)
    with pytest.raises(RuntimeError, match="no longer trains head"):
        one_block(other, copied)
    optimizer_of(model, reg).step()
    one_block(model, reg)


def test_the_hooks_go_with_the_object() -> None:
    """Once LearnedL2 is gone, its model can be trained without it."""
    model, reg, _ = make_problem("l2-sp")
    one_block(model, reg)
    del reg
    backward(model)


@pytest.mark.parametrize("name", ["kappa", "num_examples"])
def test_a_state_of_another_kappa_or_n_is_refused(name: str) -> None:
    """A state with another kappa or N, or from before they were saved, is refused and changes nothing."""
    _, reg, _ = make_problem("l2-sp", kappa=2.0)
    state = reg.state_dict()
    for value in (state[name] + 1, None):
        with pytest.raises(ValueError, match=f"saved with {name} = {value}, this object has"):
            reg.load_state_dict(state | {name: value})
    reg.load_state_dict(state)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrapped_models(wrap: Callable[[nn.Module], Any]) -> None:
    """A wrapper may be given with the head's name in either module."""
    model = TiedAndUnused()
    inside = {nn.DataParallel: "module"}.get(wrap, "_orig_mod")
    for head in ("head", f"{inside}.head"):
        reg = LearnedL2(wrap(model), 10, head=head, groups="layer")
        assert [group.name for group in reg.groups] == ["first", "second", "spare", "head"]


def test_weights_that_share_memory_are_refused() -> None:
    """Two parameters over one memory would be shifted twice."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    with pytest.raises(ValueError, match=r"share memory.*tie them as one nn\.Parameter"):
        LearnedL2(model, 10)


@pytest.mark.parametrize(
    ("weight", "words"),
    [(torch.zeros(1, 3).expand(4, 3), r"shape \(4, 3\) share memory: clone"), (torch.zeros(2, device="meta"), "meta")],
)
def test_weights_without_memory_of_their_own_are_refused(weight: Tensor, words: str) -> None:
    """Expanded weights, and those on the meta device, cannot be shifted."""
    model = nn.ParameterList([nn.Parameter(weight)])
    with pytest.raises(ValueError, match=words):
        LearnedL2(model, 10)


def test_lazy_modules_are_refused() -> None:
    """A lazy module has no weights before its first batch."""
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"0\.weight of a lazy module has no shape yet"):
        LearnedL2(model, 10, head="1")
    model(torch.zeros(1, 4))
    assert LearnedL2(model, 10, head="1").dim == 4 * 3 + 3 + 3 * 2 + 2


def test_sparse_gradients_become_dense() -> None:
    """An Embedding with sparse gradients has those of a dense one, as its rows all have a prior."""
    found = []
    for sparse in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(7, 3, sparse=sparse), nn.Flatten(), nn.Linear(6, 2)).double()
        reg = LearnedL2(model, 10, head="2", prior="l2-zero", generator=torch.Generator().manual_seed(7))
        with reg.sample():
            F.cross_entropy(model(torch.tensor([[1, 2], [2, 4]])), torch.tensor([0, 1])).backward()
        found.append(gradients(reg))
    for dense, sparse_ in zip(*found, strict=True):
        torch.testing.assert_close(dense, sparse_, rtol=0, atol=1e-15)
