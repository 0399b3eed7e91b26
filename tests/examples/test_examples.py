"""Each recipe of ``examples/`` runs, and makes the same steps as the loop written out by hand."""

import copy
import importlib.util
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import deelbo
from deelbo.data import Examples, Task
from tests.helpers.hand_written_loop import Call, HandWritten, Recorder, check_draws, grouped

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS, BATCH, N = 5, 12, 60
LR, CLIP, SIGMA = 0.05, 1.0, 0.05
IGNORED = "ignore::{}"  # the frameworks' own warnings; those of `LearnedL2` are RuntimeWarnings
pytestmark = [pytest.mark.filterwarnings(IGNORED.format(kind)) for kind in ("UserWarning", "FutureWarning")]
pytestmark.append(pytest.mark.filterwarnings("error::RuntimeWarning"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def make_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def labels_of(x: Tensor) -> Tensor:
    return (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def make_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(STEPS * BATCH, 6, dtype=torch.float64, generator=generator)
    return x, labels_of(x)


def nll(output: Tensor, args: tuple[Any, ...]) -> Tensor:
    return F.cross_entropy(output, labels_of(args[0]))


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=LR, momentum=0.9)


def batches() -> list[tuple[Tensor, Tensor]]:
    x, y = make_data()
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def compare(
    start: nn.Module,
    model: nn.Module,
    rho: Tensor,
    steps: list[list[Call]],
    parts: int | None = None,
    **settings: Any,
) -> None:
    """Assert that weights and rho are those of the hand-written loop from ``start`` with the same draws."""
    check_draws(steps)
    defaults = {"head": "2.", "sigma": SIGMA, "optimizer": sgd, "loss": nll, "clip": CLIP}
    loop = HandWritten(copy.deepcopy(start), **defaults | settings)
    weights, expected_rho = loop.train(steps, parts)
    before = dict(start.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-9, atol=1e-11)
            assert not torch.equal(parameter, before[name]) or "key.bias" in name  # which softmax cancels
    torch.testing.assert_close(rho.detach(), expected_rho, rtol=1e-9, atol=1e-11)
    assert abs(float(expected_rho) - math.log(math.expm1(loop.sigma))) > 1e-5


@pytest.mark.parametrize(("micro_batches", "scaled"), [(1, False), (3, False), (3, True)])
def test_plain_torch(micro_batches: int, scaled: bool, tmp_path: Path) -> None:
    recipe, net = load("plain_torch"), make_net()
    start, recorder = copy.deepcopy(net), Recorder(net)
    reg = deelbo.LearnedL2(net, N, head="2", sigma=SIGMA)
    opt = sgd([*net.parameters(), *reg.parameters()])
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    for x, y in batches():
        recipe.train_step(net, reg, opt, scaler, x, y, micro_batches)
    compare(start, net, reg.posterior.rho, grouped(recorder.calls, [micro_batches] * STEPS))


@pytest.fixture(scope="module")
def lightning() -> ModuleType:
    return load("lightning_callback")


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    return load("transformers_trainer")


@pytest.fixture(scope="module")
def ddp_output(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    """What the two processes have printed and saved."""
    folder, root = tmp_path_factory.mktemp("ddp"), EXAMPLES.parent
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "tests.examples.ddp_worker", str(folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=root, env=env, **streams) as launched:
        try:
            printed, errors = launched.communicate(timeout=120)
        finally:
            launched.terminate()  # torchrun ends its workers
    assert launched.returncode == 0, errors
    return printed, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


class TestLightning:
    """The callback, in a Trainer with a sanity check, validation and clipping."""

    @staticmethod
    def module(lightning: ModuleType, net: nn.Module) -> Any:
        class Module(lightning.L.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                return F.cross_entropy(self.net(batch[0]), batch[1])

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                self.net(batch[0])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                self.reg = deelbo.LearnedL2(self.net, N, head="2", sigma=SIGMA)
                return sgd([*self.net.parameters(), *self.reg.parameters()])

        return Module()

    @staticmethod
    def trainer(lightning: ModuleType, folder: Path, more: Sequence[Any] = (), **settings: Any) -> Any:
        settings |= {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        settings |= {"accelerator": "cpu", "gradient_clip_val": CLIP, "default_root_dir": folder}
        return lightning.L.Trainer(callbacks=[lightning.LearnedL2Callback(), *more], **settings)

    @staticmethod
    def loader(batch_size: int) -> Any:
        return DataLoader(TensorDataset(*make_data()), batch_size=batch_size)

    @pytest.mark.parametrize("scaled", [False, True])
    @pytest.mark.parametrize("accumulate", [1, 3])
    def test_steps(self, lightning: ModuleType, accumulate: int, scaled: bool, tmp_path: Path) -> None:
        net = make_net()
        module, start, recorder = self.module(lightning, net), copy.deepcopy(net), Recorder(net)
        settings = {"max_epochs": 1, "accumulate_grad_batches": accumulate, "enable_checkpointing": False}
        if scaled:
            from lightning.pytorch.plugins import MixedPrecision

            settings["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]
        trainer = self.trainer(lightning, tmp_path, **settings)
        trainer.fit(module, self.loader(BATCH // accumulate), self.loader(BATCH))
        compare(start, net, module.reg.posterior.rho, grouped(recorder.calls, [accumulate] * STEPS))

    def test_the_last_step_of_an_epoch_may_have_fewer_batches(self, lightning: ModuleType, tmp_path: Path) -> None:
        """15 batches in steps of 4, 4, 4 and 3; two epochs. Lightning divides each loss by 4 all the same."""
        net = make_net()
        module, start, recorder = self.module(lightning, net), copy.deepcopy(net), Recorder(net)
        trainer = self.trainer(lightning, tmp_path, max_epochs=2, accumulate_grad_batches=4, enable_checkpointing=False)
        trainer.fit(module, self.loader(4))
        compare(start, net, module.reg.posterior.rho, grouped(recorder.calls, [4, 4, 4, 3] * 2), parts=4)

    def test_a_checkpoint_resumes(self, lightning: ModuleType, tmp_path: Path) -> None:
        """Two of the five steps, then another process's objects with other initial weights make the other three."""
        net = make_net()
        start, recorder = copy.deepcopy(net), Recorder(net)
        trainer = self.trainer(lightning, tmp_path, max_steps=2)
        trainer.fit(self.module(lightning, net), self.loader(BATCH))
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        net2 = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        module, recorder2 = self.module(lightning, net2), Recorder(net2)
        trainer = self.trainer(lightning, tmp_path, max_steps=STEPS)
        trainer.fit(module, self.loader(BATCH), self.loader(BATCH), ckpt_path=tmp_path / "last.ckpt")
        compare(start, net2, module.reg.posterior.rho, grouped([*recorder.calls, *recorder2.calls], [1] * STEPS))

    def test_an_exception_restores_the_weights(self, lightning: ModuleType, tmp_path: Path) -> None:
        net = make_net()
        module, start = self.module(lightning, net), copy.deepcopy(net)
        net.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            self.trainer(lightning, tmp_path, max_steps=1, enable_checkpointing=False).fit(module, self.loader(BATCH))
        for a, b in zip(net.parameters(), start.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_a_checkpoint_written_because_of_an_exception(self, lightning: ModuleType, tmp_path: Path) -> None:
        """Issues of exchanged weights in checkpoints: the weights are saved, not the draw of the open block."""
        from lightning.pytorch.callbacks import OnExceptionCheckpoint

        net = make_net()
        module, recorder = self.module(lightning, net), Recorder(net)
        net.register_forward_hook(lambda *_: None if len(recorder.calls) < 3 else 1 / 0)
        checkpoint = OnExceptionCheckpoint(tmp_path, "broken")
        checkpoint.teardown = lambda *_, **__: None  # which removes the file
        trainer = self.trainer(lightning, tmp_path, max_epochs=1, more=[checkpoint])
        with pytest.raises(ZeroDivisionError):
            trainer.fit(module, self.loader(BATCH))
        saved = torch.load(tmp_path / "broken.ckpt", weights_only=True)["state_dict"]
        drawn = recorder.calls[-1][0]
        for (name, parameter), draw in zip(net.named_parameters(), drawn, strict=True):
            assert torch.equal(saved[f"net.{name}"], parameter)
            assert not torch.equal(parameter, draw)

    def test_averaged_weights_are_validated_inside_a_step(self, lightning: ModuleType, tmp_path: Path) -> None:
        """An averaging callback exchanges the weights for a validation between two batches of one optimizer step."""
        from lightning.pytorch.callbacks import EMAWeightAveraging

        net = make_net()
        start, recorder = copy.deepcopy(net), Recorder(net)
        average = EMAWeightAveraging(decay=0.5)
        average._copy_average_to_current = lambda _: None  # at the end of training
        module, swap, swaps = self.module(lightning, net), average._swap_models, []
        average._swap_models = lambda module: (swap(module), swaps.append(net[0].weight.detach().clone()))
        settings = {"max_epochs": 1, "accumulate_grad_batches": 2, "val_check_interval": 1, "more": [average]}
        trainer = self.trainer(lightning, tmp_path, enable_checkpointing=False, **settings)
        trainer.fit(module, self.loader(BATCH // 2), self.loader(BATCH))
        assert sum(not torch.equal(a, b) for a, b in zip(swaps[::2], swaps[1::2], strict=True)) > STEPS
        compare(start, net, module.reg.posterior.rho, grouped(recorder.calls, [2] * STEPS))


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)


class TestTransformers:
    """The Trainer's subclass, with its own AdamW and clipping, on a tiny random BERT."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "head": "classifier",
        "sigma": 1e-4,
        "optimizer": adamw,
        "clips_rho": False,
        "loss": lambda output, _: output.loss,
    }

    @staticmethod
    def bert(transformers: ModuleType, seed: int = 1) -> Any:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=3, **sizes, **no_dropout)
        return transformers.BertForSequenceClassification(config).double()

    @staticmethod
    def train(transformers: ModuleType, model: Any, folder: Path, accumulate: int, **settings: Any) -> Any:
        resume, model_init = settings.pop("resume", None), settings.pop("model_init", None)
        ids = torch.randint(0, 20, (N, 6), generator=torch.Generator().manual_seed(3))
        data = [{"input_ids": row, "labels": row.sum() % 3} for row in ids]
        args = transformers.TrainingArguments(
            str(folder),
            per_device_train_batch_size=BATCH // accumulate,
            gradient_accumulation_steps=accumulate,
            learning_rate=0.01,
            lr_scheduler_type="constant",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **settings,
        )
        trainer = transformers.LearnedL2Trainer(
            model, args, train_dataset=data, head="classifier", model_init=model_init
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    @pytest.mark.parametrize("accumulate", [1, 3])
    def test_steps(self, transformers: ModuleType, accumulate: int, tmp_path: Path) -> None:
        model = self.bert(transformers)
        start, recorder = copy.deepcopy(model), Recorder(model)
        trainer = self.train(transformers, model, tmp_path, accumulate, max_steps=STEPS, save_strategy="no")
        compare(start, model, trainer.reg.posterior.rho, grouped(recorder.calls, [accumulate] * STEPS), **self.SETTINGS)

    def test_a_checkpoint_resumes(self, transformers: ModuleType, tmp_path: Path) -> None:
        model = self.bert(transformers)
        start, recorder = copy.deepcopy(model), Recorder(model)
        self.train(transformers, model, tmp_path, 2, max_steps=2, save_steps=2)
        model = self.bert(transformers, seed=9)
        recorder2 = Recorder(model)
        settings = {"max_steps": STEPS, "save_strategy": "no", "resume": str(tmp_path / "checkpoint-2")}
        trainer = self.train(transformers, model, tmp_path, 2, **settings)
        steps = grouped([*recorder.calls, *recorder2.calls], [2] * STEPS)
        compare(start, model, trainer.reg.posterior.rho, steps, **self.SETTINGS)

    def test_a_model_that_trainer_makes_anew(self, transformers: ModuleType, tmp_path: Path) -> None:
        """With ``model_init`` the trained model is not the one that the constructor has seen; then it trains on."""
        made: list[Any] = []
        make = lambda: made.append(self.bert(transformers)) or made[-1]  # noqa: E731
        settings = {"model_init": make, "max_steps": 2, "save_strategy": "no"}
        trainer = self.train(transformers, None, tmp_path, 2, **settings)
        assert len(made) > 1
        assert trainer.reg.posterior.weights[0] is next(made[-1].parameters())
        assert trainer.reg.sigma != pytest.approx(1e-4, rel=1e-6)

    def test_a_weight_decay_is_refused(self, transformers: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="weight_decay"):
            self.train(transformers, self.bert(transformers), tmp_path, 1, max_steps=1, weight_decay=0.01)


@pytest.mark.parametrize(("accumulate", "batch_size"), [(1, 12), (3, 4), (2, 12)], ids=["1", "3", "2 and 1"])
def test_accelerate(accumulate: int, batch_size: int, tmp_path: Path) -> None:
    """Steps of one, of three and of two batches, the epoch's last being of one batch; then the state is loaded."""
    recipe, net = load("accelerate_loop"), make_net()
    start, recorder = copy.deepcopy(net), Recorder(net)
    accelerator = recipe.Accelerator(gradient_accumulation_steps=accumulate, cpu=True)
    loader = DataLoader(TensorDataset(*make_data()), batch_size=batch_size)
    model, loader = accelerator.prepare(net, loader)
    reg = deelbo.LearnedL2(net, N, head="2", sigma=SIGMA)
    opt = accelerator.prepare(sgd([*net.parameters(), *reg.parameters()]))
    reg.check(opt)
    accelerator.register_for_checkpointing(reg)
    recipe.train(accelerator, model, loader, reg, opt)
    sizes = [2, 2, 1] if accumulate == 2 else [accumulate] * STEPS
    compare(start, net, reg.posterior.rho, grouped(recorder.calls, sizes), parts=accumulate)
    sigma = reg.sigma
    accelerator.save_state(str(tmp_path))
    with torch.no_grad():
        reg.parameters()[0].zero_()
    accelerator.load_state(str(tmp_path))
    assert reg.sigma == sigma


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_timm(accumulate: int, scaled: bool) -> None:
    """A residual network with BatchNorm, timm's SGD with momentum and Nesterov."""
    recipe = load("timm_loop")
    torch.manual_seed(1)
    model = recipe.timm.create_model("test_resnet", num_classes=3).double()
    start, recorder = copy.deepcopy(model), Recorder(model)
    images = torch.randn(20, 3, 16, 16, dtype=torch.float64)
    reg = deelbo.LearnedL2(model, len(images), head="fc", sigma=SIGMA)
    optimizer = recipe.create_optimizer_v2(model, opt="sgd", lr=0.001, weight_decay=0.0)
    optimizer.add_param_group({"params": reg.parameters(), "weight_decay": 0.0})
    reg.check(optimizer)
    loader = [(x, labels_of(x.mean((2, 3)))) for x in images.split(4)]  # 5 batches
    loss_scaler = recipe.NativeScaler("cpu") if scaled else None
    recipe.train_one_epoch(model, loader, reg, optimizer, loss_scaler, accum_steps=accumulate)
    own = {
        "head": "fc",
        "loss": lambda output, args: F.cross_entropy(output, labels_of(args[0].mean((2, 3)))),
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.001, momentum=0.9, nesterov=True),
    }
    steps = grouped(recorder.calls, [2, 2, 1] if accumulate == 2 else [1] * STEPS)
    compare(start, model, reg.posterior.rho, steps, **own)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_peft(micro_batches: int) -> None:
    """Only the adapters and the classifier's copy are trained, drawn and regularized."""
    recipe = load("peft_lora")
    torch.manual_seed(1)
    model = recipe.make_model().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    start, recorder = copy.deepcopy(model), Recorder(model)
    ids = torch.randint(0, 50, (N, 6))
    data = list(zip(ids.split(BATCH), (ids.sum(1) % 2).split(BATCH), strict=True))
    reg = deelbo.LearnedL2(model, N, head=recipe.HEAD, sigma=SIGMA)
    trained = [p for p in model.parameters() if p.requires_grad]
    opt = adamw([*trained, *reg.parameters()])
    reg.check(opt)
    recipe.train(model, data, reg, opt, micro_batches)
    frozen = dict(start.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, frozen[name])
    steps = grouped(recorder.calls, [micro_batches] * STEPS)
    compare(
        start, model, reg.posterior.rho, steps, loss=lambda output, _: output.loss, head="classifier", optimizer=adamw
    )


class Passing(nn.Module):
    """Hands on to a compiled module, so that a recorder's hook is not compiled."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x)
        return output


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_torch_compile(micro_batches: int) -> None:
    recipe, net = load("torch_compile"), make_net()
    start, passing = copy.deepcopy(net), Passing(torch.compile(net, backend="aot_eager"))
    recorder = Recorder(passing)
    reg = deelbo.LearnedL2(net, N, head="2", sigma=SIGMA)
    opt = sgd([*net.parameters(), *reg.parameters()])
    recipe.train(passing, batches(), reg, opt, micro_batches)
    calls = grouped(recorder.calls, [micro_batches] * STEPS)
    compare(start, net, reg.posterior.rho, calls)


class TestDDP:
    """Two processes of torchrun, each with half of each batch and a seed of its own, against one loop on all."""

    @pytest.mark.parametrize("kind", ["ddp", "ddp no_sync", "ddp views", "accelerate", "lightning", "transformers"])
    def test_steps(self, ddp_output: tuple[str, list[Any]], kind: str) -> None:
        first, second = (results[kind] for results in ddp_output[1])
        for name, weight in first["net"].items():
            assert torch.equal(weight, second["net"][name])
        assert torch.equal(first["rho"], second["rho"])
        sizes = {"ddp": [1] * STEPS, "transformers": [2, 2, 1, 2, 2]}.get(kind, [2] * STEPS)
        of_ranks = [grouped(result["calls"], sizes) for result in (first, second)]
        steps = [[*a, *b] for a, b in zip(*of_ranks, strict=True)]
        start, own = make_net(), {}
        if kind == "transformers":
            start, own = TestTransformers.bert(load("transformers_trainer")), TestTransformers.SETTINGS
        model = copy.deepcopy(start)
        model.load_state_dict(first["net"])
        compare(start, model, first["rho"], steps, **own)

    def test_example_runs(self, ddp_output: tuple[str, list[Any]]) -> None:
        check_printed(ddp_output[0])


def test_tabular() -> None:
    """Columns are standardized by the training rows alone, in training and in evaluation."""
    recipe = load("tabular")
    table = torch.arange(40.0).reshape(10, 4) ** 2
    examples = Examples(table, torch.arange(10) % 2, 2)
    task = Task("table", examples, examples, recipe.Standardize(), proportional=True)
    assert task.transform.mean is None
    split = task.split(10, seed=0, validation=True)
    x = split.transform.training(split.train.inputs, split.transform.draw(8, torch.Generator()))
    torch.testing.assert_close(x.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(4))
    rows = split.train.inputs
    expected = (split.test.inputs - rows.mean(0)) / rows.std(0)
    torch.testing.assert_close(split.transform.to(torch.device("cpu")).evaluation(split.test.inputs), expected)


def check_printed(output: str) -> None:
    """Assert that an example has printed what it learned."""
    numbers = re.findall(r"(?:lambda|tau|sigma) ([^ ,\n]+)", output)
    assert len(numbers) >= 3
    assert all(0 < float(number) < math.inf for number in numbers)


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "ddp"))
def test_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs as a script and prints finite numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    check_printed(capsys.readouterr().out)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 50
