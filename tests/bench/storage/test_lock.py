"""One run at a time on a storage: real processes and signals on folders, leases on object stores."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from bench.cli.main import main
from bench.exceptions import RecordError
from bench.storage import lock as locks
from bench.storage.lock import Lease, StorageLock
from bench.storage.records import RecordStore

if TYPE_CHECKING:
    from tests.helpers.object_store import ObjectStore

ROOT = Path(__file__).parents[3]
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
def remote() -> RecordStore:
    """A storage without file locks, as an object store is."""
    return RecordStore(f"memory://{uuid.uuid4().hex}/a")


@pytest.fixture
def holder(store: RecordStore) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the storage."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, store.url],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Abandoned leases are recognized after 0.3 s."""
    monkeypatch.setattr(locks, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.02)


def newest(store: RecordStore) -> Lease:
    lease = Lease.newest(store)
    assert lease is not None
    return lease


def elsewhere(number: int = 1, heartbeat: float | None = None) -> Lease:
    """A lease of another machine."""
    now = time.time() if heartbeat is None else heartbeat
    return Lease(number, "elsewhere", "another kernel", 1, "5", 7, "another token", now, now)


def refusal(store: RecordStore) -> str:
    with pytest.raises(RecordError, match="in use by another `run`") as refused:
        StorageLock(store).__enter__()
    return str(refused.value)


def test_a_copy_of_a_used_storage_is_free(store: RecordStore, holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """A copy that was made during a run holds a copy of its lease, and can be used at once; the original is not."""
    shutil.copytree(store.url, tmp_path / "copy")
    with StorageLock(RecordStore(str(tmp_path / "copy"))) as lock:
        assert lock.predecessor is not None
        assert lock.predecessor.pid == holder.pid
    assert f"process {holder.pid} on " in refusal(store)


def test_a_second_run_is_refused(store: RecordStore, holder: subprocess.Popen[str]) -> None:
    """While a process uses a storage another one is refused in one line that names the first and its last heartbeat."""
    line = refusal(store)
    assert f"process {holder.pid} on " in line
    assert "last heartbeat" in line
    assert "choose another --storage" in line
    assert "\n" not in line


def test_a_suspended_process_still_holds(store: RecordStore, holder: subprocess.Popen[str]) -> None:
    """A process that is stopped, as on a closed laptop, keeps its storage however old its heartbeat is."""
    holder.send_signal(signal.SIGSTOP)
    store.write_file("lease-1.json", replace(newest(store), heartbeat=1000.0).to_json())
    refusal(store)


def test_a_killed_process_is_followed_at_once(store: RecordStore, holder: subprocess.Popen[str]) -> None:
    """After SIGKILL the next run claims the storage without waiting, and knows the dead one's last heartbeat."""
    holder.kill()
    holder.wait()
    with StorageLock(store) as lock:
        assert lock.predecessor is not None
        assert lock.predecessor.pid == holder.pid
        assert 0 <= time.time() - lock.predecessor.heartbeat < 60
        assert (newest(store).token, newest(store).pid) == (lock.token, os.getpid())


def test_a_run_that_ended_leaves_no_lease(store: RecordStore) -> None:
    """A run that ended leaves the storage free, without a lease."""
    with StorageLock(store):
        store.write_benchmark({})
    assert store.names() == ["benchmark.json", "id"]


def test_nothing_is_left_where_nothing_was_begun(store: RecordStore, tmp_path: Path) -> None:
    """A run that is refused before it writes anything removes its lock and the folders made for it, but no others."""
    for left in ([], ["deep"]):
        with pytest.raises(ValueError, match="bad input"), StorageLock(store):
            raise ValueError("bad input")
        assert [path.name for path in tmp_path.iterdir()] == left
        (tmp_path / "deep").mkdir(exist_ok=True)


def test_a_file_is_no_storage(tmp_path: Path) -> None:
    """A path below a file is refused in one line."""
    (tmp_path / "a").write_text("mine")
    with pytest.raises(RecordError, match="is not a directory; choose another path"):
        StorageLock(RecordStore(str(tmp_path / "a"))).__enter__()


@pytest.mark.usefixtures("_quick")
def test_a_live_lease_is_not_taken_whatever_its_clock_says(remote: RecordStore) -> None:
    """A run of another machine whose clock is ten minutes behind keeps its storage as long as its lease changes."""
    clock = time.time() - 600
    remote.write_file("lease-1.json", elsewhere(1, clock).to_json())
    later = elsewhere(1, clock + 0.05).to_json()
    threading.Timer(0.1, remote.write_file, ["lease-1.json", later]).start()
    assert "process 1 on elsewhere" in refusal(remote)
    assert (remote.names(), remote.read_file("lease-1.json")) == (["lease-1.json"], later)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("ahead", [-600.0, 600.0])
@pytest.mark.parametrize("kind", ["store", "remote"])
def test_a_lost_machine_is_followed_after_the_waiting_time(
    request: pytest.FixtureRequest, kind: str, ahead: float
) -> None:
    """A lease that does not change is taken over, whatever its clock said, and the user is told of the wait once; on a
    shared folder too, even though the lock on the file is free."""
    place: RecordStore = request.getfixturevalue(kind)
    place.write_file("lease-1.json", elsewhere(1, time.time() + ahead).to_json())
    lines: list[str] = []
    since = time.monotonic()
    with StorageLock(place, say=lines.append) as lock:
        assert time.monotonic() - since >= 0.3
        assert lock.predecessor is not None
        assert lock.predecessor.host == "elsewhere"
        assert newest(place).number == 2
    (line,) = lines
    assert "waiting up to 0 s to see whether a `run` (process 1 on elsewhere" in line
    assert "\n" not in line


def test_a_dead_process_of_this_machine_is_looked_up(remote: RecordStore) -> None:
    """On an object store too a dead process of this machine holds nothing, nor does a later one of the same number."""
    mine = Lease.of_this_process(1, "t", remote)
    remote.write_file("lease-1.json", replace(mine, started="not mine").to_json())
    with StorageLock(remote) as lock:
        assert lock.predecessor is not None
        refusal(remote)


@pytest.mark.usefixtures("_quick")
def test_a_container_is_another_machine(remote: RecordStore) -> None:
    """A process of another namespace cannot be looked up: its lease is watched, and taken once it left."""
    mine = Lease.of_this_process(1, "t", remote)
    remote.write_file("lease-1.json", replace(mine, machine=f"{mine.machine}0", pid=2**30).to_json())
    threading.Timer(0.1, remote.remove, ["lease-1.json"]).start()
    with StorageLock(remote) as lock:
        assert lock.predecessor is None
        assert newest(remote).number == 1


def test_a_folder_without_file_locks(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that knows no flock the lease alone decides."""
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(95, "Operation not supported")))
    with StorageLock(store):
        refusal(store)
    assert not store.exists("lease-1.json")


def test_a_refused_run_leaves_the_dead_one_s_lease(store: RecordStore, holder: subprocess.Popen[str]) -> None:
    """A run that is refused after another was killed leaves that one's lease to the next run, which may close it."""
    holder.kill()
    holder.wait()
    left = newest(store)
    with pytest.raises(ValueError, match="bad input"), StorageLock(store):
        raise ValueError("bad input")
    with StorageLock(store) as lock:
        assert lock.predecessor == left
        lock.resumed = True
    assert Lease.newest(store) is None


def test_open_attempts_leave_the_lease(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a full disk leaves its lease, so that the next one closes its attempts."""
    with StorageLock(store) as lock:
        lock.attempts_open = True
    monkeypatch.setattr(locks, "_start_time", lambda pid: "")  # its process has ended
    with StorageLock(store) as after:
        assert after.predecessor is not None
        assert after.predecessor.token == lock.token


def test_a_claim_whose_answer_was_lost_counts(remote: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A create-only write that is repeated after its answer was lost says that the file exists: it is this run's."""
    create = RecordStore.create_file
    monkeypatch.setattr(RecordStore, "create_file", lambda *file: [create(*file), create(*file)])
    with StorageLock(remote) as lock:
        assert newest(remote).token == lock.token


@pytest.mark.parametrize("number", [1, 2])
def test_a_claim_that_comes_too_late_is_withdrawn(
    remote: RecordStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """If another run claims the storage between a run's look at it and its own claim, the other one keeps it."""
    create = RecordStore.create_file
    other = Lease.of_this_process(number, "another", remote)

    def late(store: RecordStore, name: str, content: bytes) -> None:
        if not remote.exists(other.name):
            create(store, other.name, other.to_json())
        create(store, name, content)

    monkeypatch.setattr(RecordStore, "create_file", late)
    refusal(remote)
    assert remote.names() == [other.name]


def test_a_storage_that_was_taken_is_noticed(remote: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that slept for too long and whose storage another one took is told, and leaves that one's lease."""
    monkeypatch.setattr("bench.storage.lock.HEARTBEAT_SECONDS", 0.05)
    lost = threading.Event()
    other = elsewhere(2)
    with StorageLock(remote, lost.set) as lock:
        remote.write_file(other.name, other.to_json())
        assert lost.wait(5)
        assert lock.lost
    assert newest(remote) == other


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"pid": 1}', b"\xff", elsewhere().to_json().replace(b'"pid":1', b'"pid":1e400'), b"[" * 10**5],
)
def test_a_damaged_lease_is_watched(remote: RecordStore, content: bytes) -> None:
    """A lease that cannot be read holds the storage only as long as somebody rewrites it."""
    remote.write_file("lease-1.json", content)
    with StorageLock(remote) as lock:
        assert newest(remote).token == lock.token


def test_the_heartbeat_goes_on(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run holds its storage its lease is rewritten; a full disk in between stops nothing."""
    monkeypatch.setattr("bench.storage.lock.HEARTBEAT_SECONDS", 0.05)

    def beats_on() -> None:
        before, deadline = newest(store), time.monotonic() + 5
        while newest(store).heartbeat <= before.heartbeat:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with StorageLock(store):
        beats_on()
        with monkeypatch.context() as full:
            full.setattr(RecordStore, "write_file", Mock(side_effect=OSError(28, "No space left")))
            time.sleep(0.2)
        beats_on()


def test_sync_leaves_a_storage_to_its_run(storage: RecordStore, capsys: pytest.CaptureFixture[str]) -> None:
    """While a run uses a storage `sync` is refused in one line: both would send the same trials."""
    with StorageLock(storage):
        assert main(["sync", storage.url]) == 2
    error = capsys.readouterr().err
    assert "in use by a `run` (process" in error
    assert error.count("\n") == 1


RACE = """
import sys, time
from bench.exceptions import RecordError
from bench.storage.lock import StorageLock
from bench.storage.records import RecordStore
for line in sys.stdin:
    url, start = line.split()
    store = RecordStore(url)
    store.names()
    time.sleep(max(float(start) - time.time(), 0))
    try:
        with StorageLock(store):
            time.sleep(1.0)
        print("ran", flush=True)
    except RecordError as error:
        print("refused" if "in use by another" in str(error) else error, flush=True)
"""


@pytest.mark.parametrize("dead", [False, True])
def test_of_two_that_start_together_one_runs(s3: ObjectStore, dead: bool) -> None:
    """Of two processes that claim a storage on S3 in the same moment, new or of a dead run, exactly one gets it."""
    command = [sys.executable, "-c", RACE]
    env = os.environ | s3.environment | {"PYTHONPATH": str(ROOT)}
    pipes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)
    ]
    try:
        for _ in range(int(os.environ.get("DEELBO_LOCK_RACES", "3"))):
            url = f"s3://lab/{uuid.uuid4().hex}/a"
            if dead:
                RecordStore(url).write_file(
                    "lease-1.json", replace(Lease.of_this_process(1, "t", RecordStore(url)), started="1").to_json()
                )
            start = time.time() + 0.5
            for process in pipes:
                assert process.stdin is not None
                print(url, start, file=process.stdin, flush=True)
            assert sorted(process.stdout.readline() for process in pipes if process.stdout) == ["ran\n", "refused\n"]
            assert RecordStore(url).names() == (["lease-1.json"] if dead else [])
    finally:
        for process in pipes:
            process.kill()
            process.communicate()
