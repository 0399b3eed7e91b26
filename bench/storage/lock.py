"""Exclusive use of a storage: one `run` at a time.

On a folder the operating system's lock on the file ``lock`` keeps a second run out. Every storage also has a lease, the
file ``lease-K.json``. It is created by a write that fails if the file exists, so that of several runs that start
together one succeeds. A run that finds it abandoned creates the next one, K + 1.
"""

from __future__ import annotations

import errno
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from bench.exceptions import RecordError
from bench.storage.lease import Lease
from bench.storage.records import RecordStore
from bench.utils.text import redact_url

__all__ = ["StorageLock"]


HEARTBEAT_SECONDS = 10.0
NO_FILE_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


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
        self._file_lock: FileLock | None = None
        self._new_folders: list[Path] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="storage-lock", daemon=True)

    def __enter__(self) -> StorageLock:
        try:
            if self.store.local:
                self._lock_folder()
            self._lease = self._claim()
        except BaseException:
            self._unlock_folder()
            raise
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self.store.stop_waiting()
        self._thread.join()
        try:
            if not self.lost and not self.attempts_open:
                self._release()
        except OSError:  # the lease stays, and the next run finds it abandoned
            return
        finally:
            self._unlock_folder()

    def _lock_folder(self) -> None:
        path = Path(self.store.path("lock"))
        self._new_folders = [folder for folder in path.parents if not folder.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise RecordError(f"--storage {self.store.url} is not a directory; choose another path") from None
        lock = FileLock(path, fallback_to_soft=False)
        try:
            lock.acquire(blocking=False)
            self._file_lock = lock
        except Timeout:
            raise self._refusal(Lease.newest(self.store)) from None
        except OSError as error:
            if error.errno not in NO_FILE_LOCKS:  # without them the lease alone decides
                raise

    def _unlock_folder(self) -> None:
        if self._file_lock is not None:
            self._file_lock.release()

    def _claim(self) -> Lease:
        while True:
            before = Lease.newest(self.store)
            if before is not None and before.is_in_use(self.store, self._say):
                raise self._refusal(before)
            mine = Lease.of_this_process(1 if before is None else before.number + 1, self.token)
            with suppress(FileExistsError):  # which also follows a write that succeeded but whose answer was lost
                self.store.create_file(mine.name, mine.to_json())
            unchanged = before is None or Lease.read(self.store, before.number) == before
            if unchanged and Lease.newest(self.store) == mine:
                self.predecessor = before
                return mine
            if Lease.read(self.store, mine.number) == mine:  # others have come and gone since this run looked
                self.store.remove(mine.name)

    def _release(self) -> None:
        for number in Lease.numbers(self.store):
            if number == self._lease.number or (number < self._lease.number and self.resumed):
                self.store.remove(Lease(number).name)
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
                self._lease = replace(self._lease, heartbeat=time.time())
                self.store.write_file(self._lease.name, self._lease.to_json())

    def _refusal(self, owner: Lease | None) -> RecordError:
        user = "another `run`" if owner is None else f"another `run` ({owner.describe()})"
        url = redact_url(self.store.url)
        return RecordError(f"{url} is in use by {user}: wait for its end, or choose another --storage")
