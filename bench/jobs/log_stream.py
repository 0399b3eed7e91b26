"""Follow the log of a job, line by line, across broken connections."""

import asyncio
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress

from bench.exceptions import ConfigError, UnreachableError
from bench.jobs.client import Cluster, Job, without_ray_lines

MAX_SILENCE_SECONDS = 30.0
"""Time without output after which a new connection is opened: one may break without an error."""
RETRY_SECONDS = 5.0
MAX_OUTAGE_SECONDS = 600.0


def follow_log(cluster: Cluster, name: str, on_outage: Callable[[str], object]) -> Generator[str, None, Job]:
    """Yield the lines that a job prints until it ends.

    After a broken connection, a new one sends the log from its start; the lines that were already yielded are skipped.

    Args:
        cluster: the cluster of the job.
        name: the job's name.
        on_outage: called with a message when the cluster stops answering.

    Returns:
        The job after its end.

    Raises:
        UnreachableError: the cluster did not answer for ten minutes.
    """
    num_yielded = 0
    outage_start: float | None = None
    while True:
        try:
            for i, line in enumerate(_read_lines(cluster, name)):
                outage_start = None
                if i == num_yielded:
                    num_yielded += 1
                    yield line
            job = cluster.find_job(name)
            if not job.active:
                with suppress(ConfigError):  # the log was lost with its node
                    yield from cluster.read_lines(name)[num_yielded:]
                return job
            outage_start = None
        except UnreachableError as error:
            if outage_start is None:
                outage_start = time.monotonic()
                on_outage(str(error))
            elif time.monotonic() - outage_start > MAX_OUTAGE_SECONDS:
                raise
        time.sleep(RETRY_SECONDS)


def _read_lines(cluster: Cluster, name: str) -> Iterator[str]:
    """Yield the complete lines of a job's output, until the job ends, or the connection breaks or is silent."""
    chunks = cluster.client.tail_job_logs(name)
    partial_line = ""
    with asyncio.Runner() as runner:
        while True:
            try:
                chunk = runner.run(asyncio.wait_for(anext(chunks), MAX_SILENCE_SECONDS))
            except Exception:  # also aiohttp's and Ray's own errors; the caller then reads the job's status
                return
            lines, line_break, partial_line = (partial_line + chunk).rpartition("\n")
            yield from without_ray_lines(lines + line_break)
