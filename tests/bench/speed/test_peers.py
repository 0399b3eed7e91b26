"""`speed --peers`: each optimizer in its own plain loop, what is reported, and what is left out."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.cli.main import main
from bench.speed import peers
from bench.speed.peers import PEERS, Loop, measure_peers
from bench.speed.workloads import Setting
from deelbo.training.numerics import Numerics

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SMALL = Setting(batch=4, rounds=1, steps=1, priors=("l2-sp",))


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Take memory from this table instead of measuring it in processes of their own, which takes seconds."""
    memory = {"sgd": 0.5, "adamw": 0.75, "ivon": 1.25, "learned-l2": 1.0}
    monkeypatch.setattr(peers, "_peak_gib", lambda setting, name, device: memory[name])
    return memory


@pytest.mark.parametrize("numerics", [Numerics(), Numerics("bf16", channels_last=True)], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", PEERS)
def test_a_step_is_one_pass_and_one_update(name: str, numerics: Numerics) -> None:
    """A step is one forward and one backward pass in these numerics, after which every weight has moved."""
    if name == "ivon":
        pytest.importorskip("ivon", reason="needs `pip install 'deelbo[peers]'`")
    torch.manual_seed(0)
    loop = Loop(Setting(batch=8, numerics=numerics), CPU)
    forward: list[torch.dtype] = []
    backward: list[int] = []

    def note(module: nn.Module, inputs: Any, logits: Tensor) -> None:
        forward.append(logits.dtype)
        logits.register_hook(lambda _: backward.append(1))

    loop.model.register_forward_hook(note)
    step = PEERS[name](loop)
    before = {key: weight.detach().clone() for key, weight in loop.model.named_parameters()}
    step()
    assert forward == [torch.bfloat16 if numerics.precision == "bf16" else torch.float32]
    assert backward == [1]
    after = dict(loop.model.named_parameters())
    assert [key for key in before if torch.equal(before[key], after[key])] == []
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    step()
    assert all(bool(weight.isfinite().all()) for weight in after.values())


def test_steps_of_sgd_are_torchs() -> None:
    """SGD's loop gives the weights of the same loop written out, which LearnedL2's differs from by its noise alone."""
    torch.manual_seed(0)
    loops = [Loop(Setting(batch=8), CPU) for _ in range(3)]
    for loop in loops[1:]:
        loop.model.load_state_dict(loops[0].model.state_dict())
    step, learned = PEERS["sgd"](loops[0]), PEERS["learned-l2"](loops[2])
    optimizer = torch.optim.SGD(loops[1].model.parameters(), lr=0.001, momentum=0.9, nesterov=True)
    for _ in range(3):
        step()
        learned()
        optimizer.zero_grad()
        nn.functional.cross_entropy(loops[1].model(loops[1].x), loops[1].y).backward()
        optimizer.step()
    weights = [torch.nn.utils.parameters_to_vector(loop.model.parameters()).detach() for loop in loops]
    assert torch.equal(weights[0], weights[1])
    assert 0 < float((weights[2] - weights[0]).norm()) < 1e-2 * float(weights[0].norm())


def test_a_result_has_times_and_memory_over_sgd(no_processes: dict[str, float]) -> None:
    """With one round a ratio is that of the times; memory is in relation to SGD's, too."""
    pytest.importorskip("ivon", reason="needs `pip install 'deelbo[peers]'`")
    result = measure_peers(SMALL, CPU)
    times = result["milliseconds_a_step"]
    assert list(times) == list(result["over_sgd"]) == list(PEERS)
    for name, spread in result["over_sgd"].items():
        assert spread["median"] == pytest.approx(times[name]["median"] / times["sgd"]["median"])
    assert result["peak_memory_gib"] == no_processes
    assert result["over_sgd_memory"] == {"sgd": 1, "adamw": 1.5, "ivon": 2.5, "learned-l2": 2}
    assert (result["backbone"], result["weights"], result["left_out"]) == ("digits-resnet", 18_626, {})
    assert result["environment"]["versions"]["ivon-opt"]
    assert torch.get_num_threads() == 1


def test_a_peer_that_is_not_installed_is_left_out(
    no_processes: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ivon-opt the others are measured, and the result says what was left out."""
    monkeypatch.setitem(sys.modules, "ivon", None)
    result = measure_peers(SMALL, CPU)
    assert set(result["over_sgd"]) == set(result["peak_memory_gib"]) == {"sgd", "adamw", "learned-l2"}
    assert result["left_out"] == {"ivon": "not installed: pip install 'deelbo[peers]'"}
    assert "ivon-opt" not in result["environment"]["versions"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory of a process is known on Linux alone")
def test_memory_is_that_of_a_process_of_its_own() -> None:
    """SGD holds weights, gradients and momentum: three numbers a weight, and not the memory of this process."""
    ballast = torch.ones(2**28)  # 1 GiB
    found = peers._peak_gib(Setting("resnet50", batch=2, size=32), "sgd", CPU)
    assert found is not None
    needed = 3 * 4 * 23_528_522 / 2**30
    assert needed < found < 3 * needed
    del ballast


def test_the_command_has_defaults_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--peers` measures ResNet-18 at 64 px, batch 32, two threads, unless told otherwise; the file says peers."""
    seen: list[Setting] = []
    result = {"environment": {"cpu": "abacus"}, "over_sgd": {}}

    def measured(setting: Setting, device: torch.device) -> dict[str, Any]:
        seen.append(setting)
        numerics = {"precision": "float32", "channels_last": False, "compile": False}
        fields = {"backbone": setting.backbone, "size": setting.size, "batch": setting.batch, "numerics": numerics}
        return result | {"setting": fields}

    monkeypatch.setattr(peers, "measure_peers", measured)
    assert main(["speed", "--peers", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'abacus_resnet18_64px_batch32_float32_peers.json'}\n"
    assert main(["speed", "--peers", "--backbone", "vit_b_16", "--size", "32", "--threads", "3", "--rounds", "1"]) == 0
    first, second = seen
    assert (first.backbone, first.size, first.batch, first.threads) == ("resnet18", 64, 32, 2)
    assert (second.backbone, second.size, second.batch, second.threads, second.rounds) == ("vit_b_16", 32, 32, 3, 1)
    assert first.priors == ("l2-sp",)


@pytest.mark.parametrize("option", ["--priors l2-zero", "--naive-steps 2", "--workers 1", "--profile"])
def test_options_without_a_meaning_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What `--peers` does not measure is refused in one line."""
    assert main(["speed", "--peers", *option.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{option.split()[0]} beside --peers" in error


def test_plan_takes_no_hours_from_it(no_processes: dict[str, float], tmp_path: Path, capsys: Any) -> None:
    """A result of `--peers` has no rates of the benchmark's trials, and `plan --speed` says so."""
    file = tmp_path / "peers.json"
    file.write_text(json.dumps(measure_peers(SMALL, CPU)))
    assert main(["plan", "quickstart", "--speed", str(file)]) == 2
    assert "not a result of `deelbo-bench speed`" in capsys.readouterr().err
