"""The storage of records: atomic writes, damaged files and formats, in a folder and behind URLs."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import FormatError, RecordError
from bench.results.frame import COLUMNS, to_frame
from bench.scheduling.resume import load_for_resume
from bench.storage.records import RecordStore
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

Fake = Callable[..., TrialRecord]
SERIES = [{"step": 2.0, "train_nll": 2.0}, {"step": 4.0, "train_nll": float("nan")}]


@pytest.fixture
def spec(tiny: Benchmark) -> TrialSpec:
    found = make_methods(tiny)[0].ask()
    assert found is not None
    return found


@pytest.fixture(params=["folder", "memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RecordStore:
    """The same behavior on a folder, a file:// URL, and an object store."""
    urls = {"folder": str(tmp_path / "a"), "memory": f"memory://{uuid.uuid4().hex}/a", "file": f"file://{tmp_path}/a"}
    return RecordStore(urls[request.param])


def test_a_trial_is_read_back(store: RecordStore, spec: TrialSpec, fake: Fake) -> None:
    """A record is read back equal, by its key and in the list of all; its rows over the epochs too, NaN included."""
    record = fake(spec)
    assert (store.read(spec.key), list(store.records()), store.series(spec.key)) == (None, [], [])
    store.write(record, SERIES)
    assert store.read(spec.key) == record
    assert list(store.records()) == [record]
    assert repr(store.series(spec.key)) == repr(SERIES)


def test_a_later_record_replaces_the_earlier(store: RecordStore, spec: TrialSpec, fake: Fake) -> None:
    """A trial has one record: that of its latest attempt."""
    store.write(fake(spec, "failed"), [])
    store.write(fake(spec, attempt=2), SERIES)
    assert [record.attempt for record in store.records()] == [2]


def test_summaries_of_runs_are_in_order(store: RecordStore) -> None:
    """The summaries of all runs come oldest first; a damaged one is refused with its path."""
    for started in ("20250102T000000", "20250101T000000"):
        store.write_run(started, {"started": started})
    assert [run["started"] for run in store.runs()] == ["20250101T000000", "20250102T000000"]
    for damage in (b"[1]", b'"x"', b"{"):
        store.write_file("runs/20250101T000000.json", damage)
        with pytest.raises(RecordError, match=r"20250101T000000\.json is damaged"):
            store.runs()


@pytest.mark.parametrize("name", ["a", ""])
def test_reading_creates_nothing(tmp_path: Path, name: str) -> None:
    """Reading from a storage that does not exist does not make it; an empty folder holds nothing yet."""
    store = RecordStore(str(tmp_path / name))
    assert (store.read_benchmark(), list(store.records()), store.runs()) == (None, [], [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", ".git", "data"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    """A file, and a folder that holds something but no benchmark, hidden files included, are refused."""
    (tmp_path / name).write_text("mine")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(RecordError, match="holds no benchmark: choose another --storage"):
            RecordStore(str(path)).read_benchmark()


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_benchmark_is_named(tmp_path: Path, text: str) -> None:
    """A benchmark.json that is not an object is refused with its path."""
    (tmp_path / "benchmark.json").write_text(text)
    with pytest.raises(RecordError, match=rf"{tmp_path}/benchmark\.json is damaged"):
        RecordStore(str(tmp_path)).read_benchmark()


@pytest.mark.parametrize("part", ["benchmark.json", "records"])
def test_a_storage_of_format_1_is_refused(storage: RecordStore, tiny: Benchmark, part: str) -> None:
    """A storage of the earlier format is refused in one line, and nothing in it is moved."""
    if part == "records":
        storage.remove("benchmark.json")
    for path in Path(storage.path(part)).rglob("*.json") if part == "records" else [Path(storage.path(part))]:
        content = json.loads(path.read_text())
        content = content | {"format": 1} if part == "records" else {k: v for k, v in content.items() if k != "format"}
        path.write_text(json.dumps(content))
    names = storage.names("records")
    for read in (
        lambda: load_for_resume(storage, tiny, print),
        lambda: (storage.read_benchmark(), [*storage.records([])]),
    ):
        with pytest.raises(FormatError, match=r"is of format 1, expected 2: .*choose another --storage") as refused:
            read()
        assert "\n" not in str(refused.value)
    assert storage.names("records") == names
    assert not storage.exists("damaged")


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b'{"key": 1'])
def test_a_damaged_record_is_named(tmp_path: Path, spec: TrialSpec, fake: Fake, text: bytes) -> None:
    """A record that cannot be read is refused with its path and what to do."""
    store = RecordStore(str(tmp_path))
    store.write(fake(spec), SERIES)
    (tmp_path / "records" / f"{spec.key}.json").write_bytes(text)
    with pytest.raises(RecordError, match=rf"{spec.key}\.json is damaged"):
        list(store.records())
    with pytest.raises(RecordError, match="is damaged"):
        store.read(spec.key)


def test_damaged_records_may_be_collected(store: RecordStore, tiny: Benchmark, fake: Fake) -> None:
    """With a list for them, `records` yields all others and adds a line for each damaged one."""
    specs = [spec for method in make_methods(tiny) if (spec := method.ask()) is not None]
    for one in specs:
        store.write(fake(one), [])
    store.write_file(f"records/{specs[0].key}.json", b"{")
    damaged: list[str] = []
    assert {record.key for record in store.records(damaged)} == {one.key for one in specs[1:]}
    (line,) = damaged
    assert f"{specs[0].key}.json is damaged" in line


@pytest.mark.parametrize("moment", ["replace", "fsync"])
def test_a_crash_leaves_no_half_record(
    tmp_path: Path, spec: TrialSpec, fake: Fake, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A write that dies before its last step leaves neither a record nor a file of its own behind."""
    store = RecordStore(str(tmp_path))

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, moment, die)
        with pytest.raises(KeyboardInterrupt):
            store.write(fake(spec), SERIES)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert store.read(spec.key) is None


def test_a_leftover_of_a_killed_process_is_no_record(tmp_path: Path, spec: TrialSpec, fake: Fake) -> None:
    """A temporary file that a killed process left behind is not taken for a record."""
    store = RecordStore(str(tmp_path))
    store.write(fake(spec), SERIES)
    (tmp_path / "records" / "0123.json.abcdef.part").write_text("{")
    assert len(list(store.records())) == 1


def test_local_and_remote_are_told_apart(tmp_path: Path) -> None:
    """A folder and a file:// URL are local and absolute; another URL is neither, and loses its last slash."""
    assert RecordStore("some/folder").local
    assert RecordStore("some/folder/").path("a") == os.path.abspath("some/folder/a")
    assert RecordStore("some/folder").url == os.path.abspath("some/folder")
    assert RecordStore(f"file://{tmp_path}").path("a") == str(tmp_path / "a")
    assert not RecordStore("memory://some/folder").local
    assert RecordStore("memory://some/folder/").url == "memory://some/folder"


@pytest.mark.parametrize("count", [9, 0])
def test_frame_has_the_documented_columns(storage: RecordStore, count: int) -> None:
    """The table of records, also of none, has the schema's columns with its types, then the learned state."""
    frame = to_frame(list(storage.records())[:count])
    assert {name: str(kind) for name, kind in frame.dtypes[: len(COLUMNS)].items()} == COLUMNS
    assert len(frame) == count
    if count:
        assert frame["state_scale_backbone"].eq(0.5).all()


def test_frame_holds_what_the_records_say(tmp_path: Path, spec: TrialSpec, fake: Fake) -> None:
    """A row is its record; what a trial does not have is missing, and a failed trial has a row."""
    store = RecordStore(str(tmp_path))
    record = fake(spec)
    store.write(record, SERIES)
    (row,) = to_frame(list(store.records())).to_dict("records")
    assert row["key"] == spec.key
    assert (row["val_nll"], row["train_seconds"]) == (record.metrics["val_nll"], record.seconds["train"])
    assert (row["learning_rate"], row["weight_decay"]) == (spec.learning_rate, spec.weight_decay)
    assert np.isnan([row["kappa"], row["prior_scale"], row["test_acc"]]).all()
    store.write(fake(spec, "failed", seconds={}), [])
    assert to_frame(list(store.records()))["status"].tolist() == ["failed"]


def test_frame_says_where_the_records_come_from(storage: RecordStore) -> None:
    """Each row has the name that its storage was given beside others, or none; an ELBo has its NLL under q."""
    records = list(storage.records())
    assert set(to_frame(records, "here")["source"]) == {"here"}
    assert set(to_frame(records)["source"]) == {""}
    frame = to_frame(records).set_index("key")
    expected = [record.metrics.get("nll_under_q", float("nan")) for record in records]
    assert np.isfinite(expected).sum() == 4
    np.testing.assert_array_equal(frame.loc[[record.key for record in records], "nll_under_q"], expected)


def test_a_storage_has_an_id(store: RecordStore, tmp_path: Path) -> None:
    """A storage with a benchmark is identified by an id that stays; before, by its URL."""
    assert (store.identity, store.read_benchmark()) == (store.url, None)
    store.write_benchmark({"name": "a"})
    assert store.read_benchmark() == {"name": "a"}
    name = store.identity
    assert len(name) == 32
    store.write_benchmark({"name": "b"})
    assert store.identity == name
    other = RecordStore(str(tmp_path / "other"))
    other.write_benchmark({"name": "a"})
    assert other.identity != name
