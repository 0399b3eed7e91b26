"""Trials that train a part of a run: asked for, kept and gone on with, in this process and under Ray, also killed."""

import copy
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.execution.run_trial import TrialContext, run_trial
from bench.scheduling.queue import TrialQueue
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from deelbo.pretrained.embedded import Pretrained
from deelbo.training.checkpoint import Handover
from tests.helpers.tiny import CONTENT

METHODS: dict[str, Any] = {
    "asha": {"trials": 6, "eta": 2, "learning_rates": [0.1, 0.01], "weight_decays": [0.01, 0.001, 0]},
    "deelbo-halving": {"learning_rates": [0.1, 0.03, 0.01, 0.003]},
}
STEPS = {"steps": 20, "batch_size": 50}


@pytest.fixture
def rungs(content: dict[str, Any]) -> Benchmark:
    """ASHA over 6 configurations and the halving of 4 learning rates, 20 steps a run."""
    return parse_benchmark(content | {"methods": METHODS, "training": STEPS}, "x")


def run_here(benchmark: Benchmark, start: Pretrained) -> tuple[dict[str, TrialRecord], dict[str, bytes]]:
    """All trials one after the other in this process, and which parts of runs are still kept at the end."""
    queue, kept, done = TrialQueue(make_methods(benchmark)), dict[str, bytes](), dict[str, TrialRecord]()
    while (spec := queue.ask()) is not None:
        read = partial(kept.get, spec.snapshot_key(spec.since) if spec.since else "nothing")
        write = partial(kept.__setitem__, spec.snapshot_key(spec.until))
        record, _ = run_trial(spec, start, TrialContext(torch.device("cpu"), handover=Handover(read, write)))
        done[record.key] = record
        queue.tell(record)
        for name in queue.pop_unneeded_snapshots():
            del kept[name]
    return done, kept


@pytest.mark.usefixtures("one_thread")
def test_parts_of_runs_are_gone_on_with(rungs: Benchmark, pretrained: Pretrained) -> None:
    """Every part goes on where the one before it ended, is paid for by itself, and nothing stays kept at the end."""
    done, kept = run_here(rungs, pretrained)
    assert kept == {}
    assert {record.status for record in done.values()} == {"completed"}
    later = [record for record in done.values() if record.spec.since > 0]
    assert {record.spec.method for record in later} == {"asha", "deelbo-halving"}
    for record in later:
        steps = 20 * record.spec.since  # an epoch is one step at N = 80 and two at N = 100
        assert record.state["handed_over_at_step"] == pytest.approx(steps, abs=2)
    ends = [record for record in done.values() if record.spec.method == "deelbo-halving"]
    assert sorted(record.spec.until for record in ends) == [0.125] * 4 + [0.25] * 2 + [1.0]
    assert ["test_acc" in record.metrics for record in ends] == [record.spec.until == 1 for record in ends]


@pytest.mark.usefixtures("one_thread")
def test_a_lost_part_is_trained_again(rungs: Benchmark, pretrained: Pretrained) -> None:
    """If the segment before is lost, a trial trains the run from its start, to the same end, and its record says so."""
    done, _ = run_here(rungs, pretrained)
    record = next(
        r for r in done.values() if r.spec.since > 0 and r.spec.method == "deelbo-halving" and r.spec.until == 1
    )
    alone, _ = run_trial(
        record.spec, pretrained, TrialContext(torch.device("cpu"), handover=Handover(lambda: None, lambda _: None))
    )
    assert alone.state["handed_over_at_step"] == 0
    assert alone.metrics == record.metrics


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_a_killed_driver_loses_no_part(rungs: Benchmark, pretrained: Pretrained, cache: Path, tmp_path: Path) -> None:
    """Under Ray, after a kill and another call, the trials end as they do one after the other in one process."""
    expected, _ = run_here(rungs, pretrained)
    content = copy.deepcopy(CONTENT) | {"methods": METHODS, "training": STEPS}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    environment = os.environ | {"DEELBO_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-m", "bench", "run", "tiny.yaml", "--storage", "here"]
    store = RecordStore(str(tmp_path / "here"))
    with open(tmp_path / "out", "w") as out:
        first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out)
        deadline = time.monotonic() + 120
        while len(store.names("records")) < 5 and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        before = {record.key for record in store.records()}
        code = subprocess.run(command, cwd=tmp_path, env=environment, stdout=out, stderr=out, check=False).returncode
    assert code == 0, (tmp_path / "out").read_text()[-2000:]
    found = {record.key: record for record in store.records()}
    assert 5 <= len(before) < len(found)
    assert found.keys() == expected.keys()
    for key, record in found.items():
        assert record.metrics == expected[key].metrics
        assert record.state.get("handed_over_at_step") == expected[key].state.get("handed_over_at_step")
    assert store.names("rungs") == []
