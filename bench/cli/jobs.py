"""`status`, `logs` and `stop`: jobs that were submitted, from any machine. Nothing here needs torch."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.cli.console import command, console
from bench.exceptions import ConfigError
from bench.jobs.client import Cluster, Job
from bench.jobs.log_stream import follow
from bench.utils.text import format_duration, single_line

__all__ = ["logs", "show", "status", "stop"]


PROGRESS = re.compile(r"^\d+/\d+ done, .*")
LEFT = 130
STATES = {"PENDING": "waits", "RUNNING": "runs", "SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "stopped"}
WAITING, POLL = 90.0, 0.5
WIDE = 200


def show(cluster: Cluster, name: str) -> int:
    """Prints what a job prints until it ends; its exit code, or 130 where this process was interrupted."""
    lines = follow(cluster, name, lost=lambda words: console.print(f"{words}; trying again"))
    try:
        while True:
            console.print(next(lines))
    except StopIteration as end:
        job: Job = end.value
    except KeyboardInterrupt:
        console.print(f"left {name}, which goes on: `{command()} stop {name}{cluster.option}` stops it")
        return LEFT
    _say_end(job)
    return job.code


def _say_end(job: Job) -> None:
    """How a job ended, where its own words may be missing."""
    if job.status == "FAILED" and job.exit_code is None:
        lines = [line for line in job.message.strip().splitlines() if line.strip()] or ["no reason is known"]
        console.print(f"{job.name} did not start or was killed: {single_line(lines[-1], 300)}")
    else:
        console.print(f"{job.name}: {_state(job)}")


def _state(job: Job) -> str:
    """A job's state, in a word or a few."""
    if job.status == "FAILED" and job.exit_code == 1:
        return "ended, some trials failed"
    if job.status == "FAILED" and job.exit_code is not None:
        return f"failed, exit code {job.exit_code}"
    return STATES.get(job.status, job.status)


def status(name: str | None, address: str | None) -> int:
    """Tells of all jobs of ours on a cluster, or of one: then with its last words, and with its exit code."""
    cluster = Cluster.connect(address)
    if name is None:
        jobs = cluster.jobs()
        if not jobs:
            console.print(f"no benchmark was submitted to {cluster.address}")
            return 0
        table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for heading in ("job", "state", "submitted (UTC)", "took"):
            table.add_column(heading, no_wrap=True)
        for job in jobs:
            table.add_row(job.name, _state(job), *_times(job))
        console.width = WIDE  # whatever the terminal has: a name that was cut could not be copied
        console.print(table)
        for job in jobs:
            if job.alive:
                console.print(f"{job.name}: {_progress(cluster, job) or 'no trial has started'}")
        return 0
    job = _named(cluster, name)
    since, took = _times(job)
    console.print(f"{job.name}: {job.status}, {_state(job)}; submitted {since} UTC, {took}")
    for what, where in (("storage", "storage"), ("MLflow", "tracking-uri"), ("version", "version")):
        if where in job.facts:
            console.print(f"{what:9} {job.facts[where]}")
    if job.alive:
        console.print(f"progress  {_progress(cluster, job) or 'no trial has started'}")
    else:
        for line in [line for line in _lines(cluster, job) if line.strip()][-5:]:
            console.print(f"  {line}")
    return job.code


def logs(name: str | None, address: str | None, to_its_end: bool) -> int:
    """Prints what a job has printed; with ``to_its_end`` until it ends, and returns its exit code then."""
    cluster = Cluster.connect(address)
    job = _named(cluster, name)
    if to_its_end:
        return show(cluster, job.name)
    for line in cluster.lines(job.name):
        console.print(line)
    return 0


def stop(name: str, address: str | None) -> int:
    """Stops a job as Ctrl-C stops `run`: finished trials are kept, and the same `submit` continues."""
    cluster = Cluster.connect(address)
    job = _named(cluster, name, alone=True)
    if not job.alive:
        console.print(f"{job.name} has ended before: {_state(job)}")
        return 0
    cluster.stop(job.name)
    if job.status == "PENDING":
        console.print(f"{job.name} waits to start, and stops then")
        return 0
    until = time.monotonic() + WAITING
    while (job := cluster.job(job.name)).alive:
        if time.monotonic() > until:
            raise ConfigError(f"{job.name} was asked to stop and is still {job.status}: see `logs`, or ask again")
        time.sleep(POLL)
    console.print(f"{job.name} {_state(job)}: what it has is kept, the same `submit` continues")
    return 0


def _named(cluster: Cluster, name: str | None, alone: bool = False) -> Job:
    """A job by its name, or the newest of a benchmark; without a name the newest there is, one at work before others.

    With ``alone`` it must be clear which: no other job that fits is at work.
    """
    jobs = cluster.jobs()
    fitting = [job for job in jobs if name in (None, job.name, job.facts["benchmark"])]
    working = [job for job in fitting if job.alive]
    if not fitting:
        there = ", ".join(job.name for job in jobs[:5]) or "none"
        raise ConfigError(
            f"no job {name or ''} at {cluster.address}: expected one of {there}".replace("job  at", "job at")
        )
    if alone and len(working) > 1:
        raise ConfigError(f"several jobs fit ({', '.join(job.name for job in working[:5])}): name one")
    return (working or fitting)[0]


def _times(job: Job) -> tuple[str, str]:
    """When a job was submitted, and how long it took or has been taking."""
    if job.started is None:
        return "-", "-"
    since = datetime.fromtimestamp(job.started, UTC).strftime("%Y-%m-%d %H:%M")
    return since, format_duration(max((job.ended or time.time()) - job.started, 0))


def _progress(cluster: Cluster, job: Job) -> str:
    """The last that `run` said of how far it is."""
    found = [line for line in _lines(cluster, job) if PROGRESS.match(line)]
    return found[-1] if found else ""


def _lines(cluster: Cluster, job: Job) -> list[str]:
    """What a job has printed; that its log is gone where that is with its node."""
    try:
        return cluster.lines(job.name)
    except ConfigError as error:
        return [f"(its log cannot be read: {error})"]
