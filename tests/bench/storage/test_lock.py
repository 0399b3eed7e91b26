"""One run at a time on a storage: real processes, real signals, and object stores that know no locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench.exceptions import RecordError
from bench.storage.lock import STALE, Owner, StorageLock
from bench.storage.records import RecordStore

HOLD = """
import sys, time
from bench.storage.lock import StorageLock
from bench.storage.records import RecordStore
store = RecordStore(sys.argv[1])
with StorageLock(store):
    store.write_benchmark({})
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(str(tmp_path / "deep" / "a"))


@pytest.fixture
def holder(store: RecordStore) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the storage."""
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, store.url],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused(store: RecordStore, holder: subprocess.Popen[str]) -> None:
    """While a process works on a storage another one is refused, with who works there and its last sign of life."""
    with pytest.raises(
        RecordError, match=rf"is in use by another `run` \(process {holder.pid} on .*, since"
    ) as refused:
        StorageLock(store).__enter__()
    assert "last sign of life" in str(refused.value)
    assert "choose another --storage" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_stopped_process_still_holds(store: RecordStore, holder: subprocess.Popen[str]) -> None:
    """A process that sleeps, as on a closed laptop, has not left, however old its last sign of life is."""
    owner = Owner.read(store)
    assert owner is not None
    holder.send_signal(signal.SIGSTOP)
    store.write_file("lock.json", json.dumps(asdict(replace(owner, beat=1000.0))).encode())
    with pytest.raises(RecordError, match="is in use"):
        StorageLock(store).__enter__()


def test_a_killed_process_is_followed_at_once(store: RecordStore, holder: subprocess.Popen[str]) -> None:
    """After SIGKILL the next run takes the storage without waiting, and knows when the dead one was last alive."""
    holder.kill()
    holder.wait()
    with StorageLock(store) as lock:
        assert lock.predecessor is not None
        assert lock.predecessor.pid == holder.pid
        assert 0 <= time.time() - lock.predecessor.beat < 60
        now = Owner.read(store)
        assert now is not None
        assert (now.token, now.pid) == (lock.token, os.getpid())


def test_who_left_in_order_is_no_predecessor(store: RecordStore) -> None:
    """A run that ended leaves the storage free, and nothing to recover from."""
    with StorageLock(store):
        store.write_benchmark({})
    with StorageLock(store) as lock:
        assert lock.predecessor is None


def test_nothing_is_left_where_nothing_was_begun(store: RecordStore, tmp_path: Path) -> None:
    """A run that is refused before it keeps anything removes its lock, and the folders that it made for it."""
    with pytest.raises(ValueError, match="bad input"), StorageLock(store):
        raise ValueError("bad input")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays(store: RecordStore, tmp_path: Path) -> None:
    """Only folders that the lock made go with it."""
    (tmp_path / "deep").mkdir()
    with StorageLock(store):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def remote() -> RecordStore:
    return RecordStore(f"memory://{uuid.uuid4().hex}/a")


def owner_of(host: str, age: float, **known: Any) -> Owner:
    """An owner on a machine of another kernel, unless told otherwise."""
    return replace(Owner(host, "other", 1, "5", "t", time.time() - age - 10, time.time() - age), **known)


@pytest.mark.parametrize(("age", "free"), [(1.0, False), (STALE - 5, False), (STALE + 5, True)])
def test_another_machine_is_known_by_its_signs_of_life(age: float, free: bool) -> None:
    """On an object store a run of another machine holds as long as it gives signs of life."""
    store = remote()
    store.write_file("lock.json", json.dumps(asdict(owner_of("elsewhere", age))).encode())
    if free:
        with StorageLock(store) as lock:
            assert lock.predecessor is not None
    else:
        with pytest.raises(RecordError, match=r"process 1 on elsewhere.*or, where that is dead, 120 s"):
            StorageLock(store).__enter__()


def test_a_dead_process_of_this_machine_is_looked_up() -> None:
    """On an object store too, a dead process of this machine holds nothing; nor does a later one of the same number."""
    store, me = remote(), Owner.me("t", 1000.0)
    store.write_file("lock.json", json.dumps(asdict(replace(me, born="not mine"))).encode())
    with StorageLock(store) as lock:
        assert lock.predecessor is not None
        with pytest.raises(RecordError, match="is in use"):
            StorageLock(store).__enter__()


def test_a_container_of_the_same_name_is_another_machine() -> None:
    """A process with a name space of its own cannot be looked up, whatever its host is called and its number is."""
    store, me = remote(), Owner.me("t", time.time())
    store.write_file("lock.json", json.dumps(asdict(replace(me, machine=f"{me.machine}0", pid=2**30))).encode())
    with pytest.raises(RecordError, match="is in use"):
        StorageLock(store).__enter__()


def test_a_disk_without_locks(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no flock is held by signs of life, as an object store is."""

    def flock(file: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("bench.storage.lock.fcntl.flock", flock)
    with StorageLock(store):
        with pytest.raises(RecordError, match="is in use"):
            StorageLock(store).__enter__()
        assert store.exists("lock.json")
    assert not store.exists("lock.json")


def test_who_took_nothing_up_leaves_the_dead_one_s_sign(store: RecordStore, holder: subprocess.Popen[str]) -> None:
    """A run that is refused after another was killed leaves that one's last sign of life to the next run."""
    holder.kill()
    holder.wait()
    left = Owner.read(store)
    with pytest.raises(ValueError, match="bad input"), StorageLock(store):
        raise ValueError("bad input")
    with StorageLock(store) as lock:
        assert lock.predecessor == left
        lock.taken_up = True
    with StorageLock(store) as lock:
        assert lock.predecessor is None


def test_who_could_not_close_its_accounts_leaves_its_own(store: RecordStore) -> None:
    """A run on a full disk leaves its sign of life, so that the next one closes what it was running."""
    with StorageLock(store) as lock:
        lock.accounts_open = True
    with StorageLock(store) as after:
        assert after.predecessor is not None
        assert after.predecessor.token == lock.token


def test_of_two_that_come_at_once_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two write their names at the same time, the one whose name was written over is refused."""
    store = remote()
    other = json.dumps(asdict(owner_of("elsewhere", 0.0))).encode()
    monkeypatch.setattr("bench.storage.lock.time.sleep", lambda seconds: store.write_file("lock.json", other))
    with pytest.raises(RecordError, match="is in use"):
        StorageLock(store).__enter__()
    assert store.read_file("lock.json") == other


def test_a_storage_that_was_taken_away_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that slept too long, and whose storage another one took meanwhile, is told, and leaves that one's name."""
    monkeypatch.setattr("bench.storage.lock.BEAT", 0.05)
    store, told = remote(), []
    store.write_benchmark({})
    with StorageLock(store, taken_away=lambda: told.append(1)):
        other = json.dumps(asdict(owner_of("elsewhere", 0.0))).encode()
        store.write_file("lock.json", other)
        deadline = time.monotonic() + 5
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
    assert told == [1]
    assert store.read_file("lock.json") == other


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"pid": 1}', b"\xff", json.dumps(asdict(Owner.me("t", 1.0)) | {"pid": 1e400}).encode()],
)
def test_a_damaged_name_holds_nothing(store: RecordStore, content: bytes) -> None:
    """Where lock.json cannot be read the kernel's lock decides alone."""
    store.write_file("lock.json", content)
    with StorageLock(store) as lock:
        assert lock.predecessor is None


def test_signs_of_life(monkeypatch: pytest.MonkeyPatch, store: RecordStore) -> None:
    """While a run holds its storage the time of its last sign of life goes on; a disk that is full stops nothing."""
    monkeypatch.setattr("bench.storage.lock.BEAT", 0.05)
    store.write_benchmark({})
    with StorageLock(store):
        first = Owner.read(store)
        time.sleep(0.3)
        second = Owner.read(store)
        assert first is not None
        assert second is not None
        assert second.beat > first.beat
        with monkeypatch.context() as full:
            full.setattr(RecordStore, "write_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
            time.sleep(0.2)
        time.sleep(0.2)
        third = Owner.read(store)
        assert third is not None
        assert third.beat > second.beat
