"""What a job takes along: the benchmark, small files that it names, the code where it is asked to, and variables."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import bench
from bench.config.benchmark import Benchmark
from bench.config.places import TRACKING_URI_VARIABLE
from bench.config.sections import SWAGFiles
from bench.exceptions import ConfigError
from bench.jobs import IN_JOB
from bench.utils.text import has_credentials, redact_url
from deelbo.pretrained.registry import IMAGENET_VERSIONS

__all__ = ["CONFIG", "SECRETS", "facts", "files_named", "own_version", "pack", "requirement", "variables"]


CONFIG = "benchmark.json"
LARGEST = 100 * 2**20
"""Bytes: Ray takes packages up to 100 MiB or more, as its head is configured."""
STOP_SECONDS = 60
INSTALLING = 3600
"""Seconds for pip on a node: torch has gigabytes."""
SECRETS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Variables that go along without being asked for, where they are set."""
CODE = ("bench", "deelbo")
OWN = (*CODE, CONFIG, "entrypoint.sh")


def pack(folder: Path, benchmark: Benchmark, from_source: bool) -> str:
    """Writes what the job reads into its working folder; a hash of the code that is in it, "" where none is.

    Files that the benchmark names by a relative path are taken from here, by the same name; an absolute path is the
    cluster's.

    Raises:
        ConfigError: a relative path leads to no file here or out of this folder, or all is more than Ray takes.
    """
    if benchmark.data is not None and not os.path.isabs(os.path.expanduser(benchmark.data)):
        raise ConfigError(
            f"data = {benchmark.data!r} is a path from here, where no node is: give the folder's absolute path on the "
            "nodes, or leave it out and set $DEELBO_DATA there"
        )
    text = json.dumps(benchmark.content(), separators=(",", ":"))
    (folder / CONFIG).write_text(text, encoding="utf-8")
    for key, name in files_named(benchmark):
        if os.path.isabs(os.path.expanduser(name)):
            continue
        parts = Path(name).parts
        if ".." in parts or parts[:1] in [(own,) for own in OWN]:
            raise ConfigError(
                f"{key} = {name!r}: expected a file in or below this folder, by a name other than {', '.join(OWN)}, or "
                "an absolute path on the cluster"
            )
        if not Path(name).is_file():
            raise ConfigError(
                f"{key} = {name!r}: no such file here to take along: give one, or its absolute path on the cluster's "
                "head"
            )
        if (size := os.path.getsize(name)) > LARGEST:
            raise ConfigError(
                f"{key} = {name!r} has {size / 2**20:.0f} MiB, a job takes {LARGEST >> 20} along: put it on the "
                "cluster's head, and give its absolute path there"
            )
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, place)
    code = ""
    if from_source:
        for name in CODE:
            _copy_code(Path(bench.__file__).parent.parent / name, folder / name)
        code = _hash(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LARGEST:
        raise ConfigError(
            f"what the job takes along has {size / 2**20:.0f} MiB, Ray takes {LARGEST >> 20}: put the files of weights "
            "on the cluster's head, and give their absolute paths there"
        )
    return code


def _hash(folder: Path) -> str:
    """Of the packages in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for name in CODE for path in (folder / name).rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _copy_code(package: Path, to: Path) -> None:
    """The package as it is, with its presets and data, without what Python made of it."""
    shutil.copytree(package, to, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def files_named(benchmark: Benchmark) -> list[tuple[str, str]]:
    """The files of weights that a benchmark names, with their keys."""
    found = []
    for backbone, settings in benchmark.backbones.items():
        if settings.weights is not None and settings.weights not in IMAGENET_VERSIONS:
            found.append((f"backbones.{backbone}.weights", settings.weights))
        if "ptyl" not in benchmark.priors or settings.ptyl is None:
            continue
        if isinstance(settings.ptyl, SWAGFiles):
            found += [(f"backbones.{backbone}.ptyl.{part}", name) for part, name in settings.ptyl]
        else:
            found.append((f"backbones.{backbone}.ptyl", settings.ptyl))
    return found


def variables(tracking: str | None, names: Sequence[str]) -> dict[str, str]:
    """The job's environment: MLflow's address and password, which are so on no command line, and whatever ``names`` of
    this process's variables are to go along.

    Raises:
        ConfigError: one of them is not set.
    """
    taken = {name: os.environ[name] for name in SECRETS if name in os.environ}
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name not in os.environ:
            raise ConfigError(
                f"--env {name.partition('=')[0]!r}: no such variable here: set it, and give its name alone"
            )
        taken[name] = os.environ[name]
    if tracking is not None:
        uri, user = _without_user(tracking)
        taken |= user
        taken[TRACKING_URI_VARIABLE] = uri
    taken["RAY_JOB_STOP_WAIT_TIME_S"] = str(STOP_SECONDS)  # `run` puts its things in order before it goes
    return taken | {IN_JOB: "1"}


def _without_user(uri: str) -> tuple[str, dict[str, str]]:
    """An MLflow server's address without the user in it, and the variables by which MLflow's client names that user."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri, {}
    netloc = parts.netloc.rpartition("@")[2]
    user = {"MLFLOW_TRACKING_USERNAME": unquote(parts.username)}
    if parts.password is not None:
        user["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return parts._replace(netloc=netloc).geturl(), user


def requirement(install: str | None, storage: str | None = None) -> dict[str, Any]:
    """Ray's runtime environment for ``--install``: what pip installs on every node before the job starts.

    Raises:
        ConfigError: there is a password in it.
    """
    if install is None:
        return {}
    if has_credentials(install):
        raise ConfigError(
            f"--install {redact_url(install)} has a password in it, which everybody would see who lists the "
            "cluster's jobs: "
            "give the nodes' pip an index of its own (pip.conf), or take the code along by --from-source"
        )
    extras = "bench,methods,s3" if (storage or "").startswith(("s3://", "s3a://")) else "bench,methods"
    wanted = install or f"deelbo[{extras}]=={own_version()}"
    return {"pip": [wanted], "config": {"setup_timeout_seconds": INSTALLING}}


def own_version() -> str:
    """Of this installation, or of this checkout where it is not installed."""
    try:
        return version("deelbo")
    except PackageNotFoundError:
        text = (Path(bench.__file__).parent.parent / "deelbo" / "__init__.py").read_text(encoding="utf-8")
        found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
        return found[1] if found else "unknown"


def facts(benchmark: Benchmark, storage: str, tracking: str | None, **others: str | None) -> Mapping[str, str]:
    """What is said of a job where it is listed: no secrets. ``others``: what else tells it from another."""
    told = {
        "role": "run",
        "benchmark": benchmark.name,
        "storage": storage,  # without a password, as `check_places` has seen to
        "config": json.dumps(benchmark.content(), separators=(",", ":"), sort_keys=True),
        "version": own_version(),
    }
    more = {"tracking-uri": None if tracking is None else redact_url(tracking)} | others
    return told | {name: value for name, value in more.items() if value}
