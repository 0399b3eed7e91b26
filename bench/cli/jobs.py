"""`status`, `logs` and `stop`: jobs that were submitted, from any machine. Torch is not needed."""

from __future__ import annotations

import argparse
import re
import time
from typing import TYPE_CHECKING, Any

from bench.cli.arguments import add_address, add_command, add_json
from bench.exceptions import ConfigError
from bench.utils.text import format_duration, single_line

if TYPE_CHECKING:
    from bench.cli.arguments import Subparsers
    from bench.jobs.client import Cluster, Job

PROGRESS_LINE = re.compile(r"^\d+/\d+ done, .*")
INTERRUPTED = 130
STATES = {"PENDING": "waits", "RUNNING": "runs", "SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "stopped"}
MAX_STOP_SECONDS, POLL_SECONDS = 90.0, 0.5


def add_parser(subparsers: Subparsers) -> None:
    """Add the commands to the command line."""
    text = "list the benchmarks on a cluster, or show one; exits as its `run` did"
    status = add_command(subparsers, "status", _status, text)
    logs = add_command(subparsers, "logs", _logs, "show what a benchmark's job has printed")
    text = "stop a benchmark's job; finished trials are kept, and the same `submit` continues"
    stop = add_command(subparsers, "stop", _stop, text)
    for parser in (status, logs):
        parser.add_argument("job", nargs="?", help="its name, or its benchmark's (default: the newest)")
    add_json(status)
    stop.add_argument("job", help="its name, or its benchmark's")  # the newest may be another user's
    for parser in (status, logs, stop):
        add_address(parser)
    logs.add_argument("-f", "--follow", action="store_true", help="until it ends; exits as its `run` did")


def _status(options: argparse.Namespace) -> int:
    """Print all jobs, or one with the end of its output, and return that job's exit code."""
    from bench.cli.console import console, print_json
    from bench.jobs.client import Cluster

    cluster = Cluster.connect(options.address)
    if options.json:
        jobs = cluster.list_jobs() if options.job is None else [_select_job(cluster, options.job)]
        print_json({"address": cluster.address, "jobs": [_to_json(cluster, job) for job in jobs]})
        return 0 if options.job is None else jobs[0].run_code
    if options.job is None:
        _print_jobs(cluster)
        return 0
    job = _select_job(cluster, options.job)
    submitted, duration = _times(job)
    console.print(f"{job.name}: {job.status}, {_state(job)}; submitted {submitted} UTC, {duration}")
    for label, key in (("storage", "storage"), ("MLflow", "tracking-uri"), ("version", "version")):
        if key in job.metadata:
            console.print(f"{label:9} {job.metadata[key]}")
    if job.active:
        console.print(f"progress  {_last_progress(cluster, job)}")
    else:
        for line in [line for line in _read_lines(cluster, job) if line.strip()][-5:]:
            console.print(f"  {line}")
    return job.run_code


def _to_json(cluster: Cluster, job: Job) -> dict[str, Any]:
    """Return what ``--json`` prints of a job; docs/api.md lists the keys."""
    return {
        "job": job.name,
        "benchmark": job.metadata["benchmark"],
        "status": job.status,
        "exit_status": None if job.active else job.run_code,
        "started": job.started,
        "ended": job.ended,
        "storage": job.metadata.get("storage"),
        "tracking_uri": job.metadata.get("tracking-uri"),
        "version": job.metadata.get("version"),
        "progress": _last_progress(cluster, job) if job.active else None,
    }


def _print_jobs(cluster: Cluster) -> None:
    """Print a table of all jobs, and the progress of the active ones."""
    from bench.cli.console import console

    jobs = cluster.list_jobs()
    if not jobs:
        console.print(f"no benchmark was submitted to {cluster.address}")
        return
    rows = [("job", "state", "submitted (UTC)", "took"), *((job.name, _state(job), *_times(job)) for job in jobs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:  # not a table of `rich`, which shortens names that one needs to copy
        console.print("  ".join(map(str.ljust, row, widths)).rstrip())
    for job in jobs:
        if job.active:
            console.print(f"{job.name}: {_last_progress(cluster, job)}")


def _logs(options: argparse.Namespace) -> int:
    """Print a job's output; with --follow until the job ends, and return its exit code."""
    from bench.cli.console import console
    from bench.jobs.client import Cluster

    cluster = Cluster.connect(options.address)
    job = _select_job(cluster, options.job)
    if options.follow:
        return follow_job(cluster, job.name)
    for line in cluster.read_lines(job.name):
        console.print(line)
    return 0


def _stop(options: argparse.Namespace) -> int:
    """Stop a job as Ctrl-C stops `run`: finished trials are kept."""
    from bench.cli.console import console
    from bench.jobs.client import Cluster

    cluster = Cluster.connect(options.address)
    job = _select_job(cluster, options.job, only_active=True)
    if not job.active:
        console.print(f"{job.name} has ended before: {_state(job)}")
        return 0
    cluster.stop(job.name)
    if job.status == "PENDING":
        console.print(f"{job.name} has not started yet, and stops when it does")
        return 0
    deadline = time.monotonic() + MAX_STOP_SECONDS
    while (job := cluster.find_job(job.name)).active:
        if time.monotonic() > deadline:
            raise ConfigError(f"{job.name} was asked to stop and is still {job.status}: see `logs`, or try again")
        time.sleep(POLL_SECONDS)
    console.print(f"{job.name} {_state(job)}: finished trials are kept, the same `submit` continues")
    return 0


def follow_job(cluster: Cluster, name: str) -> int:
    """Print a job's output until it ends; return its exit code, or 130 if this process was interrupted."""
    from bench.cli.console import command, console
    from bench.jobs.log_stream import follow_log

    lines = follow_log(cluster, name, on_outage=lambda message: console.print(f"{message}; trying again"))
    try:
        while True:
            console.print(next(lines))
    except StopIteration as end:
        job: Job = end.value
    except KeyboardInterrupt:
        console.print(f"{name} keeps running: `{command()} stop {name}{cluster.option}` stops it")
        return INTERRUPTED
    console.print(_describe_end(job))
    return job.run_code


def _describe_end(job: Job) -> str:
    """Describe how a job ended: it may have printed nothing itself."""
    if job.status != "FAILED" or job.exit_code is not None:
        return f"{job.name}: {_state(job)}"
    lines = [line for line in job.message.strip().splitlines() if line.strip()] or ["no reason is known"]
    return f"{job.name} did not start or was killed: {single_line(lines[-1], 300)}"


def _state(job: Job) -> str:
    """Describe a job's status in a few words."""
    if job.status == "FAILED" and job.exit_code == 1:
        return "ended, some trials failed"
    if job.status == "FAILED" and job.exit_code is not None:
        return f"failed, exit code {job.exit_code}"
    return STATES.get(job.status, job.status)


def _select_job(cluster: Cluster, name: str | None, only_active: bool = False) -> Job:
    """Find a job by its name or its benchmark's, or the newest; active jobs come before others.

    Raises:
        ConfigError: no job matches; or, with ``only_active``, several active ones.
    """
    jobs = cluster.list_jobs()
    matches = [job for job in jobs if name in (None, job.name, job.metadata["benchmark"])]
    active = [job for job in matches if job.active]
    if not matches:
        known = ", ".join(job.name for job in jobs[:5]) or "none"
        raise ConfigError(f"no job{f' {name}' if name else ''} at {cluster.address}: expected one of {known}")
    if only_active and len(active) > 1:
        raise ConfigError(f"several jobs match ({', '.join(job.name for job in active[:5])}): give one of these names")
    return (active or matches)[0]


def _times(job: Job) -> tuple[str, str]:
    """Return the time of a job's submission, and its duration so far."""
    from datetime import UTC, datetime

    if job.started is None:
        return "-", "-"
    submitted = datetime.fromtimestamp(job.started, UTC).strftime("%Y-%m-%d %H:%M")
    return submitted, format_duration(max((job.ended or time.time()) - job.started, 0))


def _last_progress(cluster: Cluster, job: Job) -> str:
    """Return the last progress line that `run` printed."""
    lines = [line for line in _read_lines(cluster, job) if PROGRESS_LINE.match(line)]
    return lines[-1] if lines else "no trial has started"


def _read_lines(cluster: Cluster, job: Job) -> list[str]:
    """Return a job's output, or a message if it was lost with its node."""
    try:
        return cluster.read_lines(job.name)
    except ConfigError as error:
        return [f"(its log cannot be read: {error})"]
