"""Identify the code that a process runs: the sources of both packages, by a hash that every copy of them has."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGES = ("bench", "deelbo")


@dataclass(frozen=True)
class Code:
    """The folder that holds both packages, and the hash of their sources; empty where they are not installed."""

    folder: str = ""
    hash: str = ""


@cache
def running_code() -> Code:
    """Return the code that this process has imported. Raises ValueError as `find_code` does."""
    return Code(**find_code())


def find_code() -> dict[str, str]:
    """Return the fields of `Code` for the packages that this process has imported, or would import.

    Raises:
        ValueError: the two packages are in two folders.
    """
    specs = [importlib.util.find_spec(package) for package in PACKAGES]
    origins = [spec.origin for spec in specs if spec is not None and spec.origin is not None]
    if len(origins) < len(PACKAGES):
        return {}
    folders = [Path(origin).resolve().parents[1] for origin in origins]
    if folders[0] != folders[1]:
        raise ValueError(
            f"bench is imported from {folders[0]} and deelbo from {folders[1]}, expected one folder: correct "
            "$PYTHONPATH, or install deelbo again"
        )
    return {"folder": str(folders[0]), "hash": hash_code(folders[0])}


def hash_code(folder: Path) -> str:
    """Hash the Python files of both packages in a folder; the folder's own place makes no difference."""
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (folder / package).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]
