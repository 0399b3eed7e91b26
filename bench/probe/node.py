"""Facts that a node reports about itself: versions, GPUs, disk space, data, and its access to the storage.

These functions run on the nodes as Ray tasks. Nodes may lack every package but Ray.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.utils.text import describe_error
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
    devices = _list_gpus()
    facts: Facts = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "deelbo": installed_version("deelbo"),
        "packages": {
            **{package: installed_version(package) for package in request.get("packages") or []},
            **{module: _find_module(module) for module in request.get("modules") or []},
        },
        "devices": devices,
        "free": {"temporary files": _free_bytes(tempfile.gettempdir())},
        "cuda": _cuda_problem() if request.get("cuda") and devices else None,
        "weights": [check_weight_file(file) for file in request.get("weights") or []],
    }
    if url:
        facts["storage"] = _write_marker(url, marker)
        if (folder := local_folder(url)) is not None:
            facts["free"]["the storage"] = _free_bytes(folder)
    return facts


def read_datasets(request: Mapping[str, Any]) -> Facts:
    """Read each dataset; report None, or why it cannot be used. This takes minutes from a slow disk."""
    options = request.get("data"), bool(request.get("verify", True))
    datasets = request.get("datasets") or []
    return {"data": {dataset: _find_problem(_check_dataset, dataset, *options) for dataset in datasets}}


def installed_version(package: str) -> str | None:
    """Return a package's version, deelbo's from the files that would be imported; None if it is not installed."""
    try:
        if package != "deelbo":
            return importlib.metadata.version(package)
        spec = importlib.util.find_spec(package)
        text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
        return match.group(1) if match else None
    except (ImportError, OSError, ValueError):
        return None


def _find_module(module: str) -> str | None:
    """Return "there" for a module that exists, without importing it."""
    with contextlib.suppress(ImportError, ValueError):
        return "there" if importlib.util.find_spec(module) is not None else None
    return None


def _list_gpus() -> list[Facts]:
    """Return the GPUs that nvidia-smi lists, with memory and driver; none without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": NVIDIA_SMI_TIMEOUT_SECONDS}
    try:
        output = subprocess.run(command, check=True, **options).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
    return [{"name": row[0], "mib": row[1], "driver": row[2]} for row in rows if len(row) == 3]


def _cuda_problem() -> str:
    """Return why torch cannot use the GPUs, "" if it can; in a process of its own, which releases them."""
    script = "import torch; print(torch.cuda.is_available(), torch.version.cuda, sep='|')"
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}  # Ray hides the GPUs
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": TORCH_TIMEOUT_SECONDS, "env": env}
    try:
        run = subprocess.run([sys.executable, "-c", script], check=False, **options)
    except (OSError, subprocess.SubprocessError) as error:
        return describe_error(error)
    available, _, cuda = run.stdout.strip().rpartition("\n")[2].partition("|")
    if available == "True":
        return ""
    if available != "False":
        return "torch cannot be imported"
    return "torch is built for CPUs alone" if cuda == "None" else f"torch is built for CUDA {cuda}"


def _find_problem(check: Callable[..., object], *arguments: Any) -> str | None:
    """Return the error that a check raises, or None."""
    try:
        check(*arguments)
    except Exception as error:
        return describe_error(error)
    return None


def _check_dataset(dataset: str, folder: str | None, verify: bool) -> None:
    from deelbo.data import check_task

    check_task(dataset, folder, verify)


def check_weight_file(file: Mapping[str, str]) -> Facts:
    """Add to a weight file, a local one or torchvision's of a version, why it is missing, or None."""
    return {**file, "missing": _find_problem(_open_weights, file)}


def _open_weights(file: Mapping[str, str]) -> None:
    if "version" in file:
        from deelbo.pretrained.weights import imagenet_file

        imagenet_file(file["backbone"], file["version"])
    elif not Path(file["file"]).is_file():
        raise ValueError(f"there is no file {Path(file['file']).absolute()}")


class _RemoteFile:
    """A file behind a URL, with the methods of `pathlib.Path` that are used here."""

    def __init__(self, url: str, name: str) -> None:
        import fsspec

        self.fs, root = fsspec.core.url_to_fs(url)
        self.path = f"{root.rstrip('/')}/{name}"

    def write_bytes(self, content: bytes) -> None:
        self.fs.pipe_file(self.path, content)

    def read_bytes(self) -> bytes:
        self.fs.invalidate_cache()
        return bytes(self.fs.cat_file(self.path))

    def unlink(self) -> None:
        self.fs.rm_file(self.path)


def _open_marker(url: str, name: str) -> Path | _RemoteFile:
    """Return a file in the storage; if its folder does not exist yet, in the closest parent that does."""
    folder = local_folder(url)
    return _RemoteFile(url, name) if folder is None else _existing_parent(folder) / name


def _existing_parent(folder: str) -> Path:
    path = Path(folder).absolute()
    return next(existing for existing in (path, *path.parents) if existing.exists())


def _write_marker(url: str, name: str) -> Facts:
    """Write a file into the storage; report success, or the error."""
    try:
        _open_marker(url, name).write_bytes(MARKER_CONTENT)
    except Exception as error:
        return {"wrote": False, "why": describe_error(error).replace(f"/{name}", "")}  # the same on all nodes
    return {"wrote": True, "why": None}


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
    if _open_marker(url, name).read_bytes() != MARKER_CONTENT:
        raise ValueError("another content")


def remove_marker(url: str, name: str) -> Facts:
    """Remove this node's file from the storage."""
    with contextlib.suppress(Exception):
        _open_marker(url, name).unlink()
    return {}


def _free_bytes(folder: str) -> int | None:
    """Return the free space at a folder, or at the closest parent that exists."""
    try:
        return shutil.disk_usage(_existing_parent(folder)).free
    except OSError:
        return None
