"""The lease of a storage: a file that names the `run` that uses it, rewritten every ten seconds."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from bench.storage.records import RecordStore
from bench.utils.text import single_line

__all__ = ["Lease"]


STALE_SECONDS = 120.0
POLL_SECONDS = 2.0
Timestamp = Annotated[float, Field(ge=0, lt=1e11)]


@dataclass(frozen=True)
class Lease:
    """A `run` that uses, or used, a storage; of an unreadable file the number alone.

    Attributes:
        host: its machine's name, for messages.
        machine, pid, started: its process: booted kernel and namespace of processes, number, and start in clock ticks.
        token: identifies its invocation; workers that find it share the driver's storage.
        since, heartbeat: when it claimed the storage and last rewrote this file, by its own clock, seconds since 1970.
    """

    number: int
    host: str = "an unknown host"
    machine: str = ""
    pid: int = 0
    started: str = ""
    token: str = ""
    since: Timestamp = 0.0
    heartbeat: Timestamp = 0.0

    @classmethod
    def of_this_process(cls, number: int, token: str) -> Lease:
        """Return a new lease of this process."""
        pid, now = os.getpid(), time.time()
        return cls(number, platform.node(), _machine(), pid, _start_time(pid), token, now, now)

    @classmethod
    def read(cls, store: RecordStore, number: int) -> Lease | None:
        """Return the lease of a number; None if there is none."""
        content = store.read_file(f"lease-{number}.json")
        try:
            return None if content is None else replace(_ADAPTER.validate_json(content, strict=True), number=number)
        except ValidationError:
            return cls(number)

    @classmethod
    def newest(cls, store: RecordStore) -> Lease | None:
        """Return the lease that counts; None if there is none."""
        numbers = cls.numbers(store)
        return cls.read(store, max(numbers)) if numbers else None

    @staticmethod
    def numbers(store: RecordStore) -> list[int]:
        """Return the numbers of all leases, in no order."""
        matches = [re.fullmatch(r"lease-(\d{1,9})\.json", name) for name in store.names()]
        return [int(match[1]) for match in matches if match]

    @property
    def name(self) -> str:
        return f"lease-{self.number}.json"

    def to_json(self) -> bytes:
        return _ADAPTER.dump_json(self)

    def describe(self) -> str:
        """Return process, host, start and last heartbeat, for messages."""
        since, last = (f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d %H:%M:%S} UTC" for t in (self.since, self.heartbeat))
        return f"process {self.pid} on {single_line(self.host, 100)}, since {since}, last heartbeat {last}"

    def is_in_use(self, store: RecordStore, say: Callable[[str], object]) -> bool:
        """Return True if its owner is at work.

        A process of this machine is looked up. Another machine's is at work if its lease changes within two minutes of
        this process's own monotonic clock: the clocks of two machines are never compared.
        """
        if self.machine and self.machine == _machine():
            return self.started == _start_time(self.pid)
        say(f"waiting up to {STALE_SECONDS:.0f} s to see whether a `run` ({self.describe()}) is still at work")
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            if (now := Lease.read(store, self.number)) != self:
                return now is not None
        return False


_ADAPTER = TypeAdapter(Lease)


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
