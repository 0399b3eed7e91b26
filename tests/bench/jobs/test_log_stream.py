"""Logs that come in chunks, over connections that break."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from bench.exceptions import UnreachableError
from bench.jobs import log_stream
from bench.jobs.client import Cluster, Job
from bench.jobs.log_stream import follow_log

LOG = "".join(f"line {i}\n" for i in range(50)) + "\n\nno newline"
LINES = LOG.split("\n")


class FakeCluster:
    """A cluster whose log comes over scripted connections, and whose job runs until the last of them.

    A script is the number of characters that come, and then "breaks", "ends" or "hangs". ``outages`` is the number of
    requests that fail.
    """

    def __init__(self, *scripts: tuple[int, str], size: int = 7, outages: int = 0) -> None:
        self.scripts, self.size, self.outages, self.client = list(scripts), size, outages, self
        self.connections = 0

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        self.connections += 1
        length, end = self.scripts.pop(0)
        for start in range(0, length, self.size):
            yield LOG[start : min(start + self.size, length)]
        if end == "breaks":
            raise RuntimeError("WebSocket connection closed unexpectedly")
        if end == "hangs":
            await asyncio.sleep(1000)

    def find_job(self, name: str) -> Job:
        if self.outages:
            self.outages -= 1
            raise UnreachableError("away")
        return Job(name, "RUNNING" if self.scripts else "SUCCEEDED", None, 1.0, None, "", {})

    def read_lines(self, name: str) -> list[str]:
        return LINES


def follow(cluster: FakeCluster, on_outage: Callable[[str], object] = print) -> tuple[list[str], Job]:
    """Return the lines that are followed, and the job at its end."""
    generator, lines = follow_log(cast(Cluster, cluster), "deelbo-x-1", on_outage), []
    try:
        while True:
            lines.append(next(generator))
    except StopIteration as end:
        return lines, end.value


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stream, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(log_stream, "MAX_SILENCE_SECONDS", 0.2)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunks_become_lines(size: int) -> None:
    """Chunks of any size give the same lines, including a last line without a line break."""
    lines, job = follow(FakeCluster((len(LOG), "ends"), size=size))
    assert lines == LINES
    assert job.status == "SUCCEEDED"


@pytest.mark.parametrize("first", [0, 3, 8, 100, len(LOG)])
@pytest.mark.parametrize("second", [0, 50, 200])
def test_no_line_is_repeated_after_a_broken_connection(first: int, second: int) -> None:
    """Each connection sends the log from its start, and may send less than the one before."""
    cluster = FakeCluster((first, "breaks"), (second, "breaks"), (len(LOG), "ends"))
    assert follow(cluster)[0] == LINES
    assert cluster.connections == 3


@pytest.mark.parametrize("script", [(0, "breaks"), (100, "hangs")])
def test_rest_of_the_log_is_fetched_after_the_end(script: tuple[int, str]) -> None:
    """If a gateway blocks streams, or a connection dies silently, the log is read when the job has ended."""
    assert follow(FakeCluster(script))[0] == LINES


def test_outage_is_reported_once() -> None:
    """During an outage the cluster is asked again until it answers, with one message."""
    messages: list[str] = []
    scripts = [(100, "breaks"), (0, "breaks"), (0, "breaks"), (len(LOG), "ends")]
    assert follow(FakeCluster(*scripts, outages=3), messages.append)[0] == LINES
    assert messages == ["away"]


def test_long_outage_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the longest outage allowed, here none, the error is raised."""
    monkeypatch.setattr(log_stream, "MAX_OUTAGE_SECONDS", 0.0)
    with pytest.raises(UnreachableError):
        follow(FakeCluster((100, "breaks"), (0, "breaks"), (0, "breaks"), outages=3))


def test_lines_of_ray_are_removed() -> None:
    """Ray's lines about the start of the job are not part of its output; a lost log is no error."""

    class RayLines(FakeCluster):
        async def tail_job_logs(self, name: str) -> AsyncIterator[Any]:
            self.scripts.clear()
            yield "2026-11-22 INFO job_manager.py:581 -- Runtime env is setting up.\nRunning entrypoint for job deelbo"
            yield "-x-1: exec sh entrypoint.sh\nhello\n"

        def read_lines(self, name: str) -> list[str]:
            raise UnreachableError("gone with its node")

    assert follow(RayLines((0, "ends")))[0] == ["hello"]
