"""Where the commands print, and how they name paths and themselves."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.jobs import IN_JOB

__all__ = ["command", "console", "short"]


class _Console(Console):
    """A terminal that was closed, or a full disk behind it, ends nothing."""

    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Whoever read has had enough: the work goes on, in silence."""
        self.quiet = True


console = _Console(soft_wrap=True, highlight=False, markup=False)


def short(path: str | Path) -> str:
    """A path as one would type it here."""
    text = str(path)
    relative = os.path.relpath(text) if os.path.isabs(text) else text
    return text if relative.startswith("..") else relative


def command() -> str:
    """The command as it was called; in a job as whoever submitted it calls it."""
    if shutil.which("deelbo-bench") or IN_JOB in os.environ:
        return "deelbo-bench"
    called = Path(sys.argv[0])
    return short(called) if called.name == "deelbo-bench" else f"{short(sys.executable)} -m bench"
