"""Facts that a node reports about itself: versions, GPUs, disk space, data, and its access to the storage.

These functions run on the nodes as Ray tasks. Nodes may lack every package but Ray.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.utils.code import describe_module, hash_code
from bench.utils.imports import add_to_search_path
from bench.utils.text import describe_error, single_line
from bench.utils.urls import local_folder

MARKER_CONTENT = b"deelbo"
RETRY_PAUSES_SECONDS = (0.0, 1.0, 2.0)
"""A network disk may show another node's file a little later."""
NVIDIA_SMI_TIMEOUT_SECONDS = 20.0
TORCH_TIMEOUT_SECONDS = 120.0
Facts = dict[str, Any]


def collect_node_info(request: Mapping[str, Any], marker: str) -> Facts:
    """Return a node's facts, all but its data; ``marker`` is the name of the file that it writes into the storage."""
    url = request.get("storage")
    add_to_search_path(request.get("search_path") or [])
    devices = _list_gpus()
    facts: Facts = {
        "python": platform.python_version(),
        "deelbo": installed_version("deelbo"),
        "code": _code_hash(),
        "torch": installed_version("torch"),
        "missing": [name for name in request.get("modules") or [] if importlib.util.find_spec(name) is None],
        "plugins": {plugin[0]: _inspect_plugin(*plugin) for plugin in request.get("plugins") or []},
        "devices": devices,
        "free": {"temporary files": shutil.disk_usage(tempfile.gettempdir()).free},
        "cuda": _cuda_problem() if request.get("cuda") and devices else None,
        "weights": {" ".join(file): _find_problem(_open_weights, *file) for file in request.get("weights") or []},
    }
    if url:
        problem = _find_problem(_write_marker, url, marker)
        facts["storage"] = {"problem": problem and problem.replace(f"/{marker}", "")}  # the same on all nodes
        folder = local_folder(url)
        if folder is not None and problem is None:
            facts["free"]["the storage"] = shutil.disk_usage(_existing_parent(folder)).free
    return facts


def read_datasets(request: Mapping[str, Any]) -> Facts:
    """Read each dataset; report None, or why it cannot be used, and the number of examples in the user's own.

    This takes minutes from a slow disk.
    """
    options = request.get("data"), bool(request.get("verify", True))
    datasets, sources = request.get("datasets") or [], request.get("sources") or {}
    return {
        "data": {name: _find_problem(_check_dataset, name, *options, sources.get(name)) for name in datasets},
        "examples": {name: _count_examples(name, source) for name, source in sources.items()},
    }


def installed_version(package: str) -> str | None:
    """Return a package's version, deelbo's from the files that are imported; None if it is not installed."""
    try:
        if package == "deelbo":
            return str(importlib.import_module(package).__version__)
        return importlib.metadata.version(package)
    except (ImportError, AttributeError):
        return None


def _inspect_plugin(module: str, distribution: str, requirements: Sequence[str]) -> Facts:
    """Return a plug-in's version and hash, and why it cannot be used, or None."""
    found = describe_module(module, distribution)
    if missing := [name for name in requirements if installed_version(name) is None]:
        return {"found": found, "problem": f"{', '.join(missing)} missing"}
    try:
        importlib.import_module(module)
    except BaseException as error:  # such as SystemExit
        return {"found": found, "problem": describe_error(error)}
    return {"found": found, "problem": None}


def _code_hash() -> str | None:
    """Return the hash of the code beside deelbo: `bench` itself may be the part of it that came with the probe."""
    spec = importlib.util.find_spec("deelbo")
    return None if spec is None or spec.origin is None else hash_code(Path(spec.origin).resolve().parents[1])


def _list_gpus() -> list[str]:
    """Return the models and memory of the GPUs that nvidia-smi lists; none without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": NVIDIA_SMI_TIMEOUT_SECONDS}
    try:
        output = subprocess.run(command, check=True, **options).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.replace(",", "") for line in output.splitlines()]


def _cuda_problem() -> str:
    """Return the error of torch about the GPUs, "" if there is none; in a process of its own, which releases them."""
    command = [sys.executable, "-P", "-c", "import torch; torch.cuda.init()"]
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}  # Ray hides the GPUs
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": TORCH_TIMEOUT_SECONDS, "env": env}
    try:
        process = subprocess.run(command, check=False, **options)
    except (OSError, subprocess.SubprocessError) as error:
        return describe_error(error)
    return "" if process.returncode == 0 else single_line(process.stderr.strip().rpartition("\n")[2]) or "torch failed"


def _find_problem(check: Callable[..., object], *arguments: Any) -> str | None:
    """Return the error that a check raises, or None."""
    try:
        check(*arguments)
    except Exception as error:
        return describe_error(error)
    return None


def _check_dataset(dataset: str, folder: str | None, verify: bool, source: Mapping[str, Any] | None) -> None:
    from deelbo.data import check_task

    if source is None:
        check_task(dataset, folder, verify)
    else:
        from deelbo.data import source_from  # which an earlier deelbo on a node lacks

        check_task(dataset, folder, verify, source_from(source))


def _count_examples(dataset: str, source: Mapping[str, Any]) -> int | None:
    """Return the number of a dataset's examples; None if they cannot be listed, which `_check_dataset` reports."""
    try:
        from deelbo.data import find_task, source_from

        listed = {name: value for name, value in source.items() if name != "skip_unreadable"}  # which opens none
        entry = find_task(dataset, source_from(listed))
        return entry.pool_size + entry.test_size
    except Exception:
        return None


def _open_weights(backbone_or_path: str, version: str | None = None) -> None:
    if version is not None:
        from deelbo.pretrained.weights import imagenet_file

        imagenet_file(backbone_or_path, version)
    elif not Path(backbone_or_path).expanduser().is_file():
        raise ValueError("there is no such file")


def _marker_file(url: str, name: str) -> tuple[Any, str]:
    """Return a file in the storage; if its folder does not exist yet, in the closest parent that does."""
    import fsspec

    folder = local_folder(url)
    fs, root = fsspec.core.url_to_fs(url if folder is None else str(_existing_parent(folder)))
    return fs, f"{root.rstrip('/')}/{name}"


def _existing_parent(folder: str) -> Path:
    path = Path(folder).absolute()
    return next(existing for existing in (path, *path.parents) if existing.exists())


def _write_marker(url: str, name: str) -> None:
    fs, path = _marker_file(url, name)
    fs.pipe_file(path, MARKER_CONTENT)


def missing_markers(url: str, markers: Mapping[str, str]) -> Facts:
    """Report the nodes whose files this node does not find in the storage."""
    missing = list(markers)
    for pause in RETRY_PAUSES_SECONDS:
        time.sleep(pause)
        missing = [node for node in missing if _find_problem(_check_marker, url, markers[node])]
        if not missing:
            break
    return {"unseen": missing}


def _check_marker(url: str, name: str) -> None:
    fs, path = _marker_file(url, name)
    fs.invalidate_cache()
    if fs.cat_file(path) != MARKER_CONTENT:
        raise ValueError("another content")


def remove_marker(url: str, name: str) -> Facts:
    """Remove this node's file from the storage."""
    with contextlib.suppress(Exception):
        fs, path = _marker_file(url, name)
        fs.rm_file(path)
    return {}
