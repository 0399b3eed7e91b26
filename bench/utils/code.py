"""Identify the code that a process runs: the sources of both packages, by a hash that every copy of them has."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("bench", "deelbo")


@dataclass(frozen=True)
class Code:
    """The folder that holds both packages, and the hash of their sources; empty where they are not installed.

    ``plugins`` has the version and hash of the module of each plug-in.
    """

    folder: str = ""
    hash: str = ""
    plugins: dict[str, str] = field(default_factory=dict)


def running_code(plugins: Iterable[tuple[str, str]] = ()) -> Code:
    """Return the code that this process has imported, with plug-ins as `find_code` takes them; raises as that does."""
    return replace(_own_code(), plugins=_describe_modules(plugins))


@cache
def _own_code() -> Code:
    return Code(**find_code())


def find_code(plugins: Iterable[tuple[str, str]] = (), search_path: Iterable[str] = ()) -> dict[str, Any]:
    """Return the fields of `Code` for the packages that this process has imported, or would import.

    Args:
        plugins: the module and the distribution of each plug-in.
        search_path: folders that are appended to the search path.

    Raises:
        ValueError: the two packages are in two folders.
    """
    sys.path += [folder for folder in search_path if folder not in sys.path]
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
    return {"folder": str(folders[0]), "hash": hash_code(folders[0]), "plugins": _describe_modules(plugins)}


def hash_code(folder: Path) -> str:
    """Hash the Python files of both packages in a folder; the folder's own place makes no difference."""
    return _hash_files(folder, (path for package in PACKAGES for path in (folder / package).rglob("*.py")))


def _describe_modules(plugins: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {module: describe_module(module, distribution) for module, distribution in plugins}


def describe_module(module: str, distribution: str) -> str:
    """Return the version of a top-level module's distribution and the hash of its sources; "none" if it is missing."""
    digest = hash_module(module)
    try:
        version = importlib.metadata.version(distribution) if distribution else ""
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return f"{version} ({digest})".strip() if digest else "none"


def hash_module(module: str) -> str:
    """Hash the Python files of a top-level module; empty if there is none. It is not imported."""
    place = find_module(module)
    return "" if place is None else _hash_files(place.parent, place.rglob("*.py") if place.is_dir() else [place])


def find_module(module: str) -> Path | None:
    """Return the folder or the file of a top-level module; None if there is none."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve()


def _hash_files(folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]
