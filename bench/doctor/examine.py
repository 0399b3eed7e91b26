"""Inspect a cluster, by a small job or from one of its machines, and check the report."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.config.benchmark import Benchmark
from bench.config.places import (
    check_no_password,
    check_tracking_uri,
    expand_storage,
    expand_tracking_uri,
    resolve_storage,
)
from bench.config.plugins import used_plugins
from bench.config.sections import OwnSettings, Resources
from bench.doctor.checks import check_cluster, minor_version
from bench.doctor.cluster_report import THIS_MACHINE, CheckResult, ClusterReport, DoctorRequest
from bench.exceptions import ConfigError
from bench.jobs.package import ROOT, is_relative, job_environment, list_weight_files, plugin_files, plugin_requirements
from bench.probe import MARKER, REQUEST_FILE
from bench.probe.cluster import inspect_cluster
from bench.probe.node import installed_version
from bench.utils.code import running_code
from bench.utils.imports import package_folders
from bench.utils.text import redact_url, single_line
from bench.utils.urls import local_folder

PROBE_FILES = ("bench/__init__.py", "bench/probe/*.py", "bench/utils/*.py")
"""Files of this package that are sent to a cluster, which may lack it."""
EXTENDED_PACKAGE = {"bench/__init__.py": b"__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n"}
"""Lets a plug-in import those parts of a node's own `bench` that are not sent."""
NODE_SECONDS, JOB_SECONDS = 180.0, 600.0
"""Time for a node to answer, including a first import of torch over the network; and for the whole job."""


def examine(
    address: str | None, request: DoctorRequest, env_names: Sequence[str] = ()
) -> tuple[ClusterReport, list[CheckResult]]:
    """Inspect a cluster, or this machine, and check whether a benchmark can run there.

    Args:
        address: of the Job API, http://HOST:8265; or as for ``ray.init``, on one of the cluster's machines; None for
            this machine, where `run` starts Ray itself.
        request: what would run; without a benchmark, only the cluster is checked.
        env_names: variables of this process that the job gets.

    Raises:
        ConfigError: the cluster cannot be reached, or refuses the token.
    """
    if request.storage is not None:
        check_no_password(request.storage)
        request = replace(request, storage=expand_storage(request.storage))
    if request.tracking is not None:
        request = replace(request, tracking=expand_tracking_uri(request.tracking))
        check_tracking_uri(request.tracking or "")
    if address is None:
        request = _local_request(request)
    probe_request = _probe_request(request)
    if address is None or urlsplit(address).scheme not in ("http", "https"):
        packages = [] if request.benchmark is None else request.benchmark.imported_packages()
        own = {"tracking": request.tracking, "search_path": package_folders(packages)}
        report = _inspect_from_inside(address, {**probe_request, **own})
        return report, check_cluster(report, replace(request, from_source=False))
    env = job_environment(request.tracking, env_names)
    files = _source_files(request.benchmark) if request.from_source else _files(PROBE_FILES) | EXTENDED_PACKAGE
    report = _inspect_by_job(address, probe_request, env, files)
    return report, check_cluster(report, request)


def _local_request(request: DoctorRequest) -> DoctorRequest:
    """Return the request with the storage that `run` would use here, and without what a job takes along."""
    storage = request.storage
    if storage is None and request.benchmark is not None:
        storage = f"deelbo-runs/{request.benchmark.name}"
    resolved = None if storage is None else resolve_storage(storage)
    return replace(request, storage=resolved, from_source=False, install=False)


def _probe_request(request: DoctorRequest) -> dict[str, Any]:
    """Return the request to `bench.probe.cluster.inspect_cluster`."""
    benchmark, storage = request.benchmark, request.storage
    shared = storage is not None and not is_relative(local_folder(storage) or "/")
    probe_request = {"storage": storage if shared else None, "seconds": NODE_SECONDS}
    if benchmark is None:
        return probe_request
    return probe_request | {
        "modules": sorted({name for method in benchmark.methods.values() for name in method.packages}),
        "plugins": [(each.module, each.distribution, plugin_requirements(each)) for each in used_plugins(benchmark)],
        "datasets": list(benchmark.datasets),
        "sources": _own_sources(benchmark),
        "data": benchmark.data,
        "verify": benchmark.verify_data,
        "weights": _weight_files(benchmark),
        "cuda": bool(benchmark.resources.gpus_per_trial),
    }


def _own_sources(benchmark: Benchmark) -> dict[str, dict[str, Any]]:
    """Return where the user's own data are, by dataset, as fields of a `deelbo.data.Source`."""
    sources = {}
    for name, own in benchmark.datasets.items():
        if isinstance(own, OwnSettings):
            source = own.source(str(Path(own.path).absolute()) if is_relative(own.path) else own.path)
            network = benchmark.backbone_source(next(iter(benchmark.backbones)))
            sources[name] = asdict(network.tokenize(source) or source)
    return sources


def _weight_files(benchmark: Benchmark) -> list[tuple[str, ...]]:
    """Return backbones and versions, or paths, of weights on the driver's node; a job brings relative ones."""
    backbones = benchmark.backbones.items()
    versions = [(settings.model or name, settings.imagenet_version(name)) for name, settings in backbones]
    files = [(path,) for _, path in list_weight_files(benchmark) if not is_relative(path)]
    return [*((model, version) for model, version in versions if version is not None), *files]


def _client_versions() -> dict[str, str | None]:
    """Return the versions on this machine, and the hash of this code."""
    return {"python": platform.python_version(), "code": running_code().hash} | {
        name: installed_version(name) for name in ("ray", "torch", "deelbo")
    }


def _files(patterns: Iterable[str]) -> dict[str, bytes]:
    return {str(path.relative_to(ROOT)): path.read_bytes() for pattern in patterns for path in ROOT.glob(pattern)}


def _source_files(benchmark: Benchmark | None) -> dict[str, bytes]:
    """Return the files of `--from-source`: this code, and the benchmark's plug-ins."""
    plugins = () if benchmark is None else used_plugins(benchmark)
    return _files(("bench/**/*.py", "deelbo/**/*.py")) | plugin_files(plugins)


def _inspect_by_job(
    address: str | None, probe_request: Mapping[str, Any], env: Mapping[str, str], files: Mapping[str, bytes]
) -> ClusterReport:
    """Inspect a cluster by a small job with ``files``; one of another Ray version gets none, as it may not fit it."""
    from bench.jobs.client import Cluster

    cluster = Cluster.connect(address)
    report = ClusterReport(cluster.address, cluster.token_mode, cluster.ray_version, _client_versions())
    if minor_version(report.client["ray"]) != minor_version(cluster.ray_version):
        return report
    request = {REQUEST_FILE: json.dumps(probe_request)}
    code, log = cluster.run_to_end(["-m", "bench.probe"], {**files, **request}, env, JOB_SECONDS)
    results = [line for line in log.splitlines() if line.startswith(MARKER)]
    if results:
        return replace(report, **json.loads(results[-1].removeprefix(MARKER)))
    last_line = next((line for line in reversed(log.splitlines()) if line.strip()), "no output")
    end = f"did not end in {JOB_SECONDS:.0f} s" if code is None else f"ended with {code} and no result"
    return replace(report, problem=f"a small job {end} ({single_line(last_line, 200)})")


def _inspect_from_inside(address: str | None, probe_request: Mapping[str, Any]) -> ClusterReport:
    """Inspect a cluster from this process, on one of its machines; or this machine, by Ray on it alone."""
    from bench.ray_backend.connect import ray_session

    if address is not None and address.startswith("ray://"):
        raise ConfigError(f"--address {address}: expected http://HOST:8265, or HOST:PORT on a machine of the cluster")
    with ray_session(Resources(), address):
        found = inspect_cluster(probe_request)
    mode, versions = os.environ.get("RAY_AUTH_MODE", "disabled").lower(), _client_versions()
    shown = THIS_MACHINE if address is None else redact_url(address)
    return ClusterReport(shown, mode, versions["ray"], versions, **found)
