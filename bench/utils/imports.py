"""Find the packages of a configuration's own networks, on the driver and on its workers."""

import importlib.util
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path


def add_current_folder(package: str) -> None:
    """Append the current folder to the search path if a top-level package or module is there, and nowhere else.

    An installed command does not have it on its search path.
    """
    here = str(Path.cwd())
    if importlib.util.find_spec(package) is None and any(
        Path(here, name).exists() for name in (package, f"{package}.py")
    ):
        add_to_search_path([here])


def add_to_search_path(folders: Iterable[str]) -> None:
    """Append folders to the search path of this process, behind everything that is there."""
    sys.path += [folder for folder in folders if folder not in sys.path]


def package_folders(packages: Iterable[str]) -> list[str]:
    """Return the folders in which packages or modules lie, without those of installed packages and unknown ones."""
    specs = [importlib.util.find_spec(package) for package in packages]
    found = [(Path(spec.origin), spec.submodule_search_locations) for spec in specs if spec is not None and spec.origin]
    folders = {str(origin.parents[1 if inner is not None else 0].resolve()) for origin, inner in found}
    return sorted(folders - {str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib")})
