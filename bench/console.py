"""Where the commands print, and how they name paths and themselves."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from rich.console import Console

__all__ = ["command", "console", "short"]

console = Console(soft_wrap=True, highlight=False, markup=False)


def short(path: str | Path) -> str:
    """A path as one would type it here."""
    text = str(path)
    relative = os.path.relpath(text) if os.path.isabs(text) else text
    return text if relative.startswith("..") else relative


def command() -> str:
    """The command as it was called."""
    if shutil.which("deelbo-bench"):
        return "deelbo-bench"
    called = Path(sys.argv[0])
    return short(called) if called.name == "deelbo-bench" else f"{short(sys.executable)} -m bench.cli"
