"""What a job prints, as it prints it, over connections that break."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

from bench.exceptions import ConfigError, UnreachableError
from bench.jobs.client import Cluster, Job, without_noise

__all__ = ["follow"]


QUIET = 30.0
"""Seconds without a word after which the cluster is asked whether the job still runs: connections break in silence."""
PAUSE = 5.0
PATIENCE = 600.0
"""Seconds without the cluster after which a follower gives up."""


def follow(cluster: Cluster, name: str, lost: Callable[[str], object]) -> Generator[str, None, Job]:
    """What a job prints, line by line, until it ends; the job as it ended is what the generator returns.

    One connection brings the log piece by piece. Where it breaks another is made, which brings all from the start, and
    what was said is left out; ``lost`` is told where the cluster cannot be reached for a while.

    Raises:
        UnreachableError: the cluster was away for ten minutes.
    """
    log = _Log()
    away_since: float | None = None
    while True:
        try:
            for piece in _pieces(cluster, name):
                away_since = None
                yield from log.add(piece)
            job = cluster.job(name)
            if not job.alive:
                yield from log.rest(_whole(cluster, name))
                return job
            away_since = None
        except UnreachableError as error:
            if away_since is None:
                away_since = time.monotonic()
                lost(str(error))
            elif time.monotonic() - away_since > PATIENCE:
                raise
        log.again()
        time.sleep(PAUSE)


class _Log:
    """A log that comes in pieces, several times from its start; what of it is new, line by line."""

    def __init__(self) -> None:
        self._seen = self._said = 0
        self._line = ""

    def add(self, piece: str) -> Iterator[str]:
        """The lines that are whole with this piece."""
        fresh = piece[max(self._said - self._seen, 0) :]
        self._seen += len(piece)
        self._said = max(self._said, self._seen)
        *lines, self._line = (self._line + fresh).split("\n")
        yield from without_noise("\n".join(lines)) if lines else ()

    def again(self) -> None:
        """The next piece is the first."""
        self._seen = 0

    def rest(self, whole: str) -> Iterator[str]:
        """What is left of the whole log, its last line included."""
        self.again()
        yield from self.add(whole)
        yield from without_noise(self._line)


def _whole(cluster: Cluster, name: str) -> str:
    """The log of a job that has ended; nothing where it is gone with its node."""
    try:
        return cluster.log(name)
    except ConfigError:
        return ""


def _pieces(cluster: Cluster, name: str) -> Iterator[str]:
    """What a job prints, by one connection, until it ends or the connection breaks."""
    with closing(_Tail(cluster.client, name)) as tail:
        while True:
            try:
                piece = tail.piece(QUIET)
            except Exception:  # aiohttp's and Ray's own: whether the cluster is there is asked next
                return
            if piece is None or (not piece and not cluster.job(name).alive):
                return
            yield piece


class _Tail:
    """Ray's stream of a job's log, read without an event loop of the caller's."""

    def __init__(self, client: Any, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._pieces = client.tail_job_logs(name)
        self._task: asyncio.Task[str] | None = None

    def piece(self, seconds: float) -> str | None:
        """The next piece; nothing where none comes in time; None at the end."""
        if self._task is None:
            self._task = self._loop.create_task(self._next())
        done, _ = self._loop.run_until_complete(asyncio.wait({self._task}, timeout=seconds))
        if not done:
            return ""
        task, self._task = self._task, None
        try:
            return task.result()
        except StopAsyncIteration:
            return None

    async def _next(self) -> str:
        piece: str = await anext(self._pieces)
        return piece

    def close(self) -> None:
        """Ends the connection."""
        if self._task is not None:
            self._task.cancel()
            self._loop.run_until_complete(asyncio.wait({self._task}))
        self._loop.run_until_complete(self._pieces.aclose())
        self._loop.close()
