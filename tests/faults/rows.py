"""The table: one row a fault, and whether all that was promised held."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.faults.place import Place


class SkippedError(Exception):
    """A fault that cannot be made here; why."""


@dataclass(frozen=True)
class Scenario:
    """A fault, and how often it is tried by default.

    Attributes:
        name: on the command line.
        fault: for people.
        play: tries it so many times; says what was measured, and raises AssertionError where a promise is broken.
        times: by default.
    """

    name: str
    fault: str
    play: Callable[[int, Place], str]
    times: int


@dataclass(frozen=True)
class Row:
    """Result of a scenario. ``held`` is None if it was skipped; ``problem``: all that was violated."""

    fault: str
    times: int
    held: bool | None
    measured: str
    seconds: float
    problem: str = ""


def try_out(scenario: Scenario, times: int, place: Place, seed: int) -> Row:
    """Plays a scenario; whatever it raises makes a row that did not hold."""
    since = time.monotonic()
    problem, held = "", True
    try:
        measured = scenario.play(times, place.of(scenario.name, seed))
    except SkippedError as error:
        measured, held = str(error), None
    except AssertionError as error:
        problem, held = "\n".join([str(error), *traceback.format_tb(error.__traceback__)[-2:]]), False
        measured = f"VIOLATED: {(str(error).splitlines() or ['?'])[0]}"
    except Exception as error:
        problem, held = traceback.format_exc(), False
        measured = f"{type(error).__name__}: {str(error)[:200]}"
    return Row(scenario.fault, times, held, measured, time.monotonic() - since, problem)


def show(rows: list[Row], console: Console) -> None:
    """Prints the table."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=True)
    table.add_column("fault", max_width=26)
    table.add_column("times", justify="right", no_wrap=True)
    table.add_column("held", no_wrap=True)
    table.add_column("what was measured", max_width=52)
    table.add_column("s", justify="right", no_wrap=True)
    for row in rows:
        held = {True: "yes", False: "NO", None: "-"}[row.held]
        table.add_row(row.fault, str(row.times), held, row.measured, f"{row.seconds:.0f}")
    console.print(table)
