"""The searcher between a queue and Ray Tune, without a cluster."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import RunAborted, StorageError
from bench.ray_backend.callbacks import ResultForwarder
from bench.ray_backend.searcher import QueueSearcher
from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.storage.attempts import AttemptLog
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.code import Code, running_code

Fake = Callable[..., TrialRecord]


class Notes(RunCallback):
    def __init__(self) -> None:
        self.started_keys: list[str] = []
        self.lost_keys: list[tuple[str, str]] = []
        self.ended: list[TrialRecord] = []
        self.lost_models: list[tuple[TrialSpec, str]] = []

    def on_trial_start(self, spec: TrialSpec) -> None:
        self.started_keys.append(spec.key)

    def on_trial_retry(self, spec: TrialSpec, reason: str) -> None:
        self.lost_keys.append((spec.key, reason))

    def on_trial_end(self, record: TrialRecord) -> None:
        self.ended.append(record)

    def on_model_lost(self, spec: TrialSpec, reason: str) -> None:
        assert spec == self.ended[-1].spec
        self.lost_models.append((spec, reason))


class Desk:
    """A searcher with what it needs, and Tune's part played by hand."""

    def __init__(self, benchmark: Benchmark, store: RecordStore, most: int = 100, max_failures: int = 2) -> None:
        self.store, self.notes, self.queue = store, Notes(), TrialQueue(make_methods(benchmark))
        self.attempts = AttemptLog(store)
        benchmark = benchmark.model_copy(update={"max_failures": max_failures})
        self.searcher = QueueSearcher(self.queue, [self.notes], store, self.attempts, most, benchmark)

    def suggest(self, trial: str) -> tuple[TrialSpec, int, float]:
        config = self.searcher.suggest(trial)
        assert config is not None
        return TrialSpec(**config["spec"]), config["attempt"], config["lost_seconds"]

    def end(
        self,
        trial: str,
        record: TrialRecord | None,
        written: bool = False,
        series: Any = (),
        code: Code | None = None,
        model_problem: str | None = None,
    ) -> None:
        content = None if record is None else record.to_json()
        result = {"record": content, "series": list(series), "written": written, "done": True, "hostname": "n1"}
        result["model_problem"] = model_problem
        result["code"] = asdict(code or running_code())
        self.searcher.take_result(trial, result)
        assert result == {"done": True}
        self.searcher.on_trial_complete(trial, result)

    def die(self, trial: str, reason: str | None = None) -> None:
        if reason is not None:
            self.searcher.note_error(trial, reason)
        self.searcher.on_trial_complete(trial, error=True)


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(str(tmp_path / "s"))


@pytest.fixture
def desk(tiny: Benchmark, store: RecordStore) -> Desk:
    return Desk(tiny, store)


def test_never_more_at_once_than_it_may(tiny: Benchmark, store: RecordStore, fake: Fake) -> None:
    """At most ``most`` trials are out; when one ends the next may start."""
    desk = Desk(tiny, store, most=2)
    first, *_ = desk.suggest("a")
    desk.suggest("b")
    assert desk.searcher.suggest("c") is None
    desk.end("a", fake(first))
    assert desk.searcher.suggest("c") is not None


def test_it_says_when_nothing_more_will_come(desk: Desk, fake: Fake) -> None:
    """While trials are out there may be more, None; afterwards FINISHED."""
    out = {}
    while (suggestion := desk.searcher.suggest(str(len(out)))) is not None:
        out[str(len(out))] = TrialSpec(**suggestion["spec"])
    assert len(out) == 8  # the grid's 4 and twice 2; the retraining waits for the grid
    for trial, spec in out.items():
        desk.end(trial, fake(spec))
    last, *_ = desk.suggest("last")
    desk.end("last", fake(last))
    assert desk.searcher.suggest("no more") == Searcher.FINISHED


def test_a_record_written_elsewhere_is_kept_here(desk: Desk, fake: Fake) -> None:
    """The driver writes a record and its series, over one of an earlier call, unless the worker did."""
    other, *_ = desk.suggest("b")
    desk.end("b", fake(other), written=True)
    assert desk.store.read(other.key) is None
    assert [record.key for record in desk.notes.ended] == [other.key]
    spec, *_ = desk.suggest("a")
    desk.store.write(fake(spec, "failed"), [])
    record = fake(spec)
    desk.end("a", record, series=[{"step": 1.0}])
    assert desk.store.read(record.key) == record
    assert desk.store.series(record.key) == [{"step": 1.0}]


def test_a_model_that_is_lost_is_told(desk: Desk, fake: Fake) -> None:
    """After the trial's end, with the worker's reason; a trial whose model was kept tells nothing."""
    first, *_ = desk.suggest("a")
    desk.end("a", fake(first))
    second, *_ = desk.suggest("b")
    desk.end("b", fake(second), model_problem="OSError: full")
    assert desk.notes.lost_models == [(second, "OSError: full")]


def test_a_trial_whose_process_died_is_next(desk: Desk) -> None:
    """A trial that ended without a result is the next one to be suggested, at its next attempt, with what was lost."""
    spec, *_ = desk.suggest("a")
    desk.searcher.start_trial("a")
    desk.die("a", "killed by somebody")
    again, number, lost = desk.suggest("b")
    assert (again, number) == (spec, 2)
    assert 0 < lost < 5
    assert desk.notes.lost_keys == [(spec.key, "killed by somebody")]
    assert desk.notes.ended == []


def test_a_trial_that_never_begins_fails_in_the_end(tiny: Benchmark, store: RecordStore) -> None:
    """A trial that is lost before it begins is tried again, still as its first attempt, but not for ever."""
    desk = Desk(tiny, store, max_failures=0)
    suggested = []
    for attempt in range(4):
        suggested.append(desk.suggest(str(attempt)))
        assert suggested[-1] == (spec := suggested[0][0], 1, 0.0)
        assert desk.notes.ended == []
        desk.die(str(attempt))
    assert [record.key for record in desk.notes.ended] == [spec.key]


def test_a_node_with_other_images_stops_the_run(desk: Desk, fake: Fake) -> None:
    """A trial that saw other images than those before is not kept, and the run stops with one line on it."""
    first, *_ = desk.suggest("a")
    desk.end("a", fake(first, versions={"data": "abc"}))
    second, *_ = desk.suggest("b")
    with pytest.raises(RunAborted, match=r"has other data of mnist-digits than earlier trials saw \(def, not abc\)"):
        desk.end("b", fake(second, versions={"data": "def"}))
    assert desk.store.read(second.key) is None


def test_a_node_with_another_gpu_stops_a_timed_run(desk: Desk, fake: Fake) -> None:
    """Its seconds could not be compared; the record that the worker wrote is set aside, and its trial runs again."""
    first, *_ = desk.suggest("a")
    desk.end("a", fake(first, hardware={"node": "x", "gpu": "NVIDIA A100"}))
    second, *_ = desk.suggest("b")
    record = fake(second, hardware={"node": "y", "gpu": "NVIDIA H100"})
    desk.store.write(record, [])
    with pytest.raises(RunAborted, match="node y has a NVIDIA H100, earlier trials ran on NVIDIA A100"):
        desk.end("b", record, written=True)
    assert desk.store.read(second.key) is None
    assert len(desk.store.names("damaged")) == 1


def test_gpus_may_differ_where_seconds_are_not_compared(tiny: Benchmark, store: RecordStore, fake: Fake) -> None:
    """With timed: false, whatever there is."""
    desk = Desk(tiny.model_copy(update={"timed": False}), store)
    for trial, gpu in (("a", "NVIDIA A100"), ("b", "NVIDIA H100")):
        spec, *_ = desk.suggest(trial)
        desk.end(trial, fake(spec, hardware={"gpu": gpu}))
    assert len(desk.notes.ended) == 2


@pytest.mark.parametrize("trained", [True, False])
def test_a_worker_with_other_code_stops_the_run(desk: Desk, fake: Fake, trained: bool) -> None:
    """Its record is set aside if it made one, as an earlier version would; the line names the node and its folder."""
    spec, *_ = desk.suggest("a")
    if trained:
        desk.store.write(fake(spec), [])
    with pytest.raises(RunAborted, match=r"node n1 has other code than this command: /elsewhere \(abc\) there"):
        desk.end("a", fake(spec) if trained else None, written=trained, code=Code("/elsewhere", "abc"))
    assert desk.store.read(spec.key) is None
    assert len(desk.store.names("damaged")) == trained


@pytest.mark.parametrize("most", [0, 1, 2])
def test_it_fails_when_it_died_too_often(tiny: Benchmark, store: RecordStore, most: int) -> None:
    """After ``max_failures`` more attempts the trial is failed, with Ray's last words; the rest goes on."""
    desk = Desk(tiny, store, max_failures=most)
    for attempt in range(most + 1):
        spec, number, _ = desk.suggest(str(attempt))
        assert number == attempt + 1
        desk.searcher.start_trial(str(attempt))
        desk.die(str(attempt), f"death {number}")
    (record,) = desk.notes.ended
    assert (record.key, record.status, record.attempt) == (spec.key, "failed", most + 1)
    assert record.lost_seconds > 0
    assert f"max_failures allows; the last time: death {most + 1}" in (record.error or "")
    assert store.read(spec.key) == record
    other, *_ = desk.suggest("next")
    assert other.key != spec.key


def test_what_a_trial_wrote_before_it_died_counts(desk: Desk, fake: Fake) -> None:
    """A record written by the attempt that then died is taken; a failed one of an earlier attempt is not."""
    spec, *_ = desk.suggest("a")
    desk.searcher.start_trial("a")
    desk.store.write(fake(spec, "failed", finished=time.time()), [])
    desk.die("a")
    assert [record.key for record in desk.notes.ended] == [spec.key]
    other, *_ = desk.suggest("b")
    desk.store.write(fake(other, "failed", finished=time.time() - 1), [])
    desk.searcher.start_trial("b")
    desk.die("b")
    assert [key for key, _ in desk.notes.lost_keys] == [other.key]


def test_a_half_written_record_counts_for_nothing(desk: Desk) -> None:
    """A damaged record of a trial whose process died does not stop the queue: the trial runs again."""
    spec, *_ = desk.suggest("a")
    desk.store.write_file(f"records/{spec.key}.json", b"{")
    desk.die("a")
    assert desk.suggest("b")[0] == spec


def test_a_failed_trial_loses_its_seconds(desk: Desk, fake: Fake) -> None:
    """A later call that tries a failed trial again says what the failed attempt cost."""
    spec, *_ = desk.suggest("a")
    desk.searcher.start_trial("a")
    desk.end("a", fake(spec, "failed"))
    number, lost = AttemptLog(desk.store).next(spec.key)
    assert number == 2
    assert lost > 0


def test_what_was_running_when_it_stops_is_lost(desk: Desk) -> None:
    """A run that stops notes when its running trials ended; those that waited for a slot had not begun."""
    specs = [desk.suggest(name)[0] for name in ("a", "b")]
    desk.searcher.start_trial("a")
    desk.searcher.abandon()
    numbers = [AttemptLog(desk.store).next(spec.key)[0] for spec in specs]
    assert numbers == [2, 1]
    assert AttemptLog(desk.store).next(specs[0].key)[1] > 0


@pytest.mark.parametrize("when", ["begin", "end"])
def test_a_full_disk_stops_the_run(desk: Desk, fake: Fake, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """If the driver cannot write, the run stops with one line, by no Exception, which Tune would take for a trial's."""
    spec, *_ = desk.suggest("a")
    monkeypatch.setattr(RecordStore, "write_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(
        RunAborted, match=r"takes no more records \(No space left\).*the same command continues"
    ) as halted:
        desk.searcher.start_trial("a") if when == "begin" else desk.end("a", fake(spec))
    assert not isinstance(halted.value, Exception)
    assert "\n" not in str(halted.value)


def test_a_storage_that_is_away_stops_the_run_where_a_trial_dies(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead trial may have left a record that cannot be read then: the run stops with one line."""
    desk.suggest("a")
    desk.searcher.start_trial("a")
    monkeypatch.setattr(RecordStore, "read_file", lambda *_: (_ for _ in ()).throw(StorageError("s3://x is away")))
    with pytest.raises(RunAborted, match=r"s3://x is away.*the same command continues"):
        desk.searcher.on_trial_complete("a", error=True)


def test_tune_keeps_nothing_of_a_trial_that_ended() -> None:
    """Data that Tune would keep in memory of each trial until the run ends is cleared when the trial ends."""

    metadata = SimpleNamespace(metric_analysis={"a": 1}, metric_n_steps={"a": 1}, last_result={"a": 1})
    ResultForwarder(None).on_trial_complete(0, [], SimpleNamespace(run_metadata=metadata))  # type: ignore[arg-type]
    assert vars(metadata) == {"metric_analysis": {}, "metric_n_steps": {}, "last_result": {}}
