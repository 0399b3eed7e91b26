"""Who works on a storage: one `run` at a time, and how to tell that the last one is dead."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.outcome import duration
from bench.records import LOCKS, RecordError, RecordStore

__all__ = ["Owner", "StorageLock"]

BEAT = 10.0
"""Seconds from one sign of life to the next."""
STALE = 120.0
"""Seconds without one after which a process on another machine counts as dead; one on this machine is looked up."""


@dataclass(frozen=True)
class Owner:
    """A `run` that works, or worked, on a storage.

    Attributes:
        host, pid, born: which process; ``born`` tells it from a later one of the same number.
        token: a name of this call alone.
        since, beat: when it took the storage, and its last sign of life, in seconds since 1970.
    """

    host: str
    pid: int
    born: str
    token: str
    since: float
    beat: float

    @classmethod
    def read(cls, store: RecordStore) -> Owner | None:
        """The owner that the storage names; None where it names none that could be understood."""
        try:
            content: Any = json.loads(store.read_file("lock.json") or b"")
            owner = cls(**content)
            words, numbers = (owner.host, owner.born, owner.token), (owner.pid, owner.since, owner.beat)
            right = all(isinstance(word, str) for word in words) and all(isinstance(n, int | float) for n in numbers)
            return owner if right and 0 <= owner.beat < 1e11 and 0 <= owner.since < 1e11 else None
        except (ValueError, TypeError, RecursionError):
            return None

    @property
    def lives(self) -> bool:
        """Whether it may still be at work."""
        if self.host == platform.node() and _born(os.getpid()):
            return self.born == _born(int(self.pid))
        return time.time() - self.beat < STALE

    def describe(self) -> str:
        """For people."""
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S")
        age = duration(max(time.time() - self.beat, 0))
        return f"process {self.pid} on {self.host[:80]}, since {since} UTC, last sign of life {age} ago"


class StorageLock:
    """Holds a storage while the block runs, and gives a sign of life every ten seconds.

    On a local disk the kernel's own lock (flock) on the file ``lock`` decides, which no dead process can hold.
    Elsewhere, and between machines that share a file system without it, it is a sign of life in ``lock.json``.

    Attributes:
        token: this call's name, which workers find in ``lock.json`` where their storage is the same.
        predecessor: the call before, where it was killed: its trials ended with its last sign of life, as far as known.

    Args:
        store: which storage.
        taken_away: called, from another thread, where another call took the storage meanwhile.

    Raises:
        RecordError: another `run` works on it; who, and since when.
    """

    def __init__(self, store: RecordStore, taken_away: Callable[[], object] | None = None) -> None:
        self.store, self.token = store, uuid.uuid4().hex
        self.predecessor: Owner | None = None
        self._taken_away = taken_away
        self._since = time.time()
        self._file: int | None = None
        self._flocked = self._lost = False
        self._made: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="storage-lock", daemon=True)

    def __enter__(self) -> StorageLock:
        try:
            if self.store.local:
                self._lock_file()
            before = Owner.read(self.store)
            here = self._flocked and before is not None and before.host == platform.node()
            if before is not None and before.lives and not here:
                raise self._refusal(before)
            self._write()
            if not self.store.local:  # no store has a lock: of two that write at once, the last one wins
                time.sleep(0.5)
                if (now := Owner.read(self.store)) is None or now.token != self.token:
                    raise self._refusal(now)
            self.predecessor = before
        except BaseException:
            self._unlock()
            raise
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        try:
            if not self._lost:
                self._undo()
        except OSError:  # that the process is gone can be seen
            return
        finally:
            self._unlock()

    def _lock_file(self) -> None:
        path = self.store.path("lock")
        self._made = [str(folder) for folder in Path(path).parents if not folder.exists()]
        while True:
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise RecordError(f"{self.store.url} is no folder: choose another --storage") from None
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
                    self._file, self._flocked = file, True
                    return
            except BlockingIOError:
                os.close(file)
                raise self._refusal(Owner.read(self.store)) from None
            except OSError:  # a file system without locks
                self._file = file
                return
            os.close(file)  # its owner removed it as we came

    def _unlock(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _undo(self) -> None:
        """Who leaves in order leaves no trace."""
        for name in LOCKS:
            self.store.remove(name)
        for folder in self._made:
            try:
                os.rmdir(folder)
            except OSError:
                return

    def _write(self) -> None:
        pid = os.getpid()
        owner = Owner(platform.node(), pid, _born(pid), self.token, self._since, time.time())
        self.store.write_file("lock.json", json.dumps(asdict(owner)).encode())

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                if not self.store.local and (now := Owner.read(self.store)) is not None and now.token != self.token:
                    self._lost = True
                    if self._taken_away is not None:
                        self._taken_away()
                    return
                self._write()
            except Exception:  # noqa: S112 - a sign of life that cannot be written now may be later
                continue

    def _refusal(self, owner: Owner | None) -> RecordError:
        who = "another `run`" if owner is None else f"another `run` ({owner.describe()})"
        wait = "" if owner is None or owner.host == platform.node() else f", or, where that is dead, {STALE:.0f} s"
        return RecordError(f"{self.store.url} is in use by {who}: wait for its end{wait}, or choose another --storage")


def _born(pid: int) -> str:
    """When a process began, in the kernel's words; empty where there is none, or no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
