"""The terminal that commands print to, and the names of paths and of the command itself."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.jobs import IN_JOB
from bench.utils.text import short


class _Console(Console):
    """A console whose failures are ignored: a closed terminal, pipe or a full disk stops no run."""

    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True


console = _Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


@contextmanager
def notes_console(as_json: bool) -> Iterator[Console]:
    """The console for notes and progress: stderr where stdout gets a JSON document.

    In the block nothing else is printed on stdout there, such as what a network of the user's own prints.
    """
    if not as_json:
        yield console
        return
    with redirect_stdout(sys.stderr):
        yield _Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def print_json(content: Mapping[str, Any]) -> None:
    """Print the one document of ``--json``; a reader that is gone stops nothing."""
    with suppress(OSError):
        print(json.dumps(content, indent=1, allow_nan=False), flush=True)


def make_table(title: str) -> Table:
    """Return an empty table in the style of all commands."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def quoted(path: str | Path) -> str:
    """Return a path as one can paste it into a shell here."""
    return shlex.quote(short(path))


def command() -> str:
    """Return the command as it was called, to be pasted into a shell; inside a job, as the submitting user calls it."""
    if shutil.which("deelbo-bench") or IN_JOB in os.environ:
        return "deelbo-bench"
    called = Path(sys.argv[0])
    return quoted(called) if called.name == "deelbo-bench" else f"{quoted(sys.executable)} -m bench"
