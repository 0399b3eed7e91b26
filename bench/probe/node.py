"""What a node of a cluster says of itself: versions, GPUs, free disk, data, and whether its storage is everybody's.

It imports nothing of this package at the top and takes Python 3.9, as it travels to nodes that may have neither.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from bench.utils.text import describe_error
from bench.utils.urls import local_folder

__all__ = ["Facts", "answer", "clean", "data_of", "importable", "unseen", "version_of"]


LONGEST = 300
SETTLING = (0.0, 1.0, 2.0)
"""Pauses before another look for a file of another node's: a network disk may show it a little later."""
PATIENCE = 20.0
"""Seconds that nvidia-smi has to answer."""
Facts = dict[str, Any]


def answer(questions: Mapping[str, Any], name: str) -> Facts:
    """What one node says of itself; ``name`` of the file it leaves in the storage."""
    url = questions.get("storage")
    facts: Facts = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "deelbo": version_of("deelbo"),
        "packages": {
            **{package: version_of(package) for package in questions.get("packages") or []},
            **{module: "there" if importable(module) else None for module in questions.get("modules") or []},
        },
        "devices": _devices(),
        "free": {"temporary files": _free(tempfile.gettempdir())},
    }
    facts["cuda"] = _cuda() if questions.get("cuda") and facts["devices"] else None
    facts["weights"] = [_weights(file) for file in questions.get("weights") or []]
    if url:
        facts["storage"] = _write(url, name)
        if local_folder(url) is not None:
            facts["free"]["the storage"] = _free(str(local_folder(url)))
    return facts


def data_of(questions: Mapping[str, Any]) -> Facts:
    """Why each dataset cannot be used on this node; None where it is there and whole. It may take minutes where the
    disk is far."""
    folder, verify = questions.get("data"), bool(questions.get("verify", True))
    return {"data": {dataset: _data(dataset, folder, verify) for dataset in questions.get("datasets") or []}}


def version_of(package: str) -> Optional[str]:  # noqa: UP045 - as Python 3.9 takes it
    """The version that is installed, deelbo's of the files that would be imported; None where there is none."""
    try:
        if package == "deelbo":
            spec = importlib.util.find_spec(package)
            text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
            found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
            return found.group(1) if found else None
        return importlib.metadata.version(package)
    except (ImportError, OSError, ValueError):
        return None


def importable(module: str) -> bool:
    """Whether there is something of that name to import; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _devices() -> list[Facts]:
    """GPUs by name, memory and driver, as nvidia-smi lists them; none where it is not there."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in out.splitlines()]
    return [{"name": row[0], "mib": row[1], "driver": row[2]} for row in rows if len(row) == 3]


def _cuda() -> str:
    """ "" where torch can use the GPUs, else why not; in a process of its own, which gives them back."""
    script = "import torch; print(torch.cuda.is_available(), torch.version.cuda, sep='|')"
    seen = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}  # Ray hides them
    try:
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=seen)
        able, _, cuda = run.stdout.strip().rpartition("\n")[2].partition("|")
    except (OSError, subprocess.SubprocessError) as error:
        return describe_error(error)
    if able == "True":
        return ""
    if able != "False":
        return "torch cannot be imported"
    return "torch is built for CPUs alone" if cuda == "None" else f"torch is built for CUDA {cuda}"


def _data(dataset: str, folder: Optional[str], verify: bool) -> Optional[str]:  # noqa: UP045
    """None where the dataset is there and whole, else why it is not."""
    try:
        from deelbo.data import check_task

        check_task(dataset, folder, verify)
    except Exception as error:
        return describe_error(error)
    return None


def _weights(asked: Mapping[str, str]) -> Facts:
    """Whether a file that the driver reads is there: ImageNet weights where torchvision keeps them, or a local file."""
    missing = None
    try:
        if "version" in asked:
            from deelbo.pretrained.weights import imagenet_file

            imagenet_file(asked["backbone"], asked["version"])
        elif not os.path.isfile(asked["file"]):
            missing = f"there is no file {os.path.abspath(asked['file'])}"
    except Exception as error:
        missing = describe_error(error)
    return {**asked, "missing": missing}


def _write(url: str, name: str) -> Facts:
    """Whether this node can write a file there, the folders that had to be made for it, and why not."""
    made = []
    try:
        root = local_folder(url)
        if root is None:
            fs, path = _remote(url)
            fs.pipe_file(f"{path}/{name}", b"deelbo")
        else:
            folder = root
            while not os.path.isdir(folder):
                made.append(folder)
                folder = os.path.dirname(folder)
            os.makedirs(root, exist_ok=True)
            with open(os.path.join(root, name), "xb") as file:
                file.write(b"deelbo")
                file.flush()
                os.fsync(file.fileno())
    except Exception as error:
        for folder in made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return {
            "wrote": False,
            "why": describe_error(error).replace(f"/{name}", ""),
            "made": [],
        }  # the same for all nodes
    return {"wrote": True, "why": None, "made": made}


def unseen(url: str, wrote: Mapping[str, str]) -> Facts:
    """The nodes whose files this one does not find in the storage."""
    unseen = list(wrote)
    for pause in SETTLING:
        time.sleep(pause)
        unseen = [node for node in unseen if not _holds(url, wrote[node])]
        if not unseen:
            break
    return {"unseen": unseen}


def _holds(url: str, name: str) -> bool:
    try:
        root = local_folder(url)
        if root is not None:
            return Path(root, name).read_bytes() == b"deelbo"
        fs, path = _remote(url)
        fs.invalidate_cache()
        return bool(fs.cat_file(f"{path}/{name}") == b"deelbo")
    except Exception:
        return False


def clean(url: str, name: str, made: Sequence[str]) -> Facts:
    """Removes what this node wrote, and the folders that were made for it where nothing else is in them."""
    with contextlib.suppress(Exception):
        root = local_folder(url)
        if root is None:
            fs, path = _remote(url)
            fs.rm_file(f"{path}/{name}")
        else:
            os.unlink(os.path.join(root, name))
    for folder in made:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return {}


def _remote(url: str) -> tuple[Any, str]:
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    return fs, str(path).rstrip("/")


def _free(place: str) -> Optional[int]:  # noqa: UP045
    """Bytes free where a folder is or would be made."""
    path = Path(place).absolute()
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return None
