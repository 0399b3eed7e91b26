"""The model that a trial hands over is the one that it tested, also in another process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.config.benchmark import make_methods
from bench.config.loading import parse_benchmark
from bench.execution.run_trial import TrialContext, run_trial
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from deelbo import SavedModel, save_model
from deelbo.data import ImageTransform
from deelbo.pretrained.embedded import Pretrained
from deelbo.pretrained.registry import BackboneSource
from deelbo.training.clock import PHASES
from tests.helpers.tiny import CONTENT, SPEC

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
FRESH = """
import json, sys, torch
import deelbo
from deelbo.data import load_task
torch.set_num_threads(1)
test = load_task("mnist-digits").test
for folder in sys.argv[1:]:
    model = deelbo.load_model(folder)
    nll, accuracy = deelbo.evaluate(model.network, test, model.transform, model.numerics)
    hits = (model.predict(test.inputs).argmax(1) == test.labels).float().mean()
    print(json.dumps({"test_nll": nll, "test_acc": accuracy, "hits": float(hits)}))
assert not {"bench", "ray", "mlflow"} & set(sys.modules)
"""


def specs_of_tests() -> Iterator[TrialSpec]:
    """Yield a trial of each kind of objective and optimizer, in few steps, and one in bfloat16."""
    yield replace(SPEC, stage="retrain")
    yield replace(SPEC, stage="retrain", precision="bf16", channels_last=True)
    names = ("de-elbo", "elbo", "deelbo-free", "laplace")
    benchmark = parse_benchmark(CONTENT | {"methods": dict.fromkeys(names)}, "x")
    for method in make_methods(benchmark):
        spec = method.ask()
        assert spec is not None
        stage = "retrain" if spec.stage == "tune" else spec.stage
        yield replace(spec, stage=stage, until=1.0, learning_rate=0.1, steps=12)


def test_a_kept_model_gives_the_test_result_to_the_bit_in_another_process(
    pretrained: Pretrained, tmp_path: Path
) -> None:
    """The weights and BatchNorm statistics are those of the test, whatever came after it."""
    records = []
    for number, spec in enumerate(specs_of_tests()):
        context = TrialContext(CPU, keep=lambda model, folder=tmp_path / str(number): save_model(model, folder))
        records.append(run_trial(spec, pretrained, context)[0])
        assert records[-1].status == "completed", records[-1].error
    command = [sys.executable, "-c", FRESH, *(str(tmp_path / str(number)) for number in range(len(records)))]
    world = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, env=world, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for record, line in zip(records, done.stdout.splitlines(), strict=True):
        found: dict[str, float] = json.loads(line)
        assert found.pop("hits") == pytest.approx(record.metrics["test_acc"], abs=1e-6)  # classes of 100 images each
        assert found == {name: record.metrics[name] for name in found}, record.spec.describe()


def run_and_keep(spec: TrialSpec, pretrained: Pretrained) -> tuple[TrialRecord, list[SavedModel]]:
    kept: list[SavedModel] = []
    record, _ = run_trial(spec, pretrained, TrialContext(CPU, keep=kept.append))
    return record, kept


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "completed"),
        ({"stage": "retrain", "learning_rate": 1e30}, "diverged"),
        ({"stage": "retrain", "head": "nowhere"}, "failed"),
        ({"stage": "retrain", "until": 0.5}, "completed"),
    ],
    ids=["tuned", "diverged", "failed", "stopped early"],
)
def test_a_trial_that_has_no_test_result_keeps_nothing(
    change: dict[str, Any], status: str, pretrained: Pretrained
) -> None:
    record, kept = run_and_keep(replace(SPEC, **change), pretrained)
    assert (record.status, kept) == (status, [])


def test_a_kept_model_describes_its_training(pretrained: Pretrained) -> None:
    """Its record: key, metrics, learned strengths, versions and the hash of the images; and its classes."""
    record, (model,) = run_and_keep(replace(SPEC, stage="retrain"), pretrained)
    assert TrialRecord.from_json(json.dumps(model.metadata["record"])) == record
    assert model.metadata["record"]["versions"]["data"] == record.versions["data"]
    assert model.classes == tuple("0123456789")
    assert (model.backbone, model.head) == ("digits-resnet", "fc")


def test_a_network_of_the_users_own_is_saved_by_what_it_is(pretrained: Pretrained) -> None:
    """Not by its name in the configuration, which means nothing elsewhere."""
    kept: list[SavedModel] = []
    context = TrialContext(CPU, network=BackboneSource("digits-resnet", (0.5,), (0.25,)), keep=kept.append)
    record, _ = run_trial(replace(SPEC, backbone="mine", stage="retrain"), pretrained, context)
    assert (record.status, kept[0].backbone) == ("completed", "digits-resnet")
    assert isinstance(kept[0].transform, ImageTransform)
    assert kept[0].transform.fitted.mean.tolist() == [0.5]


def test_keeping_a_model_is_in_no_second_of_the_record(pretrained: Pretrained) -> None:
    """A second of writing is neither in a phase nor in the total, nor between start and end."""
    spec = replace(SPEC, stage="retrain")
    run_trial(spec, pretrained, TrialContext(CPU))
    started = time.time()
    record, _ = run_trial(spec, pretrained, TrialContext(CPU, keep=lambda _: time.sleep(1)))
    elapsed = time.time() - started
    assert set(record.seconds) == {*PHASES, "total"}
    assert record.seconds["total"] < elapsed - 0.9
    assert record.finished - record.started < elapsed - 0.9
