"""`submit`: run a benchmark as a job of a Ray cluster, from a machine that may be switched off."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli.arguments import add_address, add_command, add_config, add_job_arguments, nonempty
from bench.exceptions import ConfigError
from bench.utils.text import short_repr

if TYPE_CHECKING:
    from bench.cli.arguments import Subparsers
    from bench.doctor.cluster_report import DoctorRequest
    from bench.jobs.client import Cluster, Job

IDENTITY_OPTIONS = ("only", "env", "from-source", "install", "tracking-uri")
"""Options that a second `submit` must share with the first to mean the same job."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "submit", _submit, "run a benchmark as a job of a Ray cluster, and follow it")
    add_config(parser)
    add_address(parser)
    parser.add_argument("--storage", type=nonempty, help="URL, or folder that all nodes share, for the records")
    parser.add_argument("--only", metavar="KEY=VALUE,...", help="a subset of it, as for `run`")
    parser.add_argument("--detach", action="store_true", help="do not follow the job")
    parser.add_argument("--unchecked", action="store_true", help="skip the checks of `doctor`")
    add_job_arguments(parser)


def _submit(options: argparse.Namespace) -> int:
    """Submit a benchmark, or continue with the job that runs it already; follow the job and return its exit code.

    Raises:
        ConfigError: bad input, a cluster that fails a check, or a storage that another benchmark's job uses.
    """
    from tempfile import TemporaryDirectory

    from bench.cli.console import console
    from bench.config.benchmark import make_methods
    from bench.config.loading import load_benchmark
    from bench.config.places import check_places, expand_tracking_uri
    from bench.config.plugins import used_plugins
    from bench.config.sections import TextSettings
    from bench.config.selection import filter_methods
    from bench.config.validation import check
    from bench.doctor.cluster_report import DoctorRequest
    from bench.jobs.client import Cluster
    from bench.jobs.http import ADDRESS_VARIABLE
    from bench.jobs.package import job_environment, job_metadata, pack_job, pip_runtime_env

    tracking = options.tracking_uri and expand_tracking_uri(options.tracking_uri.rstrip("/"))
    benchmark = load_benchmark(options.config, options.set)
    storage = check_places(options.storage, tracking)
    env = job_environment(tracking, options.env)
    check(benchmark, images_here=False, allow_import=options.allow_import)
    if options.only is not None:
        filter_methods(make_methods(benchmark), options.only)
    cluster = Cluster.connect(options.address)
    with TemporaryDirectory(prefix="deelbo-job-") as folder:
        source_hash = pack_job(Path(folder), benchmark, options.from_source)
        has_texts = any(isinstance(setting, TextSettings) for setting in benchmark.datasets.values())
        pip = pip_runtime_env(options.install, options.storage, used_plugins(benchmark), has_texts)
        metadata = job_metadata(benchmark, storage, tracking, _job_options(options, source_hash, pip))
        if (active := _active_job(cluster, storage)) is None:
            if not options.unchecked:
                request = DoctorRequest(benchmark, storage, tracking, options.from_source, options.install is not None)
                _check_cluster(options.address or os.environ[ADDRESS_VARIABLE], request, options.env)
            runtime_env = {"env_vars": dict(env)} | pip
            if (name := _start_job(cluster, Path(folder), options, runtime_env, metadata)) is not None:
                console.print(f"{name} is submitted to {cluster.address}")
                return _follow(cluster, name, options.detach)
            if (active := _active_job(cluster, storage)) is None:
                raise ConfigError("another `submit` of this benchmark came first, and its job has ended: see `status`")
    _check_same_settings(active, metadata)
    console.print(f"{active.name} is running already: this command follows it")
    return _follow(cluster, active.name, options.detach)


def _job_options(options: argparse.Namespace, source_hash: str, pip: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the options that distinguish a job from another of the same benchmark."""
    return {
        "only": options.only,
        "env": ",".join(sorted(options.env)),
        "from-source": source_hash,
        "install": ", ".join(pip.get("pip", ())),
    }


def _check_cluster(address: str, request: DoctorRequest, env_names: Sequence[str]) -> None:
    """Raise ConfigError if `doctor` finds that the benchmark cannot run on the cluster."""
    from bench.cli.console import console
    from bench.cli.doctor import raise_first_failure
    from bench.doctor.examine import examine

    console.print("checking the cluster's nodes, the storage and MLflow")
    raise_first_failure(examine(address, request, env_names)[1])


def _start_job(
    cluster: Cluster,
    folder: Path,
    options: argparse.Namespace,
    runtime_env: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> str | None:
    """Start the job and return its name; None if another `submit` has just started one on this storage."""
    import hashlib
    from itertools import count

    from bench.jobs.client import JOB_PREFIX
    from bench.jobs.package import CONFIG_FILE

    storage = metadata["storage"]
    if _active_job(cluster, storage) is not None:
        return None
    command = ["-m", "bench", "run", CONFIG_FILE, "--storage", storage, "--address", "auto"]
    command += ["--only", options.only] if options.only else []
    command += [f"--allow-import={package}" for package in options.allow_import]
    # the same from every machine, so that of two simultaneous submits only one gets the name
    stem = f"{JOB_PREFIX}{metadata['benchmark']}-{hashlib.sha256(storage.encode()).hexdigest()[:8]}"
    used = {job.name for job in cluster.list_jobs()}
    name = next(name for name in (f"{stem}-{k}" for k in count(1)) if name not in used)
    return name if cluster.submit(name, command, folder, runtime_env, metadata) else None


def _active_job(cluster: Cluster, storage: str) -> Job | None:
    """Return the job that waits or runs on a storage."""
    return next((job for job in cluster.list_jobs() if job.active and job.metadata.get("storage") == storage), None)


def _check_same_settings(job: Job, metadata: Mapping[str, str]) -> None:
    """Raise ConfigError if an active job differs from the one that would be submitted."""

    def shown(settings: Mapping[str, object], name: str) -> str:
        return short_repr.repr(settings[name]) if name in settings else "not given"

    there, here = _settings(job.metadata), _settings(metadata)
    changed = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if changed:
        differences = "; ".join(
            f"{name} is {shown(there, name)} there, {shown(here, name)} here" for name in changed[:3]
        )
        raise ConfigError(
            f"{job.name} uses that storage with other settings ({differences}): wait for it, `stop` it, or choose "
            "another --storage"
        )


def _settings(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the settings that two submits must share to mean the same job."""
    import json

    from bench.config.loading import flatten_settings

    try:
        settings = dict(flatten_settings(json.loads(metadata.get("config") or "{}")))
    except (ValueError, AttributeError):
        settings = {}
    options = {f"--{name}": metadata[name] for name in IDENTITY_OPTIONS if name in metadata}
    return settings | options | {"version": metadata.get("version")}


def _follow(cluster: Cluster, name: str, detach: bool) -> int:
    """Follow a job; with ``detach`` only print the commands for it."""
    from bench.cli.console import command, console
    from bench.cli.jobs import follow_job

    if detach:
        for action in ("status", "logs", "stop"):
            console.print(f"  {command()} {action} {name}{cluster.option}")
        return 0
    console.print(f"it does not need this terminal: `{command()} status {name}{cluster.option}`")
    return follow_job(cluster, name)
