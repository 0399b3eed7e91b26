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

from bench.exceptions import RecordError
from bench.storage.records import RecordStore
from bench.trials.json_fields import check_fields, kinds_of, strict_json
from bench.trials.record import LONGEST
from bench.utils.text import format_duration, single_line

__all__ = ["Owner", "StorageLock"]


BEAT = 10.0
"""Seconds from one sign of life to the next."""
STALE = 120.0
"""Seconds without one after which a process on another machine counts as dead; one on this machine is looked up."""


@dataclass(frozen=True)
class Owner:
    """A `run` that works, or worked, on a storage.

    Attributes:
        host: for people.
        machine, pid, born: which process: of which booted kernel and name space of processes, as containers have their
            own, its number, and when it began, which tells it from a later one of the same number.
        token: a name of this call alone.
        since, beat: when it took the storage, and its last sign of life, in seconds since 1970.
    """

    host: str
    machine: str
    pid: int
    born: str
    token: str
    since: float
    beat: float

    @classmethod
    def read(cls, store: RecordStore) -> Owner | None:
        """The owner that the storage names; None where it names none that could be understood."""
        try:
            content: Any = strict_json((store.read_file("lock.json") or b"").decode())
            owner = cls(**content)
            check_fields(content, kinds_of(cls))
            return owner if 0 <= owner.beat < LONGEST and 0 <= owner.since < LONGEST else None
        except (ValueError, TypeError, RecursionError):
            return None

    @classmethod
    def me(cls, token: str, since: float) -> Owner:
        """This process, now."""
        pid = os.getpid()
        return cls(single_line(platform.node(), 100), _machine(), pid, _born(pid), token, since, time.time())

    @property
    def lives(self) -> bool:
        """Whether it may still be at work."""
        if self.here:
            return self.born == _born(self.pid)
        return time.time() - self.beat < STALE

    @property
    def here(self) -> bool:
        """Whether it is, or was, a process that this one can look up."""
        return bool(self.machine) and self.machine == _machine()

    def describe(self) -> str:
        """For people."""
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S")
        age = format_duration(max(time.time() - self.beat, 0))
        return f"process {self.pid} on {self.host}, since {since} UTC, last sign of life {age} ago"


class StorageLock:
    """Holds a storage while the block runs, and gives a sign of life every ten seconds.

    On a file system that has it the kernel's lock (flock) on the file ``lock`` decides, which no dead process can hold.
    Elsewhere, and between machines that share a disk without it, it is a sign of life in ``lock.json``.

    Attributes:
        token: this call's name, which workers find in ``lock.json`` where their storage is the same.
        predecessor: the call before, where it was killed: its trials ended with its last sign of life, as far as known.
        taken: whether another call has taken the storage from this one.
        taken_up: to be set once the predecessor's attempts are closed.
        accounts_open: to be set where this call could not close its own: the next one does.

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
        self._flocked = False
        self.taken = self.taken_up = self.accounts_open = False
        self._made: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="storage-lock", daemon=True)

    def __enter__(self) -> StorageLock:
        try:
            if self.store.local:
                self._lock_file()
            before = Owner.read(self.store)
            gone = before is None or (self._flocked and before.here) or not before.lives
            if not gone:
                raise self._refusal(before)
            self._write()
            if not self._flocked:  # of two that write at once, the last one wins
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
        self.store.hurry()
        self._thread.join()
        try:
            if not self.taken:
                self._leave()
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
            except FileNotFoundError:
                pass
            except OSError:  # a file system without locks
                self._file = file
                return
            os.close(file)  # its owner removed it as we came

    def _unlock(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _leave(self) -> None:
        """Who leaves in order leaves no trace; who did not take up where a dead one left, that one's."""
        if not self._is_mine() or self.accounts_open:
            return
        if self.predecessor is not None and not self.taken_up:
            self._write(self.predecessor)
            return
        self.store.remove("lock.json")
        if self._file is not None:
            self.store.remove("lock")
        for folder in self._made:
            try:
                os.rmdir(folder)
            except OSError:
                return

    def _write(self, owner: Owner | None = None) -> None:
        owner = owner or Owner.me(self.token, self._since)
        self.store.write_file("lock.json", json.dumps(asdict(owner)).encode())

    def _is_mine(self) -> bool:
        """Unless another call has put its name there; one that cannot be read is nobody's."""
        now = Owner.read(self.store)
        return now is None or now.token == self.token

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                if not self._is_mine():
                    self.taken = True
                    if self._taken_away is not None:
                        self._taken_away()
                    return
                self._write()
            except Exception:  # noqa: S112 - a sign of life that cannot be written now may be later
                continue

    def _refusal(self, owner: Owner | None) -> RecordError:
        who = "another `run`" if owner is None else f"another `run` ({owner.describe()})"
        wait = "" if owner is None or owner.here else f", or, where that is dead, {STALE:.0f} s"
        return RecordError(f"{self.store.url} is in use by {who}: wait for its end{wait}, or choose another --storage")


def _machine() -> str:
    """The kernel as it was booted, and the name space of its processes; empty where neither can be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process began, in the kernel's words; empty where there is none, or no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
