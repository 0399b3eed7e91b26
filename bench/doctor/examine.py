"""`doctor`: what can be known of a cluster before a GPU is paid for. It asks, has the facts judged, and shows them."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.config.benchmark import EMBEDDED, Benchmark
from bench.config.places import check_no_password, check_tracking_uri
from bench.doctor.cluster_report import Asked, Facts, Finding, minor
from bench.exceptions import ConfigError
from bench.jobs.package import is_relative, job_environment, list_weight_files
from bench.probe.__main__ import MARK, QUESTIONS, look
from bench.probe.node import version_of
from bench.ray_backend.connect import token_refused
from bench.utils.text import redact_url, single_line
from bench.utils.urls import local_folder

__all__ = ["Facts", "Finding", "examine"]


SENT = ("bench/__init__.py", "bench/probe/*.py", "bench/utils/*.py")
"""What of this package goes to a cluster that may lack it."""
ANSWER, JOB = 180.0, 600.0
"""Seconds for a node to say what it is, a first import of torch over the network included, and for the whole job in
which they are asked."""


def examine(
    address: str | None,
    benchmark: Benchmark | None,
    storage: str | None,
    tracking: str | None,
    env_names: Sequence[str] = (),
    from_source: bool = False,
    install: bool = False,
) -> tuple[Facts, list[Finding]]:
    """What a cluster is, and what is to be said of it.

    Args:
        address: of its Job API, http://HOST:8265; else as for ``ray.init``, on one of the cluster's machines.
        benchmark: what is to run there; None: the cluster alone is looked at.
        storage, tracking: where that is to keep its records, and where its MLflow is.
        env_names: variables of this process that the job gets.
        from_source: the job takes this code along.
        install: the job has its code installed by pip, which is not tried here.

    Raises:
        ConfigError: the cluster cannot be reached, or refuses the token; one line.
    """
    from bench.doctor.software_checks import judge

    if storage is not None:
        check_no_password(storage)
    if tracking is not None:
        check_tracking_uri(tracking)
    by_http = address is None or urlsplit(address).scheme in ("http", "https")
    questions = _questions(benchmark, storage, by_http)
    if by_http:
        facts = _by_job(address, questions, job_environment(tracking, env_names), from_source)
        facts = replace(facts, driver={**facts.driver, "weights": _weights(facts, benchmark)})
    else:
        facts = _from_inside(str(address), questions | {"tracking": tracking})
    asked = Asked(benchmark, storage, tracking, from_source and by_http, install)
    return facts, judge(facts, asked)


def _questions(benchmark: Benchmark | None, storage: str | None, by_http: bool) -> dict[str, Any]:
    """What `bench.probe.__main__.look` is to find out."""
    folder = None if storage is None else local_folder(storage)
    away = folder is not None and not os.path.isabs(folder)  # a path from here leads nowhere there
    asked = {
        "packages": ["ray", "torch", *_required()],
        "modules": []
        if benchmark is None
        else sorted({name for one in benchmark.methods.values() for name in one.packages}),
        "storage": None if away else storage,
        "seconds": ANSWER,
    }
    if benchmark is None:
        return asked
    return asked | {
        "datasets": list(benchmark.datasets),
        "data": benchmark.data,
        "verify": benchmark.verify_data,
        "weights": [one for one in _files(benchmark) if "version" in one or not (by_http and is_relative(one["file"]))],
        "cuda": bool(benchmark.resources.gpus_per_trial),
    }


def _files(benchmark: Benchmark) -> list[dict[str, str]]:
    """The files of weights that the driver will read."""
    from deelbo.pretrained.registry import IMAGENET_VERSIONS

    own = [name for name in benchmark.backbones if name != EMBEDDED]  # which is pretrained by deelbo itself
    versions = {name: benchmark.backbones[name].weights or IMAGENET_VERSIONS[0] for name in own}
    found = [
        {"backbone": name, "version": version} for name, version in versions.items() if version in IMAGENET_VERSIONS
    ]
    return found + [{"backbone": key.split(".")[1], "file": file} for key, file in list_weight_files(benchmark)]


def _weights(facts: Facts, benchmark: Benchmark | None) -> list[dict[str, Any]]:
    """What the driver says of weights, and those that go along from here."""
    found = list(facts.driver.get("weights") or [])
    for one in [] if benchmark is None else _files(benchmark):
        if "file" in one and is_relative(one["file"]):
            missing = None if Path(one["file"]).is_file() else f"there is no file {one['file']} here to take along"
            found.append({**one, "here": True, "missing": missing})
    return found


def _required() -> list[str]:
    """What deelbo[bench] needs, as it is installed here; nothing where it is not."""
    try:
        lines = importlib.metadata.requires("deelbo") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    needed = [line for line in lines if "extra ==" not in line or re.search(r"extra == ['\"]bench['\"]", line)]
    names = [re.match(r"[A-Za-z0-9._-]+", line) for line in needed]
    return sorted({name[0].lower() for name in names if name is not None} - {"ray", "torch"})


def _client() -> dict[str, str | None]:
    """Versions here."""
    return {"python": platform.python_version()} | {name: version_of(name) for name in ("ray", "torch", "deelbo")}


def _by_job(address: str | None, questions: Mapping[str, Any], env: Mapping[str, str], from_source: bool) -> Facts:
    """As a small job sees it; a cluster of another Ray gets none, as it may not even understand what a job is."""
    from bench.jobs.client import Cluster

    cluster = Cluster.connect(address)
    facts = Facts(cluster.address, cluster.token_mode, cluster.ray_version, _client())
    if minor(facts.client["ray"]) != minor(cluster.ray_version):
        return facts
    root = Path(__file__).parents[2]
    patterns = (*SENT, "deelbo/**/*.py") if from_source else SENT
    files: dict[str, str | bytes] = {
        str(path.relative_to(root)): path.read_bytes() for pattern in patterns for path in root.glob(pattern)
    }
    files[QUESTIONS] = json.dumps(questions)
    code, log = cluster.run_to_end(["-m", "bench.probe"], files, env, JOB)
    lines = [line for line in log.splitlines() if line.startswith(MARK)]
    if lines:
        return replace(facts, **json.loads(lines[-1].removeprefix(MARK)))
    said = [line for line in log.splitlines() if line.strip()]
    ended = f"did not end in {JOB:.0f} s" if code is None else f"ended with {code} and no answer"
    return replace(facts, problem=f"a small job {ended} ({single_line(said[-1] if said else 'no words', 200)})")


def _from_inside(address: str, questions: Mapping[str, Any]) -> Facts:
    """As this process sees it, on one of the cluster's machines."""
    import ray

    from bench.ray_backend.connect import QUIET  # noqa: F401 - has Ray say less, which it reads when it is imported

    if address.startswith("ray://"):
        raise ConfigError(f"--address {address}: expected http://HOST:8265, or HOST:PORT on a machine of the cluster")
    joined = not ray.is_initialized()
    if joined:
        try:
            with warnings.catch_warnings(action="ignore"):
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ray.exceptions.AuthenticationError as error:
            raise token_refused(address, error) from None
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--address {redact_url(address)}: the cluster cannot be joined ({single_line(error, 200)}): check "
                "--address, and that this machine is one of the cluster"
            ) from error
    try:
        facts = Facts(redact_url(address), None, None, _client())
        found = look(questions)
        return replace(facts, **found, token_mode=found["driver"]["token_mode"])
    finally:
        if joined:
            ray.shutdown()
