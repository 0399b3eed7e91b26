"""Exclusive use of a storage: one `run` at a time.

On a folder the operating system's lock on the file ``lock`` keeps a second run out. Every storage also has a lease, the
file ``lease-K.json``, rewritten every ten seconds. It is created by a write that fails if the file exists, so that of
several runs that start together one succeeds. A run that finds it abandoned creates the next one, K + 1.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import Field, TypeAdapter, ValidationError

from bench.exceptions import RecordError
from bench.storage.records import RecordStore
from bench.utils.text import redact_url, single_line

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
POLL_SECONDS = 2.0
Timestamp = Annotated[float, Field(ge=0, lt=1e11)]


@dataclass(frozen=True)
class Lease:
    """A `run` that uses, or used, a storage; of an unreadable file the number alone.

    Attributes:
        machine, pid, started: its process: booted kernel and namespace of processes, number, and start in clock ticks.
        folder: inode number of the storage, as a copy of a storage holds a copy of its lease; 0 if it is not a folder.
        token: identifies its invocation; workers that find it share the driver's storage.
        since, heartbeat: when it claimed the storage and last rewrote this file, by its own clock, seconds since 1970.
    """

    number: int
    host: str = "an unknown host"
    machine: str = ""
    pid: int = 0
    started: str = ""
    folder: int = 0
    token: str = ""
    since: Timestamp = 0.0
    heartbeat: Timestamp = 0.0

    @classmethod
    def of_this_process(cls, number: int, token: str, store: RecordStore) -> Lease:
        """Return a new lease of this process."""
        pid, now = os.getpid(), time.time()
        return cls(number, platform.node(), _machine(), pid, _start_time(pid), _inode(store), token, now, now)

    @classmethod
    def read_all(cls, store: RecordStore) -> list[Lease]:
        """Return all leases by their numbers: the last one counts, the others are abandoned."""
        leases = []
        for name, content in store.read_files(n for n in store.names() if re.fullmatch(r"lease-\d+\.json", n)):
            number = int(name.removeprefix("lease-").removesuffix(".json"))
            try:
                leases.append(replace(_ADAPTER.validate_json(content, strict=True), number=number))
            except ValidationError:
                leases.append(cls(number))
        return sorted(leases, key=lambda lease: lease.number)

    @classmethod
    def newest(cls, store: RecordStore) -> Lease | None:
        """Return the lease that counts; None if there is none."""
        leases = cls.read_all(store)
        return leases[-1] if leases else None

    @property
    def name(self) -> str:
        return f"lease-{self.number}.json"

    def to_json(self) -> bytes:
        return _ADAPTER.dump_json(self)

    def describe(self) -> str:
        since, last = (f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M:%S} UTC" for t in (self.since, self.heartbeat))
        return f"process {self.pid} on {single_line(self.host, 100)}, since {since}, last heartbeat {last}"

    def is_in_use(self, store: RecordStore, say: Callable[[str], object]) -> bool:
        """Return True if its owner is at work.

        Another machine's lease is watched for two minutes of this one's monotonic clock: two clocks are never compared.
        """
        if self.machine and self.machine == _machine():
            return self.started == _start_time(self.pid) and self.folder == _inode(store)
        say(f"waiting up to {STALE_SECONDS:.0f} s to see whether a `run` ({self.describe()}) is still at work")
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            if (now := Lease.newest(store)) != self:
                return now is not None and now.number >= self.number
        return False


_ADAPTER = TypeAdapter(Lease)


def _inode(store: RecordStore) -> int:
    return Path(store.root).stat().st_ino if store.local else 0


def _machine() -> str:
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _start_time(pid: int) -> str:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    return ""


class StorageLock:
    """Context manager that holds a storage for one `run`.

    Attributes:
        token: identifies this invocation.
        predecessor: the abandoned lease that was found; its owner's trials ended with its last heartbeat.
        lost: True once another `run` has taken the storage over; then ``on_lost`` is called from another thread.
        resumed: to be set once the predecessor's attempts are closed; until then its lease stays for the next run.
        attempts_open: to be set if this run could not close its own attempts; its lease stays for the next run.

    Raises:
        RecordError: another `run` uses the storage, or it is not a directory.
    """

    def __init__(
        self, store: RecordStore, on_lost: Callable[[], object] | None = None, say: Callable[[str], object] = print
    ) -> None:
        self.store, self.token, self._on_lost, self._say = store, uuid.uuid4().hex, on_lost, say
        self.predecessor: Lease | None = None
        self.lost = self.resumed = self.attempts_open = False
        self._new_folders: list[Path] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="storage-lock", daemon=True)

    def __enter__(self) -> StorageLock:
        with ExitStack() as stack:
            if self.store.local:
                self._lock_folder(stack)
            self._leases = self._claim()
            self._file_lock = stack.pop_all()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._file_lock:
            self._closed.set()
            self.store.stop_waiting()
            self._thread.join()
            if not self.lost and not self.attempts_open:
                with suppress(OSError):  # a lease that stays is found abandoned by the next run
                    self._release()

    def _lock_folder(self, stack: ExitStack) -> None:
        folder = Path(self.store.root)
        self._new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise RecordError(f"--storage {self.store.url} is not a directory; choose another path") from None
        try:
            stack.enter_context(FileLock(folder / "lock", fallback_to_soft=False).acquire(blocking=False))
        except Timeout:
            raise self._refusal(Lease.newest(self.store)) from None
        except OSError:  # a file system without locks: the lease alone decides
            return

    def _claim(self) -> list[Lease]:
        while True:
            found = Lease.read_all(self.store)
            self.predecessor = found[-1] if found else None
            if self.predecessor is not None and self.predecessor.is_in_use(self.store, self._say):
                raise self._refusal(self.predecessor)
            mine = Lease.of_this_process(found[-1].number + 1 if found else 1, self.token, self.store)
            with suppress(FileExistsError):  # which also follows a write that succeeded but whose answer was lost
                self.store.create_file(mine.name, mine.to_json())
            now = Lease.read_all(self.store)
            if now == [*found, mine]:
                return now
            if mine in now:  # others have come and gone since this run looked
                self.store.remove(mine.name)

    def _release(self) -> None:
        for lease in self._leases if self.resumed else self._leases[-1:]:
            self.store.remove(lease.name)
        if self.store.local:
            self.store.remove("lock")
            with suppress(OSError):  # not empty
                for folder in self._new_folders:
                    folder.rmdir()

    def _renew(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            with suppress(Exception):  # a heartbeat that cannot be written now may be written next time
                newest = Lease.newest(self.store)
                if newest is not None and newest.token not in (self.token, ""):
                    self.lost = True
                    if self._on_lost is not None:
                        self._on_lost()
                    return
                lease = replace(self._leases[-1], heartbeat=time.time())
                self.store.write_file(lease.name, lease.to_json())

    def _refusal(self, owner: Lease | None) -> RecordError:
        user = "another `run`" if owner is None else f"another `run` ({owner.describe()})"
        url = redact_url(self.store.url)
        return RecordError(f"{url} is in use by {user}: wait for its end, or choose another --storage")
