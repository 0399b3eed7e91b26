"""The terminal that commands print to, and the names of paths and of the command itself."""

import os
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.jobs import IN_JOB


class _Console(Console):
    """A console whose failures are ignored: a closed terminal, pipe or a full disk stops no run."""

    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True


console = _Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def make_table(title: str) -> Table:
    """Return an empty table in the style of all commands."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def short(path: str | Path) -> str:
    """Return a path as one would type it here: relative if it is below the working directory."""
    text = str(path)
    relative = os.path.relpath(text) if Path(text).is_absolute() else text
    if relative.startswith(".."):
        return text
    return f"./{relative}" if relative.startswith(("-", "~")) else relative


def quoted(path: str | Path) -> str:
    """Return a path as one can paste it into a shell here."""
    return shlex.quote(short(path))


def command() -> str:
    """Return the command as it was called, to be pasted into a shell; inside a job, as the submitting user calls it."""
    if shutil.which("deelbo-bench") or IN_JOB in os.environ:
        return "deelbo-bench"
    called = Path(sys.argv[0])
    return quoted(called) if called.name == "deelbo-bench" else f"{quoted(sys.executable)} -m bench"
