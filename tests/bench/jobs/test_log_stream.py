"""What is said of a log that comes in pieces, over connections that break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from bench.exceptions import UnreachableError
from bench.jobs import log_stream as following
from bench.jobs.client import Cluster, Job
from bench.jobs.log_stream import follow

LOG = "".join(f"line {i}\n" for i in range(50)) + "no newline"
WHOLE = LOG.split("\n")


class Head:
    """A cluster's part: its log by connections that end as ``scripts`` say, and a job that runs until the last of them.

    A script is how many characters come, and then what: "breaks", "ends", or "hangs".
    """

    def __init__(self, *scripts: tuple[int, str], size: int = 7, away: int = 0) -> None:
        self.scripts, self.size, self.away, self.client = list(scripts), size, away, self
        self.connections = 0

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        self.connections += 1
        length, then = self.scripts.pop(0)
        for start in range(0, length, self.size):
            yield LOG[start : min(start + self.size, length)]
        if then == "breaks":
            raise RuntimeError("WebSocket connection closed unexpectedly")
        if then == "hangs":
            await asyncio.sleep(1000)

    def job(self, name: str) -> Job:
        if self.away:
            self.away -= 1
            raise UnreachableError("away")
        return Job(name, "RUNNING" if self.scripts else "SUCCEEDED", None, 1.0, None, "", {})

    def log(self, name: str) -> str:
        return LOG


def said(head: Head, lost: Callable[[str], object] = print) -> tuple[list[str], Job]:
    lines, told = follow(cast(Cluster, head), "deelbo-x-1", lost), []
    try:
        while True:
            told.append(next(lines))
    except StopIteration as end:
        return told, end.value


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAUSE", 0.0)
    monkeypatch.setattr(following, "QUIET", 0.2)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_log_is_said_line_by_line(size: int) -> None:
    """However it is cut into pieces; the last line too, which has no end."""
    told, job = said(Head((len(LOG), "ends"), size=size))
    assert told == WHOLE
    assert job.status == "SUCCEEDED"


@pytest.mark.parametrize("first", [0, 3, 8, 100, len(LOG)])
@pytest.mark.parametrize("second", [0, 50, 200])
def test_nothing_is_said_twice_where_connections_break(first: int, second: int) -> None:
    """Each new one brings the log from its start; one may even bring less than the one before."""
    head = Head((first, "breaks"), (second, "breaks"), (len(LOG), "ends"))
    assert said(head)[0] == WHOLE
    assert head.connections == 3


def test_the_end_comes_also_where_no_connection_brings_it() -> None:
    """Where streams are blocked on the way the log is fetched when the job has ended."""
    assert said(Head((0, "breaks")))[0] == WHOLE


def test_a_connection_that_died_in_silence_is_found_out() -> None:
    """The job is asked after, and the rest of the log is fetched."""
    assert said(Head((100, "hangs")))[0] == WHOLE


def test_a_cluster_that_is_away_is_told_of_once() -> None:
    """And asked again until it is there."""
    lost: list[str] = []
    scripts = [(100, "breaks"), (0, "breaks"), (0, "breaks"), (len(LOG), "ends")]
    assert said(Head(*scripts, away=3), lost.append)[0] == WHOLE
    assert lost == ["away"]


def test_a_cluster_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten minutes, here at once."""
    monkeypatch.setattr(following, "PATIENCE", 0.0)
    with pytest.raises(UnreachableError):
        said(Head((100, "breaks"), (0, "breaks"), (0, "breaks"), away=3))


def test_rays_own_lines_are_left_out() -> None:
    """They say how the job was started, not what it does."""

    class Noisy(Head):
        async def tail_job_logs(self, name: str) -> AsyncIterator[Any]:
            self.scripts.clear()
            yield "2026-11-22 INFO job_manager.py:581 -- Runtime env is setting up.\nRunning entrypoint for job deelbo"
            yield "-x-1: exec sh entrypoint.sh\nhello\n"

        def log(self, name: str) -> str:
            raise UnreachableError("gone with its node")

    assert said(Noisy((0, "ends")))[0] == ["hello"]
