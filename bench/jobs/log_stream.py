"""Follow the log of a job, line by line, across broken connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterator

from bench.exceptions import ConfigError, UnreachableError
from bench.jobs.client import Cluster, Job, without_ray_lines

__all__ = ["follow_log"]


MAX_SILENCE_SECONDS = 30.0
"""Time without output after which a new connection is opened: one may break without an error."""
RETRY_SECONDS = 5.0
MAX_OUTAGE_SECONDS = 600.0


def follow_log(cluster: Cluster, name: str, on_outage: Callable[[str], object]) -> Generator[str, None, Job]:
    """Yield the lines that a job prints until it ends.

    The log comes in chunks over one connection. After a broken connection, a new one sends the log from its start;
    what was already yielded is skipped.

    Args:
        cluster: the cluster of the job.
        name: the job's name.
        on_outage: called with a message when the cluster stops answering.

    Returns:
        The job after its end.

    Raises:
        UnreachableError: the cluster did not answer for ten minutes.
    """
    buffer = _LineBuffer()
    outage_start: float | None = None
    while True:
        try:
            for chunk in _read_chunks(cluster, name):
                outage_start = None
                yield from buffer.add(chunk)
            job = cluster.find_job(name)
            if not job.active:
                yield from buffer.finish(_read_log(cluster, name))
                return job
            outage_start = None
        except UnreachableError as error:
            if outage_start is None:
                outage_start = time.monotonic()
                on_outage(str(error))
            elif time.monotonic() - outage_start > MAX_OUTAGE_SECONDS:
                raise
        buffer.restart()
        time.sleep(RETRY_SECONDS)


class _LineBuffer:
    """Split a log that comes in chunks, possibly several times from its start, into lines; each line once."""

    def __init__(self) -> None:
        self._num_received = self._num_processed = 0  # characters: of this connection, and of the log
        self._partial_line = ""

    def add(self, chunk: str) -> Iterator[str]:
        """Yield the lines that this chunk completes."""
        new = chunk[max(self._num_processed - self._num_received, 0) :]
        self._num_received += len(chunk)
        self._num_processed = max(self._num_processed, self._num_received)
        *lines, self._partial_line = (self._partial_line + new).split("\n")
        yield from without_ray_lines("\n".join(lines)) if lines else ()

    def restart(self) -> None:
        """Expect the next chunk to be the log's first."""
        self._num_received = 0

    def finish(self, log: str) -> Iterator[str]:
        """Yield the rest of the complete log, including a last line without a line break."""
        self.restart()
        yield from self.add(log)
        yield from without_ray_lines(self._partial_line)


def _read_log(cluster: Cluster, name: str) -> str:
    """Return the log of a job that has ended; empty if it was lost with its node."""
    try:
        return cluster.read_log(name)
    except ConfigError:
        return ""


def _read_chunks(cluster: Cluster, name: str) -> Iterator[str]:
    """Yield a job's output from one connection, until the job ends, or the connection breaks or is silent."""
    chunks = cluster.client.tail_job_logs(name)
    with asyncio.Runner() as runner:
        while True:
            try:
                chunk = runner.run(asyncio.wait_for(anext(chunks), MAX_SILENCE_SECONDS))
            except Exception:  # also aiohttp's and Ray's own errors; the caller then reads the job's status
                return
            yield chunk
