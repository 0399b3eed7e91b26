"""A benchmark run for real, as a person runs it: Ray, MLflow, the report, and running it again."""

import copy
import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.cli.main import main
from bench.config.benchmark import make_methods
from bench.config.loading import parse_benchmark
from bench.results.frame import to_frame
from bench.storage.records import RecordStore
from tests.helpers.tiny import CONTENT

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Done:
    """One call of ``run`` that has ended."""

    folder: Path
    code: int
    out: str
    error: str
    listened: frozenset[str] = frozenset()

    @property
    def storage(self) -> Path:
        return self.folder / "deelbo-runs" / "tiny"

    @property
    def store(self) -> RecordStore:
        return RecordStore(str(self.storage))


def write_config(folder: Path, **change: Any) -> str:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(copy.deepcopy(CONTENT) | change))
    return str(file)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Done:
    """The first run of the tiny benchmark: a process of its own, nothing there before but the pretrained network."""
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "bench", "run", write_config(folder, keep="chosen")]
    environment = os.environ | {"DEELBO_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[3])}
    listened: set[str] = set()
    with open(folder / "out", "w") as out, open(folder / "error", "w") as error:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=error)
        deadline = time.monotonic() + 280
        while process.poll() is None and time.monotonic() < deadline:
            listened |= listening(process.pid)
            time.sleep(0.5)
        process.kill()
    code = process.wait()
    return Done(folder, code, (folder / "out").read_text(), (folder / "error").read_text(), frozenset(listened))


def listening(pid: int) -> set[str]:
    """The addresses on which a process and all that it started wait for connections, in the kernel's hexadecimal."""
    family, sockets = {str(pid)}, set[str]()
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    for member in family:
        for file in Path(f"/proc/{member}/fd").glob("*"):
            with suppress(OSError):
                sockets.add(os.readlink(file))
    addresses = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                addresses.add(words[1].partition(":")[0])
    return addresses


def again(
    done: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str, **change: Any
) -> Done:
    """The same command once more, in this process."""
    monkeypatch.chdir(done.folder)
    code = main(["run", write_config(done.folder, **change), *options])
    out, error = capsys.readouterr()
    return Done(done.folder, code, out, error)


def records_of(done: Done) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((done.storage / "records").iterdir())}


def statuses(done: Done) -> dict[str, list[str]]:
    """Status of every run in MLflow, by the trial's key; the benchmark's is under ''."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{done.storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    found: dict[str, list[str]] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        found.setdefault(run.data.tags.get("deelbo.key", ""), []).append(run.info.status)
    return found


def test_it_ends_well(done: Done) -> None:
    """The command exits 0 and says how it went, and where report, figure and the MLflow page are."""
    assert done.code == 0, done.out + done.error
    assert "9 trials, 2 at a time" in done.out
    assert re.search(r"9 trials in .*: 2 slots busy \d+% of the time", done.out)
    assert "report  deelbo-runs/tiny/report/report.html" in done.out
    assert "figure  deelbo-runs/tiny/report/figure2.png" in done.out
    assert "-m bench ui deelbo-runs/tiny" in done.out
    assert "Traceback" not in done.out + done.error


def test_every_trial_is_recorded_once(done: Done) -> None:
    """Every trial has one record, with its series to the last step; at most two of them ran at once."""
    records = list(done.store.records())
    counts = Counter((record.spec.method, record.spec.stage) for record in records)
    assert counts == {("map-gs", "tune"): 4, ("map-gs", "retrain"): 1, ("de-elbo", "run"): 2, ("elbo", "run"): 2}
    assert {record.status for record in records} == {"completed"}
    assert {record.attempt for record in records} == {1}
    assert {record.concurrency for record in records} == {2}
    assert {done.store.series(record.key)[-1]["step"] for record in records} == {4.0}
    frame = to_frame(records)
    assert set(frame["concurrency_start"]) == set(frame["concurrency_end"]) == {1, 2}
    tuned = [record for record in records if record.spec.stage == "tune"]
    best = min(tuned, key=lambda record: record.metrics["val_nll"]).spec
    (retrained,) = [record.spec for record in records if record.spec.stage == "retrain"]
    assert (retrained.learning_rate, retrained.weight_decay) == (best.learning_rate, best.weight_decay)


def test_mlflow_has_each_trial_once(done: Done) -> None:
    """In MLflow every trial is one FINISHED run, and the benchmark is another."""
    keys = {record.key for record in done.store.records()}
    assert statuses(done) == {key: ["FINISHED"] for key in [*keys, ""]}


def test_the_storage_holds_the_report_and_nothing_of_tune(done: Done) -> None:
    """The report's files are there; Ray Tune's own folder, temporary files and the lock are not."""
    made = {path.name for path in (done.storage / "report").iterdir()}
    assert made >= {"report.html", "figure2.png", "figure2.pdf", "table2.csv", "table3.md", "curves.csv"}
    assert not (done.storage / "ray").exists()
    assert [*done.storage.rglob("*.part"), *done.storage.rglob("lock*")] == []


def test_the_models_of_the_choices_are_kept(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each method's choice has its model and no other trial has; `export` writes that of the DE ELBo."""
    from bench.results.configurations import selected_trials
    from deelbo import evaluate, load_model
    from deelbo.data import load_task

    records = {record.key: record for record in done.store.records()}
    chosen = selected_trials(parse_benchmark(CONTENT, "x"), list(records.values()))
    assert {path.name for path in (done.storage / "models").iterdir()} == set(chosen)
    assert main(["export", str(done.storage), "--out", str(tmp_path / "model")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    (record,) = [records[key] for key in chosen if records[key].spec.method == "de-elbo"]
    assert record.spec.describe() in out
    assert f"test accuracy {record.metrics['test_acc']:.2%}" in out
    model = load_model(tmp_path / "model")
    found = evaluate(model.network, load_task("mnist-digits").test, model.transform, model.numerics)
    assert found == pytest.approx((record.metrics["test_nll"], record.metrics["test_acc"]), rel=1e-5)


def test_nothing_in_the_storage_names_its_place(done: Done) -> None:
    """No file holds the path of the storage or of the folder of the run, so that it can be moved and copied."""
    files = [path for path in done.storage.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert [path for path in files if str(done.folder).encode() in path.read_bytes()] == []


def test_a_trial_does_not_depend_on_ray(done: Done, cache: Path) -> None:
    """A trial under Ray, beside another one, gives the same as alone, bit for bit."""
    import torch

    from bench.execution.run_trial import TrialContext, run_trial
    from deelbo.pretrained.embedded import load_pretrained

    record = next(record for record in done.store.records() if record.spec.method == "de-elbo")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone, _ = run_trial(record.spec, load_pretrained(), TrialContext(torch.device("cpu")))
    finally:
        torch.set_num_threads(threads)
    assert alone.metrics == record.metrics


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"training": {"steps": 8, "batch_size": 50}}, "training.steps was 4 and is now 8"),
        ({"name": "other"}, "name was 'tiny' and is now 'other'"),
    ],
)
def test_another_benchmark_is_refused(
    done: Done,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    difference: str,
) -> None:
    """A storage that holds another benchmark is refused in one line with what differs, and stays as it is."""
    before = records_of(done), (done.storage / "benchmark.json").read_bytes()
    refused = again(done, monkeypatch, capsys, "--storage", str(done.storage), **change)
    assert refused.code == 2
    assert refused.error.startswith("deelbo-bench: ")
    assert refused.error.count("\n") == 1
    assert difference in refused.error
    assert "take another --storage" in refused.error
    assert (records_of(done), (done.storage / "benchmark.json").read_bytes()) == before


def test_again_runs_nothing(done: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A second call finds nothing left, says so, and keeps every record byte for byte."""
    before = records_of(done)
    second = again(done, monkeypatch, capsys)
    assert second.code == 0, second.out + second.error
    assert "nothing left to run, 9 trials done before" in second.out
    assert records_of(done) == before
    assert {len(found) for found in statuses(done).values()} == {1}


def test_servers_listen_on_loopback(done: Done) -> None:
    """All that a run starts listens on 127.0.0.1, in IPv4 or as IPv6 writes it, or on ::1."""
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert done.listened
    assert done.listened <= loopback


def test_more_seeds_run_the_difference(
    done: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another seed and without ELBo only the new seed's 7 trials run; the old records stay byte for byte."""
    before = records_of(done)
    methods = {name: CONTENT["methods"][name] for name in ("map-gs", "de-elbo")}
    second = again(done, monkeypatch, capsys, seeds=[1001, 2001], methods=methods)
    assert second.code == 0, second.out + second.error
    assert "14 trials, 7 done before, 2 at a time" in second.out
    after = records_of(done)
    assert {name: after[name] for name in before} == before
    new = [record.spec.seed for record in done.store.records() if f"{record.key}.json" not in before]
    assert new == [2001] * 7
    benchmark = parse_benchmark(CONTENT | {"seeds": [1001, 2001], "methods": methods}, "x")
    assert sum(method.count() for method in make_methods(benchmark)) == 14
    assert set(statuses(done)) == {record.key for record in done.store.records()} | {""}
    assert {tuple(found) for found in statuses(done).values()} == {("FINISHED",)}
