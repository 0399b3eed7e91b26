"""Package a job: its benchmark, the small files that this names, its code, its environment variables, its metadata."""

import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import bench
import deelbo
from bench.config.benchmark import Benchmark
from bench.config.plugins import used_plugins
from bench.config.sections import SWAGFiles
from bench.exceptions import ConfigError
from bench.jobs import IN_JOB
from bench.utils.code import PACKAGES, find_module, hash_code, hash_module
from bench.utils.text import has_credentials, redact_url
from bench.utils.urls import TRACKING_URI_VARIABLE
from deelbo.plugins import Plugin
from deelbo.pretrained.registry import IMAGENET_VERSIONS, NO_WEIGHTS

CONFIG_FILE = "benchmark.json"
MAX_BYTES = 100 * 2**20
"""Ray accepts packages of at least 100 MiB; more only if its head is configured for it."""
STOP_SECONDS = 60
"""Time from SIGTERM to SIGKILL for a job that is stopped."""
PIP_TIMEOUT_SECONDS = 3600
"""For pip on a node: torch has gigabytes."""
MLFLOW_CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Variables that every job gets, if they are set here."""
RESERVED_NAMES = (*PACKAGES, CONFIG_FILE, "entrypoint.sh")
ROOT = Path(bench.__file__).parent.parent


def pack_job(folder: Path, benchmark: Benchmark, from_source: bool) -> str:
    """Write the files of a job into its working directory.

    Weight files with a relative path are copied from here under the same name; absolute paths are the cluster's.

    Returns:
        A hash of the packed source code, and of that of each plug-in; empty without ``from_source``.

    Raises:
        ConfigError: a relative path does not name a file inside this directory, or the files are too large for Ray.
    """
    if benchmark.data is not None and is_relative(benchmark.data):
        raise ConfigError(
            f"data = {benchmark.data!r} is relative to this machine, not to the nodes: give the folder's absolute path "
            "on the nodes, or leave it out and set $DEELBO_DATA there"
        )
    text = json.dumps(benchmark.content(), separators=(",", ":"))
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    size = 0
    for key, name in list_weight_files(benchmark):
        if not is_relative(name):
            continue
        parts = Path(name).parts
        if ".." in parts or parts[0] in RESERVED_NAMES or not Path(name).is_file():
            raise ConfigError(
                f"{key} = {name!r}: expected an existing file in or below this folder, by a name other than "
                f"{', '.join(RESERVED_NAMES)}, or an absolute path on the cluster's head"
            )
        size += Path(name).stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(
                f"{key} = {name!r}: the job's files have {size / 2**20:.0f} MiB, Ray accepts {MAX_BYTES >> 20}: put "
                "weight files on the cluster's head, and give their absolute paths there"
            )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, folder / name)
    if not from_source:
        return ""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    plugins = used_plugins(benchmark)
    for name, content in plugin_files(plugins).items():
        size += len(content)
        if size > MAX_BYTES:
            raise ConfigError(
                f"{', '.join(map(str, plugins))}: the job's files have more than the {MAX_BYTES >> 20} MiB that Ray "
                "accepts: install them on the nodes"
            )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return " ".join([hash_code(folder), *(f"{plugin.module} {hash_module(plugin.module)}" for plugin in plugins)])


def plugin_files(plugins: Iterable[Plugin]) -> dict[str, bytes]:
    """Return the files of plug-ins, and the metadata that names their entry points, by place on the search path."""
    files = {}
    for plugin in plugins:
        for module in _own_modules(plugin):
            if (place := find_module(module)) is None:
                raise ConfigError(f"{plugin} has no module {module}: install it again")
            paths = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
            for path in paths:
                if "__pycache__" not in path.parts:
                    files[path.relative_to(place.parent).as_posix()] = path.read_bytes()
        if not plugin.distribution:
            continue
        info = f"{re.sub('[-_.]+', '_', plugin.distribution)}-{plugin.version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {plugin.distribution}\nVersion: {plugin.version}\n"
        points = importlib.metadata.distribution(plugin.distribution).read_text("entry_points.txt")
        files |= {f"{info}/METADATA": metadata.encode(), f"{info}/entry_points.txt": (points or "").encode()}
    return files


def plugin_requirements(plugin: Plugin) -> list[str]:
    """Return the names of the packages that a plug-in needs in any case, beside deelbo."""
    requirements = importlib.metadata.requires(plugin.distribution) if plugin.distribution else None
    names = [re.match(r"[\w.-]+", text) for text in requirements or () if ";" not in text]
    return sorted({match[0] for match in names if match is not None} - {"deelbo"})


def _own_modules(plugin: Plugin) -> set[str]:
    """Return the top-level modules of a plug-in's distribution; of an editable one those that its entry points name."""
    if not plugin.distribution:
        return {plugin.module}
    distribution = importlib.metadata.distribution(plugin.distribution)
    named = {point.value.partition(":")[0].partition(".")[0].strip() for point in distribution.entry_points}
    listed = {path.parts[0].removesuffix(".py") for path in distribution.files or () if path.suffix == ".py"}
    installed = {name for name in listed if name.isidentifier() and not name.startswith("__") and find_module(name)}
    return {plugin.module} | {name for name in named if find_module(name)} | installed


def is_relative(path: str) -> bool:
    """Return True for a path of this machine, which a job takes along; False for one on the cluster's nodes."""
    return not path.startswith(("/", "~"))


def list_weight_files(benchmark: Benchmark) -> list[tuple[str, str]]:
    """Return the keys and paths of the weight files that a benchmark names."""
    files = []
    for backbone, settings in benchmark.backbones.items():
        if settings.weights is not None and settings.weights not in (*IMAGENET_VERSIONS, NO_WEIGHTS):
            files.append((f"backbones.{backbone}.weights", settings.weights))
        if "ptyl" not in benchmark.priors or settings.ptyl is None:
            continue
        if isinstance(settings.ptyl, SWAGFiles):
            files += [(f"backbones.{backbone}.ptyl.{part}", name) for part, name in settings.ptyl]
        else:
            files.append((f"backbones.{backbone}.ptyl", settings.ptyl))
    return files


def job_environment(tracking: str | None, names: Sequence[str]) -> dict[str, str]:
    """Return a job's environment variables: MLflow's URI and credentials, and those of this process in ``names``.

    Raises:
        ConfigError: one of ``names`` is not set.
    """
    env = {name: os.environ[name] for name in MLFLOW_CREDENTIALS if name in os.environ}
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name not in os.environ:
            raise ConfigError(
                f"--env {name.partition('=')[0]!r}: no such variable here: set it, and give its name alone"
            )
        env[name] = os.environ[name]
    if tracking is not None:
        uri, credentials = _split_credentials(tracking)
        env |= {**credentials, TRACKING_URI_VARIABLE: uri}
    return env | {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), IN_JOB: "1"}


def _split_credentials(uri: str) -> tuple[str, dict[str, str]]:
    """Split an MLflow server's URI into the URI without its user, and the variables that MLflow's client reads."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri, {}
    credentials = {"MLFLOW_TRACKING_USERNAME": unquote(parts.username)}
    if parts.password is not None:
        credentials["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), credentials


def pip_runtime_env(
    install: str | None, storage: str | None = None, plugins: Iterable[Plugin] = (), has_texts: bool = False
) -> dict[str, Any]:
    """Return the part of Ray's runtime environment for ``--install``; empty if ``install`` is None.

    An empty ``install`` means this version of deelbo, with the packages for S3 if the storage needs them, and for texts
    if the benchmark has some. Plug-ins are installed, too, in the versions that they have here.

    Raises:
        ConfigError: the requirement contains a password.
    """
    if install is None:
        return {}
    if has_credentials(install):
        raise ConfigError(
            f"--install {redact_url(install)} has a password in it, visible to everybody who lists the cluster's "
            "jobs: give the nodes' pip an index of its own (pip.conf), or take the code along by --from-source"
        )
    s3 = ["s3"] if (storage or "").startswith(("s3://", "s3a://")) else []
    extras = ["bench", "methods", *s3, *["text"] * has_texts]
    requirement = install or f"deelbo[{','.join(extras)}]=={deelbo.__version__}"
    others = [f"{plugin.distribution}=={plugin.version}" for plugin in plugins if plugin.distribution]
    return {"pip": [requirement, *others], "config": {"setup_timeout_seconds": PIP_TIMEOUT_SECONDS}}


def job_metadata(
    benchmark: Benchmark, storage: str, tracking: str | None, job_options: Mapping[str, str | None]
) -> dict[str, str]:
    """Return the metadata that is listed with a job: no secrets, so ``storage`` must have passed `check_places`.

    ``job_options`` are the options that distinguish this job from others of the same benchmark.
    """
    metadata = {
        "role": "run",
        "benchmark": benchmark.name,
        "storage": storage,
        "config": json.dumps(benchmark.content(), separators=(",", ":"), sort_keys=True),
        "version": deelbo.__version__,
        "tracking-uri": tracking and redact_url(tracking),
    }
    return {name: value for name, value in (metadata | dict(job_options)).items() if value}
