"""A `run` as a process of its own: started, watched, hit by signals, and what it leaves behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240.0
"""Seconds after which something that should have happened counts as missing; a shared machine may be slow."""
GONE = 10.0
"""Seconds in which all that a killed driver started must be gone."""
CHILD = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "COLUMNS": "200"}
CHILD |= {"MLFLOW_LOGGING_LEVEL": "CRITICAL"}  # as it is where nobody set it; a test's own is not the run's
IDLE_TITLES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE")
IDLE_SCRIPTS = ("ray/dashboard/agent.py", "runtime_env/agent/main.py", "workers/default_worker.py")
"""Ray's processes that have no trial: its two agents, and workers that start or wait for their first trial.

If the driver dies, a worker that is just starting tries to connect to the dead raylet for 30 s, and the agents try
for a minute to report to the dead GCS.
"""
Born = Mapping[int, str]
"""Processes by number, each with its time of birth: numbers come again."""


def until(what: Callable[[], Any], words: str = "it holds", seconds: float = PATIENCE, pause: float = 0.05) -> Any:
    """Wait until it returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {words}"
        time.sleep(pause)
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; none where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def descendants(pid: int) -> dict[int, str]:
    """All that a process started, and what those started."""
    children: dict[int, list[tuple[int, str]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            children.setdefault(int(fields[1]), []).append((int(name), fields[19]))
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child, born in children.get(waiting.pop(), []):
            found[child] = born
            waiting.append(child)
    return found


def alive(processes: Born) -> list[int]:
    """Those that are still there, and are more than an entry that nobody has read."""
    return [pid for pid, born in processes.items() if (now := _stat(pid)) and now[19] == born and now[0] not in "ZX"]


def in_training(root: int) -> list[int]:
    """Processes below ``root`` that are inside a trial: Ray writes what a worker does over its command line."""
    return [pid for pid in descendants(root) if _command(pid).startswith(b"ray::ResourceTrainable.train")]


def is_idle(pid: int) -> bool:
    """Return whether a process is one of Ray's that have no trial, see `IDLE_SCRIPTS`."""
    title, *arguments = _command(pid).decode(errors="replace").split("\0")
    return title.startswith(IDLE_TITLES) or any(argument.endswith(IDLE_SCRIPTS) for argument in arguments[:3])


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Process:
    """A command in a process group of its own, which is gone when the block ends."""

    def __init__(self, command: list[str], folder: Path, name: str) -> None:
        self.idle: Born = {}
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.since = time.monotonic()
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=folder,
                env=os.environ | CHILD,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        return self.out.read_text(errors="replace")

    @property
    def complained(self) -> str:
        return self.err.read_text(errors="replace")

    def runs(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> float:
        """SIGKILL to this process alone; seconds until all that it started was gone too, but for `idle` ones."""
        if not self.runs():
            return 0.0
        started = descendants(self.pid)
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()
        since = time.monotonic()
        while left := [pid for pid in alive(started) if not is_idle(pid)]:
            if time.monotonic() - since > GONE:
                names = ", ".join(_command(pid).rstrip(b"\0 ").decode(errors="replace")[:200] for pid in left)
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"{len(left)} processes outlived their driver by {GONE:.0f} s: {names}")
            time.sleep(0.05)
        self.idle = {pid: started[pid] for pid in alive(started)}
        return time.monotonic() - since

    def end(self, seconds: float = PATIENCE) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {seconds:.0f} s: {self.tail()}") from None

    def tail(self) -> str:
        return f"{self.said[-600:]}\n{self.complained[-900:]}"


class Run(Process):
    """`deelbo-bench run`."""

    def __init__(self, config: Path, storage: Path, name: str, *more: str) -> None:
        super().__init__(
            ["bench", "run", str(config), "--storage", str(storage), *more], config.parent, f"{storage.name}-{name}"
        )
        self.storage = storage

    def records(self) -> set[str]:
        return {path.name for path in (self.storage / "records").glob("*.json")}

    def until(self, what: Callable[[], Any], words: str) -> Any:
        """As `until`; a run that ends meanwhile is a failure."""

        def look() -> Any:
            found = what()
            assert found or self.runs(), f"ended with {self.process.returncode} before this: {words}\n{self.tail()}"
            return found

        return until(look, words)

    def until_training(self) -> None:
        """Until a trial of this call is running."""
        self.until(lambda: in_training(self.pid), "a trial runs")

    def until_recorded(self, count: int) -> None:
        """Until there are so many records in all."""
        self.until(lambda: len(self.records()) >= count, f"{count} records")

    def ends_well(self) -> None:
        """Waits for exit code 0."""
        self.stops(0)

    def stops(self, code: int) -> None:
        """Waits for an end with that code, and without a traceback."""
        assert self.end() == code, f"ended with {self.process.returncode}, expected {code}: {self.tail()}"
        assert "Traceback" not in self.said + self.complained, self.tail()

    def lines(self) -> Iterator[str]:
        return filter(None, map(str.strip, self.complained.splitlines()))
