"""Real trials on photographs and in other numerics, and the errors that they record."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bench.execution import run_trial as executing
from bench.execution.run_trial import TrialContext, run_trial
from bench.trials.record import TrialRecord
from deelbo.data import ImageSource, load_task
from deelbo.pretrained.embedded import Pretrained
from tests.helpers.tiny import SPEC

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
DIGITS = replace(SPEC, head_weight_decay=0.001, posterior_passes=1, series_points=1)
PHOTOGRAPHS = replace(DIGITS, dataset="CIFAR-10", backbone="resnet50", n=50, batch_size=20, steps=1, image_size=32)
BF16 = {"precision": "bf16", "channels_last": True}
RUN = {"method": "de-elbo", "stage": "run", "weight_decay": None, "head_weight_decay": None}


@pytest.fixture(scope="module")
def photographic(resnet50: Path) -> Pretrained:
    """Weights of ResNet-50 without a posterior."""
    return Pretrained(torch.load(resnet50, weights_only=True))


def last_line(record: TrialRecord) -> str:
    assert record.error is not None
    return record.error.strip().splitlines()[-1]


@pytest.mark.parametrize("change", [{}, RUN], ids=["map", "de-elbo"])
def test_bf16_is_what_runs_and_is_recorded(
    change: dict[str, object], pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial in bf16 trains and evaluates in bf16 with float32 weights, and its results are near to float32."""
    seen: set[torch.dtype] = set()
    make = executing.make_model

    def watching(*arguments: object) -> tuple[nn.Module, str]:
        model, head = make(*arguments)  # type: ignore[arg-type]

        def note(_: nn.Module, __: tuple[Tensor, ...], logits: Tensor) -> None:
            seen.add(logits.dtype)
            assert {p.dtype for p in model.parameters()} == {torch.float32}

        model.register_forward_hook(note)
        return model, head

    monkeypatch.setattr(executing, "make_model", watching)
    plain, _ = run_trial(replace(DIGITS, **change), pretrained, TrialContext(CPU))  # type: ignore[arg-type]
    assert seen == {torch.float32}
    seen.clear()
    half, _ = run_trial(replace(DIGITS, **change, **BF16), pretrained, TrialContext(CPU))  # type: ignore[arg-type]
    assert half.status == "completed", half.error
    assert seen == {torch.bfloat16}
    assert half.metrics["train_nll"] != plain.metrics["train_nll"]
    assert half.metrics["train_nll"] == pytest.approx(plain.metrics["train_nll"], rel=0.05)
    read = TrialRecord.from_json(half.to_json())
    assert (read.spec.precision, read.spec.channels_last) == ("bf16", True)
    assert read.key != plain.key


def test_a_large_network_sees_photographs(data_root: Path, photographic: Pretrained) -> None:
    """ResNet-50 trains on resized CIFAR-10 in bf16, channels last; the record has hashes of data and weights."""
    record, series = run_trial(
        replace(PHOTOGRAPHS, **BF16), photographic, TrialContext(CPU, data=str(data_root), verify_data=False)
    )
    assert record.status == "completed", record.error
    assert len(series) == 1
    assert all(math.isfinite(value) for value in record.metrics.values())
    assert record.state["dim_backbone"] + record.state["dim_head"] == 23_528_522
    assert record.versions["pretrained"] == photographic.fingerprint
    assert len(record.versions["data"]) == 16
    assert TrialRecord.from_json(record.to_json()).spec.image_size == 32


def test_a_trial_on_own_images(photographic: Pretrained, tmp_path: Path) -> None:
    """A trial reads the user's own images where its context says, and its record has their hash."""
    for c, label in enumerate(("a", "b", "c")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (20, 30), (80 * c, 9 * i, 0)).save(tmp_path / "photos" / label / f"{i}.png")
    source = ImageSource(str(tmp_path / "photos"))
    spec = replace(PHOTOGRAPHS, dataset="photos", n=20, batch_size=8)
    context = TrialContext(CPU, data=str(tmp_path / "data"), source=source)
    record, _ = run_trial(spec, photographic, context)
    assert record.status == "completed", record.error
    assert record.state["dim_head"] == 2048 * 3 + 3
    seen = load_task("photos", tmp_path / "data", 32, source=source).fingerprint
    assert record.versions["data"] == seen
    (tmp_path / "photos" / "a" / "0.png").write_bytes(b"")
    elsewhere = replace(context, data=str(tmp_path / "other"))  # or this process would not read them again
    record, _ = run_trial(spec, photographic, elsewhere)
    assert "1 of 30 images" in last_line(record)


@pytest.mark.parametrize("stage", ["tune", "run"])
def test_ptyl_without_its_files_fails_with_their_key(stage: str, pretrained: Pretrained) -> None:
    """A trial of PTYL without a posterior fails with the missing key in its last line."""
    change = RUN if stage == "run" else {"weight_decay": None, "prior_scale": 10.0}
    spec = replace(DIGITS, prior="ptyl", **change)  # type: ignore[arg-type]
    record, _ = run_trial(spec, Pretrained(pretrained.weights), TrialContext(CPU))
    assert record.status == "failed"
    expected = "ValueError: prior ptyl needs backbones.digits-resnet.ptyl: its mean, variance and factor"
    assert last_line(record) == expected


def test_images_that_are_not_there_fail_in_one_line(photographic: Pretrained, tmp_path: Path) -> None:
    """A trial without its dataset fails with the folder in its last line."""
    record, _ = run_trial(PHOTOGRAPHS, photographic, TrialContext(CPU, data=str(tmp_path)))
    assert record.status == "failed"
    assert str(tmp_path) in last_line(record)
    assert "data" not in record.versions


def test_out_of_memory_says_what_to_lower(data_root: Path, photographic: Pretrained, pretrained: Pretrained) -> None:
    """A trial out of memory fails with a last line that says what to lower, and the next trial runs."""
    absurd = replace(PHOTOGRAPHS, image_size=1_000_000)  # 3e14 bytes a batch: beyond any address space
    record, series = run_trial(absurd, photographic, TrialContext(CPU, data=str(data_root), verify_data=False))
    assert (record.status, record.metrics, series) == ("failed", {}, [])
    line = last_line(record)
    assert line.startswith("out of memory: resnet50 with training.batch_size = 20, training.image_size = 1000000 ")
    assert line.endswith("lower training.batch_size or training.image_size, or set training.precision to bf16")
    assert "Traceback" in (record.error or "")
    assert line in record.describe_failure()
    following, _ = run_trial(DIGITS, pretrained, TrialContext(CPU))
    assert following.status == "completed", following.error


def test_in_bf16_there_is_no_smaller_precision_to_take(data_root: Path, photographic: Pretrained) -> None:
    """Out of memory in bf16, the last line does not suggest a lower precision."""
    absurd = replace(PHOTOGRAPHS, image_size=1_000_000, **BF16)
    record, _ = run_trial(absurd, photographic, TrialContext(CPU, data=str(data_root), verify_data=False))
    assert last_line(record).endswith(": lower training.batch_size or training.image_size")


def test_another_error_is_not_out_of_memory(pretrained: Pretrained) -> None:
    """Any other error keeps its own last line."""
    record, _ = run_trial(replace(DIGITS, head="nose"), pretrained, TrialContext(CPU))
    assert record.status == "failed"
    assert "out of memory" not in (record.error or "")


def test_batchnorm_keeps_its_pretrained_statistics(pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial with frozen BatchNorm ends with the pretrained statistics, another with its own."""
    models: list[nn.Module] = []
    make = executing.make_model

    def watching(*arguments: object) -> tuple[nn.Module, str]:
        model, head = make(*arguments)  # type: ignore[arg-type]
        models.append(model)
        return model, head

    monkeypatch.setattr(executing, "make_model", watching)
    for batchnorm in ("train", "frozen"):
        record, _ = run_trial(replace(DIGITS, batchnorm=batchnorm), pretrained, TrialContext(CPU))
        assert record.status == "completed", record.error
    trained, frozen = (dict(model.named_buffers()) for model in models)
    names = [name for name in frozen if name.endswith(("running_mean", "running_var"))]
    assert names
    assert all(torch.equal(frozen[name], pretrained.weights[name]) for name in names)
    assert not any(torch.equal(trained[name], pretrained.weights[name]) for name in names)
