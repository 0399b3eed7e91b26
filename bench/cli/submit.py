"""`submit`: a benchmark as a job of a Ray cluster, from a machine that may go away."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.cli.console import command, console
from bench.cli.jobs import show
from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import flatten_settings, load_benchmark
from bench.config.places import check_places
from bench.config.selection import filter_methods
from bench.config.validation import check
from bench.exceptions import ConfigError
from bench.jobs.client import PREFIX, Cluster, Job
from bench.jobs.package import CONFIG, facts, pack, requirement, variables
from bench.utils.text import short_repr

__all__ = ["Asked", "submit"]


OPTIONS = ("only", "env", "from-source", "install", "tracking-uri")


@dataclass(frozen=True)
class Asked:
    """What `submit` was asked for beside the benchmark and the cluster.

    Attributes:
        storage, tracking, only: as of `run`; the storage is on the cluster.
        env: names of variables that go along.
        from_source: takes the code of this checkout along.
        install: what pip is to install on the nodes; "" for this version of deelbo; None for nothing.
        detach: does not follow the job.
        unchecked: does without `doctor`.
    """

    storage: str | None
    tracking: str | None
    only: str | None = None
    env: Sequence[str] = ()
    from_source: bool = False
    install: str | None = None
    detach: bool = False
    unchecked: bool = False

    def told(self, code: str) -> dict[str, str | None]:
        """What of it tells a job from another of the same benchmark, by the options' names; ``code``: a hash of the
        packed source."""
        return {
            "only": self.only,
            "env": ",".join(sorted(self.env)),
            "from-source": code,
            "install": requirement(self.install, self.storage)["pip"][0] if self.install is not None else None,
        }


def submit(config: str, address: str | None, overrides: Sequence[str], asked: Asked) -> int:
    """Runs a benchmark as a job, or takes up the one that runs; follows it to its end, and returns its exit code.

    Raises:
        ConfigError: bad input, a cluster that does not fit, or a storage on which another benchmark's job is at work.
    """
    benchmark = load_benchmark(config, overrides)
    storage = check_places(asked.storage, asked.tracking)
    variables(asked.tracking, asked.env)
    check(benchmark)
    filter_methods(make_methods(benchmark), asked.only)
    cluster = Cluster.connect(address)
    with TemporaryDirectory(prefix="deelbo-job-") as folder:
        told = facts(benchmark, storage, asked.tracking, **asked.told(pack(Path(folder), benchmark, asked.from_source)))
        if (there := _at_work(cluster, storage)) is None:
            if not asked.unchecked:
                _check(address, benchmark, storage, asked)
            if (name := _start(cluster, Path(folder), benchmark, storage, asked, told)) is not None:
                console.print(f"{name} is submitted to {cluster.address}")
                return _rest(cluster, name, asked.detach)
            if (there := _at_work(cluster, storage)) is None:  # somebody was faster, and that has ended already
                raise ConfigError("another `submit` of this benchmark came first, and its job has ended: see `status`")
    return _taken_up(cluster, there, told, asked.detach)


def _check(address: str | None, benchmark: Benchmark, storage: str, asked: Asked) -> None:
    """Raises ConfigError where `doctor` finds that the benchmark cannot run there."""
    from bench.cli.doctor import refuse
    from bench.doctor.examine import examine

    console.print("looking at the cluster's nodes, the storage and MLflow")
    code = (asked.from_source, asked.install is not None)
    _, findings = examine(address, benchmark, storage, asked.tracking, asked.env, *code)
    refuse(findings)


def _start(
    cluster: Cluster, folder: Path, benchmark: Benchmark, storage: str, asked: Asked, told: Mapping[str, str]
) -> str | None:
    """The new job's name; None where another `submit` has just taken it."""
    line = ["-m", "bench", "run", CONFIG, "--storage", storage, "--address", "auto"]
    line += ["--only", asked.only] if asked.only else []
    runtime = {"env_vars": variables(asked.tracking, asked.env)} | requirement(asked.install, asked.storage)
    if _at_work(cluster, storage) is not None:
        return None
    stem, known = _stem(benchmark.name, storage), {job.name for job in cluster.jobs()}
    name = next(name for name in (f"{stem}-{k}" for k in count(1)) if name not in known)
    return name if cluster.submit(name, line, folder, runtime, told) else None


def _stem(benchmark: str, storage: str) -> str:
    """The name of a benchmark's jobs on a storage, without their number: the same from wherever it is submitted."""
    return f"{PREFIX}{benchmark}-{hashlib.sha256(storage.encode()).hexdigest()[:8]}"


def _at_work(cluster: Cluster, storage: str) -> Job | None:
    """The job that waits or runs on the storage."""
    return next((job for job in cluster.jobs() if job.alive and job.facts.get("storage") == storage), None)


def _taken_up(cluster: Cluster, job: Job, told: Mapping[str, str], detach: bool) -> int:
    """Goes on with a job that is at work where it is the same benchmark's."""
    before, now = _settings(job.facts), _settings(told)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        words = "; ".join(f"{name} is {_word(before, name)} there, {_word(now, name)} here" for name in changed[:3])
        raise ConfigError(
            f"{job.name} is at work on that storage with other settings ({words}): wait for it, `stop` it, or choose "
            "another --storage"
        )
    console.print(f"{job.name} is at work already: this goes on with it")
    return _rest(cluster, job.name, detach)


def _word(settings: Mapping[str, object], name: str) -> str:
    return short_repr.repr(settings[name]) if name in settings else "not given"


def _settings(of: Mapping[str, str]) -> dict[str, object]:
    """What must be the same for two submits to mean the same job."""
    try:
        content = dict(flatten_settings(json.loads(of.get("config") or "{}")))
    except (ValueError, AttributeError):
        content = {}
    return content | {f"--{name}": of[name] for name in OPTIONS if name in of} | {"version": of.get("version")}


def _rest(cluster: Cluster, name: str, detach: bool) -> int:
    """Follows a job unless it is to be left alone."""
    again = f"{command()} {{}} {name}{cluster.option}"
    if detach:
        for what in ("status", "logs", "stop"):
            console.print(f"  {again.format(what)}")
        return 0
    console.print(f"it goes on without this terminal: `{again.format('status')}`")
    return show(cluster, name)
