"""Problems that people have reported of tools that change weights during training; docs/tested-by.md lists them."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from deelbo import LearnedL2
from tests.helpers.hand_written_loop import HandWritten, Recorder, check_draws, grouped

N = 40


def make_model(kind: str = "plain") -> nn.Module:
    """A network of float64 weights and a BatchNorm, with the named feature; the same at each call."""
    torch.manual_seed(1)
    first: nn.Module = nn.Linear(6, 8)
    if kind == "weight_norm":
        first = parametrizations.weight_norm(first)
    elif kind == "weight_norm of old":
        first = nn.utils.weight_norm(first)
    elif kind == "spectral_norm":
        first = parametrizations.spectral_norm(first)
    elif kind == "spectral_norm of old":
        first = nn.utils.spectral_norm(first)
    elif kind == "pruned":
        prune.random_unstructured(first, "weight", 0.5)
    model = nn.Sequential(first, nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    if kind == "tied":
        model[3].weight = first.weight = nn.Parameter(torch.randn(8, 8))
        first.in_features = 8
    elif kind == "frozen BatchNorm":
        model[1].requires_grad_(False)
    return model.double()


def make_batches(steps: int = 5, features: int = 6) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(8 * steps, features, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return list(zip(x.split(8), labels_of(x).split(8), strict=True))


def labels_of(x: Tensor) -> Tensor:
    return (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class Loop:
    """A model with `LearnedL2`, an optimizer and a recorder; ``compare`` trains the loop written by hand beside it."""

    def __init__(self, kind: str = "plain", optimizer: Callable[[Any], torch.optim.Optimizer] = sgd) -> None:
        self.start, self.model, self.make_optimizer = make_model(kind), make_model(kind), optimizer
        self.recorder = Recorder(self.model)
        self.reg = LearnedL2(self.model, N, head="5", sigma=0.05)
        self.optimizer = optimizer([*self.model.parameters(), *self.reg.parameters()])

    def compare(self, sizes: list[int] | None = None) -> None:
        steps = grouped(self.recorder.calls, sizes or [1] * 5)
        check_draws(steps)
        loss = lambda output, args: F.cross_entropy(output, labels_of(args[0]))  # noqa: E731
        weights, rho = HandWritten(self.start, "5.", 0.05, self.make_optimizer, loss).train(steps)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(self.reg.posterior.rho.detach(), rho, rtol=1e-9, atol=1e-11)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y)


REPARAMETRIZED = ["plain", "weight_norm", "weight_norm of old", "spectral_norm", "spectral_norm of old", "pruned"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("kind", [*REPARAMETRIZED, "tied", "frozen BatchNorm"])
def test_weights_that_are_computed_shared_or_frozen(kind: str) -> None:
    """torch issues of weight_norm and spectral_norm in averaged or exchanged weights: the true leaves are drawn."""
    loop = Loop(kind)
    for x, y in make_batches(features=8 if kind == "tied" else 6):
        with loop.reg.sample():
            loop.loss(x, y).backward()
        loop.optimizer.step()
    loop.compare()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    """torch issues of checkpoint: activations are computed again in backward, at the same draw."""
    loop = Loop()
    body, rest = loop.model[2:5], loop.model[5]
    for x, y in make_batches():
        with loop.reg.sample():
            loop.recorder._record(loop.model, (x,), {})
            hidden = checkpoint(body, loop.model[1](loop.model[0](x)), use_reentrant=use_reentrant)
            F.cross_entropy(rest(hidden), y).backward()
        loop.optimizer.step()
    loop.compare()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_zeroed_in_place(set_to_none: bool, accumulate: bool) -> None:
    """fairscale and torch issues of set_to_none: gradients that are views of one buffer, zeroed by the loop."""
    loop = Loop()
    for x, y in make_batches():
        for x_part, y_part in zip(x.chunk(2), y.chunk(2), strict=True) if accumulate else [(x, y)]:
            with loop.reg.sample(accumulate=accumulate):
                (loop.loss(x_part, y_part) / (1 + accumulate)).backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad(set_to_none=set_to_none)
    loop.compare([1 + accumulate] * 5)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("clears", [False, True])
def test_a_grad_scaler_that_skips_a_step(accumulate: bool, clears: bool) -> None:
    """SAM issues of mixed precision: float16 overflows, GradScaler skips the step; the next is a step of its own."""
    loop = Loop()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for i, (x, y) in enumerate(make_batches(steps=6)):
        with loop.reg.sample(accumulate=accumulate):
            loss = loop.loss(x, y)
            scaler.scale(loss * math.inf if i == 2 else loss).backward()
        scaler.unscale_(loop.optimizer)
        scaler.step(loop.optimizer)
        scaler.update()
        if clears:
            loop.optimizer.zero_grad()
    del loop.recorder.calls[2]
    loop.compare()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0, fused=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.001),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    """Issues of fused and foreach optimizers with gradients of another layout or address."""
    loop = Loop(optimizer=OPTIMIZERS[name])
    loop.reg.check(loop.optimizer)
    for x, y in make_batches():
        with loop.reg.sample():
            loop.loss(x, y).backward()
        loop.optimizer.step()
    loop.compare()


class Batched(nn.Module):
    """A product whose gradient has other strides than its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(3)).double())

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.expand(2, *x.shape), self.weight.transpose(1, 2)).squeeze(2).T


@pytest.mark.parametrize("name", ["AdamW foreach", "AdamW fused"])
def test_a_gradient_with_other_strides_than_its_weight(name: str) -> None:
    """A torch issue of fused Adam: a weight of size 1 in one dimension gets a gradient of other strides."""
    loop = Loop(optimizer=OPTIMIZERS[name])
    loop.model[0] = Batched()
    loop.model[1] = nn.Linear(2, 8).double()
    loop.start = copy.deepcopy(loop.model)
    loop.start._forward_pre_hooks.clear()
    loop.reg = LearnedL2(loop.model, N, head="5", sigma=0.05)
    loop.optimizer = loop.make_optimizer([*loop.model.parameters(), *loop.reg.parameters()])
    loop.recorder.weights = list(loop.model.parameters())
    weight = loop.model[0].weight
    assert torch.autograd.grad(loop.model[0](make_batches()[0][0]).sum(), weight)[0].stride() != weight.stride()
    for x, y in make_batches():
        with loop.reg.sample():
            loop.loss(x, y).backward()
        loop.optimizer.step()
    loop.compare()


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_compiled_optimizer_step(accumulate: bool) -> None:
    """A compiled step runs no hooks of torch's optimizers: it is noticed by the weights' version."""
    loop = Loop()
    step = torch.compile(loop.optimizer.step, backend="eager")
    for x, y in make_batches():
        with loop.reg.sample(accumulate=accumulate):
            loop.loss(x, y).backward()
        step()
    loop.compare()


def test_lbfgs() -> None:
    """Lightning's and torch's issues of closures: each evaluation of the closure is a block with its own draw."""
    loop = Loop(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3))
    x, y = make_batches()[0]

    def closure() -> Tensor:
        loop.optimizer.zero_grad()
        with loop.reg.sample():
            loss = loop.loss(x, y)
            loss.backward()
        return loss

    before = loop.model[5].weight.detach().clone()
    for _ in range(2):
        loss = loop.optimizer.step(closure)
    assert loss < F.cross_entropy(loop.start(x), y)
    assert not torch.equal(before, loop.model[5].weight)
    check_draws(grouped(loop.recorder.calls, [1] * len(loop.recorder.calls)))


def test_two_networks_of_a_gan() -> None:
    """Issues of loops with two optimizers: each network has its own object.

    The generator's backward pass puts gradients on the critic, which `zero_grad` discards. The penalty of the critic's
    slope takes a backward pass of second order.
    """
    torch.manual_seed(0)
    generator, critic = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    regs = LearnedL2(generator, N), LearnedL2(critic, N)
    opts = [sgd([*m.parameters(), *r.parameters()]) for m, r in zip((generator, critic), regs, strict=True)]
    for _ in range(3):
        with regs[1].sample():
            fake = generator(torch.randn(5, 2)).detach().requires_grad_()
            score = critic(fake).mean()
            (slope,) = torch.autograd.grad(score, fake, create_graph=True)
            (score + (slope.norm() - 1).square()).backward()
        opts[1].step()
        opts[1].zero_grad()
        with regs[0].sample():
            critic(generator(torch.randn(5, 2))).mean().backward()
        opts[0].step()
        opts[1].zero_grad()


def test_two_objects_for_two_parts_of_a_model() -> None:
    """Blocks of different objects may be nested; each has the gradients of its own part."""
    model = make_model()
    regs = LearnedL2(model[0], N), LearnedL2(model[5], N)
    opt = sgd([*model.parameters(), *regs[0].parameters(), *regs[1].parameters()])
    for x, y in make_batches():
        opt.zero_grad()
        with regs[0].sample(), regs[1].sample():
            F.cross_entropy(model(x), y).backward()
        assert all(reg.posterior.rho.grad is not None for reg in regs)
        opt.step()


@pytest.mark.parametrize("make_copy", [copy.deepcopy, AveragedModel])
def test_a_copy_of_the_model_is_free(make_copy: Callable[[nn.Module], nn.Module]) -> None:
    """Issues of EMA, SWA and teacher copies: a copy made while `LearnedL2` watches the model trains on its own."""
    loop = Loop()
    twin = make_copy(loop.model)
    for x, y in make_batches():
        with loop.reg.sample():
            loop.loss(x, y).backward()
        F.cross_entropy(twin(x), y).backward()
        loop.optimizer.step()
        if isinstance(twin, AveragedModel):
            twin.update_parameters(loop.model)
    loop.compare()


def test_an_average_of_a_whole_training_module() -> None:
    """An averaging callback copies everything, `LearnedL2` included; both go on, and neither disturbs the other."""
    loop = Loop()
    model, reg = copy.deepcopy((loop.model, loop.reg))
    opt = sgd([*model.parameters(), *reg.parameters()])
    for x, y in make_batches():
        for some_model, some_reg, some_opt in ((loop.model, loop.reg, loop.optimizer), (model, reg, opt)):
            with some_reg.sample():
                F.cross_entropy(some_model(x), y).backward()
            some_opt.step()
    assert reg.sigma != 0.05
    loop.compare()


def test_pickled_in_the_middle() -> None:
    """Issues of spawned processes: model and `LearnedL2` are pickled together between two steps, and go on."""
    loop = Loop()
    batches = make_batches()
    loop.model._forward_pre_hooks.clear()
    loop.model._forward_pre_hooks_with_kwargs.clear()
    for i, (x, y) in enumerate(batches):
        if i == 2:
            loop.model, loop.reg, loop.optimizer = pickle.loads(  # noqa: S301
                pickle.dumps((loop.model, loop.reg, loop.optimizer))
            )
        with loop.reg.sample():
            loop.recorder.calls.append(([p.detach().clone() for p in loop.model.parameters()], (x,), {}))
            loop.loss(x, y).backward()
        loop.optimizer.step()
    loop.compare()


def test_a_model_compiled_before() -> None:
    """A torch issue: hooks that are registered after the first compiled pass are ignored; those of weights are not."""
    loop = Loop()
    loop.model._forward_pre_hooks.clear()
    compiled = torch.compile(loop.model, backend="aot_eager")
    x, y = make_batches()[0]
    F.cross_entropy(compiled(x), y).backward()
    loop.optimizer.zero_grad()
    reg = LearnedL2(loop.model, N, head="5", sigma=0.05)
    F.cross_entropy(compiled(x), y).backward()
    with pytest.raises(RuntimeError, match=r"arrived outside sample"), reg.sample():
        pass


def test_a_compiled_model_that_was_evaluated_first() -> None:
    """A torch issue: a compiled model froze its weights when it first ran under inference_mode in evaluation mode."""
    loop = Loop()
    compiled = torch.compile(loop.model, backend="aot_eager")
    x, y = make_batches()[0]
    for _ in range(2):
        compiled.eval()
        with torch.inference_mode(), loop.reg.sample():
            drawn = compiled(x).clone()
            torch.testing.assert_close(drawn, loop.model(x))
        assert not torch.equal(drawn, loop.model(x))
        compiled.train()
        with loop.reg.sample():
            F.cross_entropy(compiled(x), y).backward()
        loop.optimizer.step()


def test_the_name_of_a_head_inside_a_compiled_model() -> None:
    """An issue of an average that skipped all names with the prefix ``_orig_mod.`` without a word."""
    model = make_model()
    compiled = torch.compile(model, backend="eager")
    for head in ("5", "_orig_mod.5"):
        assert LearnedL2(compiled, N, head=head).tau == LearnedL2(model, N, head="5").tau


def test_a_parametrization_registered_later() -> None:
    """A torch issue of DDP: a weight that is replaced after the wrapper was made has no hook, and nobody says so."""
    loop = Loop()
    parametrizations.weight_norm(loop.model[0])
    with pytest.raises(RuntimeError, match="make LearnedL2 anew"), loop.reg.sample():
        pass
    parametrize.remove_parametrizations(loop.model[0], "weight")
    with pytest.raises(RuntimeError, match="make LearnedL2 anew"), loop.reg.sample():
        pass


def test_lazy_weights_are_refused() -> None:
    """Issues of lazy modules: they have no weights before the first forward pass."""
    with pytest.raises(ValueError, match=r"(?i)lazy|uninitialized"):
        LearnedL2(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), N)


def test_gradients_that_are_assigned() -> None:
    """Loops that compute gradients with `torch.autograd.grad` or `torch.func` and assign them."""
    loop = Loop()
    for x, y in make_batches():
        with loop.reg.sample():
            weights = list(loop.model.parameters())
            for p, gradient in zip(weights, torch.autograd.grad(loop.loss(x, y), weights), strict=True):
                p.grad = gradient
        loop.optimizer.step()
    loop.compare()


def test_an_optimizer_inside_the_backward_pass() -> None:
    """torch's tutorial of optimizers in backward hooks, and optimizers that fuse both passes: refused."""
    loop = Loop()
    for p in loop.model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: torch.optim.SGD([p], lr=0.1).step())
    x, y = make_batches()[0]
    with pytest.raises(RuntimeError, match="inside sample"), loop.reg.sample():
        loop.loss(x, y).backward()
    for p, start in zip(loop.model.parameters(), loop.start.parameters(), strict=True):
        assert torch.equal(p, start)


def test_validation_between_the_micro_batches_of_a_step() -> None:
    """Lightning issues of validation inside an accumulated step: a draw that is evaluated leaves the step's alone."""
    loop = Loop()
    for x, y in make_batches():
        for x_part, y_part in zip(x.chunk(2), y.chunk(2), strict=True):
            with loop.reg.sample(accumulate=True):
                (loop.loss(x_part, y_part) / 2).backward()
            loop.model.eval()
            with torch.no_grad(), loop.reg.sample():
                loop.model(x)
            loop.model.train()
        loop.optimizer.step()
    loop.compare([2] * 5)


def test_manual_steps_through_data() -> None:
    """Loops that update ``p.data`` are seen by no hook and no version: they need zero_grad, and are told so."""
    loop = Loop()
    x, y = make_batches()[0]
    with loop.reg.sample():
        loop.loss(x, y).backward()
    for p in loop.model.parameters():
        p.data -= 0.1 * p.grad
    with pytest.raises(RuntimeError, match="zero_grad"), loop.reg.sample():
        pass
    loop.optimizer.zero_grad()
    with loop.reg.sample():
        loop.loss(x, y).backward()
