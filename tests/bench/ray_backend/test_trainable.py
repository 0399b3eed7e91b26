"""A worker process runs trials one after the other: what it keeps of a trial that has ended."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.execution import run_trial as executing
from bench.execution.run_trial import Series, TrialContext, run_trial
from bench.methods import METHODS
from bench.ray_backend.trainable import TrialTrainable, WorkerSettings
from bench.storage.lock import StorageLock
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.code import Code, running_code
from deelbo.pretrained.embedded import Pretrained
from deelbo.training.numerics import Numerics
from deelbo.training.run import TrainingRun
from tests.helpers.living_runs import LivingRuns, counted_runs, leave_cycle
from tests.helpers.tiny import CONTENT, SPEC

pytestmark = pytest.mark.usefixtures("one_thread")
DE_ELBO = replace(SPEC, method="de-elbo", stage="run", weight_decay=None, head_weight_decay=None)


class Worker:
    """A trainable as Tune makes it, without Ray."""

    def __init__(self, store: RecordStore, token: str, benchmark: Benchmark, pretrained: Pretrained) -> None:
        self.trainable = TrialTrainable.__new__(TrialTrainable)
        self.store = store
        code = running_code()
        settings = WorkerSettings(store.url, token, benchmark, slots=1, data=None, code=code, run_trial=run_trial)
        self.trainable.setup({}, {"digits-resnet": pretrained}, settings)

    def replace_run_trial(self, run: Callable[..., Any]) -> None:
        self.trainable.settings = replace(self.trainable.settings, run_trial=run)

    def run(self, spec: TrialSpec) -> TrialRecord:
        config = {"spec": asdict(spec), "attempt": 1, "lost_seconds": 0.0, "choosing_seconds": 0.0}
        self.trainable.reset_config(config)
        self.trainable.config = config
        result = self.trainable.step()
        assert result["written"]
        return TrialRecord.from_json(result["record"])


@pytest.fixture
def worker(tmp_path: Path, pretrained: Pretrained) -> Iterator[Callable[..., Worker]]:
    """Make a worker on a storage that this process holds."""
    store = RecordStore(str(tmp_path / "storage"))
    with StorageLock(store) as lock:
        yield lambda **changes: Worker(store, lock.token, parse_benchmark(CONTENT | changes, "x"), pretrained)


def test_a_worker_with_other_code_runs_nothing(worker: Callable[..., Worker]) -> None:
    """It returns its own code and no record, and the searcher stops the run."""
    trainable = worker().trainable
    trainable.settings = replace(trainable.settings, code=Code("/elsewhere", "abc"))
    trainable.config = {"spec": asdict(SPEC)}
    assert trainable.step() == {"code": asdict(running_code()), "record": None, "done": True}


def check_none_alive(living: LivingRuns, runs: int) -> None:
    assert living.count == runs
    assert living.names() == []


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_a_trial_of_any_method_is_freed(method: str, worker: Callable[..., Worker]) -> None:
    """After each trial of one process no run is alive, nor its network, images and optimizer, snapshots or not."""
    training = {"train": "head" if method == "maid" else "all"}
    worker_of_method = worker(methods={method: None}, training=training, timed=False, checkpoint_minutes=1e-6)
    queue = make_methods(worker_of_method.trainable.benchmark)
    specs = [spec for one in queue for _ in range(2) if (spec := one.ask()) is not None]
    with counted_runs() as living:
        for runs, spec in enumerate(specs, 1):
            record = worker_of_method.run(replace(spec, steps=4, batch_size=50))
            assert record.status == "completed", record.error
            check_none_alive(living, runs)


def test_a_compiled_trial_is_freed(worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial through torch.compile is freed, too; here without the compiler, which takes half a minute."""
    monkeypatch.setattr(Numerics, "compile_model", lambda _, model: torch.compile(model, backend="eager"))
    one = worker()
    with counted_runs() as living:
        for runs, spec in enumerate((DE_ELBO, SPEC), 1):
            record = one.run(replace(spec, compile=True))
            assert record.status == "completed", record.error
            check_none_alive(living, runs)


def no_memory(*_: object) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def third_call_fails(calls: list[int], *_: object) -> None:
    calls.append(1)
    if len(calls) == 3:
        no_memory()


def spoil_network(model: nn.Module, part: str) -> None:
    """Make the third forward or backward pass of training, the first after the warm-up, run out of memory."""
    calls: list[int] = []
    if part == "backward":
        next(model.parameters()).register_hook(partial(third_call_fails, calls))
    else:
        model.register_forward_hook(lambda module, *_: third_call_fails(calls) if module.training else None)


@pytest.mark.parametrize("part", ["forward", "backward", "clipping", "evaluation", "posterior passes"])
def test_out_of_memory_leaves_nothing_behind(
    part: str, worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that runs out of memory in any part has freed everything when its record is made; the next trial runs."""
    make, spec = executing.make_model, SPEC if part == "evaluation" else DE_ELBO

    def spoiled(*arguments: Any) -> tuple[nn.Module, str]:
        model, head = make(*arguments)
        if part in ("forward", "backward"):
            spoil_network(model, part)
        return model, head

    one = worker()
    with counted_runs() as living:
        with monkeypatch.context() as patch:
            patch.setattr(executing, "make_model", spoiled)
            if part == "clipping":
                patch.setattr(nn.utils, "clip_grad_norm_", partial(third_call_fails, []))
            elif part == "posterior passes":
                patch.setattr(TrainingRun, "nll_under_posterior", no_memory)
            elif part == "evaluation":
                patch.setattr(TrainingRun, "_evaluate_each_batch_size", lambda _: None)
                patch.setattr(TrainingRun, "evaluate", no_memory)
            record = one.run(spec)
            assert record.status == "failed"
            assert (record.error or "").strip().splitlines()[-1].startswith("out of memory: digits-resnet with")
        check_none_alive(living, 1)
        following = one.run(spec)
        assert following.status == "completed", following.error
        check_none_alive(living, 2)


def test_the_device_is_emptied_after_the_failed_trial_is_freed(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory goes back to the device when nothing holds it any more, exceptions in reference cycles included."""

    def fail(spec: TrialSpec, start: Pretrained, context: TrialContext) -> tuple[TrialRecord, Series]:
        step = TrainingRun.step

        def step_and_fail(run: TrainingRun, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss = step(run, batch)
            if run.steps_done == 2:
                leave_cycle()
                no_memory()
            return loss

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingRun, "step", step_and_fail)
            return run_trial(spec, start, replace(context, device=torch.device("cpu")))

    one = worker()
    one.replace_run_trial(fail)
    one.trainable.device = torch.device("cuda")
    calls: list[tuple[str, list[str]]] = []
    with counted_runs() as living:
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(("empty_cache", living.names())))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: calls.append(("synchronize", living.names())))
        assert one.run(SPEC).status == "failed"
    assert calls == [("empty_cache", []), ("synchronize", [])]
    assert living.count == 1


def test_a_gpu_that_cannot_be_used_gives_a_record(pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA cannot start, the trial fails with torch's own words, and peak memory is reset only after it has."""
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "init", lambda: order.append("init") or no_driver())
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: order.append("reset"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: no_driver())
    record, _ = run_trial(SPEC, pretrained, TrialContext(torch.device("cuda")))
    assert order == ["init"]
    assert record.status == "failed"
    assert (record.error or "").strip().splitlines()[-1] == "RuntimeError: Found no NVIDIA driver on your system."
    assert record.hardware["device"] == "cuda"
    assert "gpu" not in record.hardware
    assert TrialRecord.from_json(record.to_json()).hardware == record.hardware


def keeping(one: Worker, spec: TrialSpec) -> tuple[TrialRecord, str | None]:
    """Run a trial; return its record and why its model was not kept."""
    one.trainable.config = {"spec": asdict(spec), "attempt": 1, "lost_seconds": 0.0, "choosing_seconds": 0.0}
    result = one.trainable.step()
    return TrialRecord.from_json(result["record"]), result["model_problem"]


@pytest.mark.parametrize("keep", ["none", "chosen", "all"])
def test_a_worker_writes_the_model_before_the_record(
    keep: str, worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a trial with a record has its model; a trial that is not tested has none, and a run is freed as ever."""
    one = worker(keep=keep)
    names: list[str] = []
    write_file = RecordStore.write_file
    monkeypatch.setattr(RecordStore, "write_file", lambda *given: (names.append(given[1]), write_file(*given))[1])
    with counted_runs() as living:
        for spec in (SPEC, DE_ELBO):
            assert keeping(one, spec)[1] is None
        check_none_alive(living, 2)
    models = [] if keep == "none" else [f"models/{DE_ELBO.key}/{name}" for name in ("model.safetensors", "model.json")]
    assert [name for name in names if not name.startswith("series")] == [
        f"records/{SPEC.key}.json",
        *models,
        f"records/{DE_ELBO.key}.json",
    ]


def test_a_model_that_cannot_be_written_costs_no_record(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, or where the node does not reach the storage, the reason is told, and the record counts."""
    one, write_file = worker(keep="chosen"), RecordStore.write_file

    def full(self: RecordStore, name: str, content: bytes) -> None:
        if name.startswith("models/"):
            raise OSError(28, "No space left on device")
        write_file(self, name, content)

    monkeypatch.setattr(RecordStore, "write_file", full)
    record, problem = keeping(one, DE_ELBO)
    assert (record.status, problem) == ("completed", "OSError: [Errno 28] No space left on device")
    assert one.store.read(record.key) == record
    assert not one.store.exists(f"models/{record.key}")
    one.trainable.shares_storage = False
    record, problem = keeping(one, DE_ELBO)
    assert (record.status, problem and problem.partition(":")[0]) == (
        "completed",
        "its node does not reach the storage of the run",
    )


def no_driver() -> None:
    raise RuntimeError("Found no NVIDIA driver on your system.")
