"""Processes that were started here: told from all others, counted, and ended to the last one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["MARK", "alive", "boot", "born", "end", "family", "name_of"]

MARK = "DEELBO_CLUSTER"
"""Variable in the environment of all that a cluster starts: its value is the cluster's own, and is inherited."""


def _fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; none where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def born(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty where there is none. Numbers of processes come again,
    a number with its birth does not."""
    fields = _fields(pid)
    return fields[19] if fields and fields[0] not in "ZX" else ""


def boot() -> str:
    """Which start of the machine this is: a birth means nothing after the next one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def alive(processes: Mapping[int, str]) -> list[int]:
    """Those that are still there."""
    return [pid for pid, birth in processes.items() if birth and born(pid) == birth]


def name_of(pid: int) -> str:
    """The beginning of a process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:60]
    except OSError:
        return ""


def family(mark: str, roots: Mapping[int, str]) -> dict[int, str]:
    """All processes of a cluster, each with its birth.

    A process belongs to it that carries the mark, is in a session that a root began, or was started by one of these.
    One of the three would not do: Ray writes titles over the environment of some of its processes, and what loses its
    parent is the machine's first process's child.
    """
    table = {int(name): fields for name in os.listdir("/proc") if name.isdigit() and (fields := _fields(int(name)))}
    table = {pid: fields for pid, fields in table.items() if fields[0] not in "ZX"}
    sessions = {
        pid: int(birth) for pid, birth in roots.items() if birth and (pid not in table or table[pid][19] == birth)
    }
    children: dict[int, list[int]] = {}
    found: set[int] = set()
    sign = f"{MARK}={mark}".encode()
    for pid, fields in table.items():
        children.setdefault(int(fields[1]), []).append(pid)
        ours = int(fields[3]) in sessions and int(fields[19]) >= sessions[int(fields[3])]
        if ours or table[pid][19] == roots.get(pid) or _carries(pid, sign):
            found.add(pid)
    waiting = list(found)
    while waiting:
        new = set(children.get(waiting.pop(), [])) - found
        found |= new
        waiting += new
    found -= {os.getpid()}
    return {pid: table[pid][19] for pid in found}


def _carries(pid: int, sign: bytes) -> bool:
    try:
        return sign in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # another user's, or gone
        return False


def end(mark: str, roots: Mapping[int, str], seconds: float = 15.0) -> int:
    """Ends a cluster's processes, politely at first; how many there were.

    Raises:
        OSError: some outlive SIGKILL, as one that waits for a dead disk does.
    """
    gone = dict[int, str]()
    for what in (signal.SIGTERM, signal.SIGKILL):
        told = set[int]()
        limit = time.monotonic() + seconds
        while (left := family(mark, roots)) and time.monotonic() < limit:
            gone |= left
            # who is asked to end takes its own along in order, so the roots are asked first
            first = [pid for pid in left if left[pid] == roots.get(pid)] if what == signal.SIGTERM else []
            now = set(first or left) - told
            told |= now
            _send(what, {pid: left[pid] for pid in now})
            time.sleep(0.1)
    if left:
        raise OSError(f"{len(left)} processes do not end, among them {min(left)} ({name_of(min(left))}): look at them")
    return len(gone)


def _send(what: signal.Signals, processes: Mapping[int, str]) -> None:
    for pid, birth in processes.items():
        if born(pid) == birth:
            with suppress(ProcessLookupError):
                os.kill(pid, what)
