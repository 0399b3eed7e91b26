"""Breaks a small benchmark in every way that is promised to be survived, and prints what came of it.

python -m tests.faults [--only NAME ...] [--times N] [--seed S] [--lanes L] [--keep FOLDER] [--out FILE]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from tests.faults.place import Place
from tests.faults.rows import Row, Scenario, show, try_out
from tests.faults.scenarios import SCENARIOS

LONGEST_FIRST = ("driver", "outage", "server", "worker", "node", "signals", "truncated", "second", "disk")


def main() -> int:
    """0: all held; 1: something did not."""
    options = _parser().parse_args()
    chosen = [scenario for scenario in SCENARIOS if not options.only or scenario.name in options.only]
    console, since = Console(soft_wrap=False), time.monotonic()
    print(f"{len(chosen)} faults, seed {options.seed}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with _folder(options.keep) as folder:
        place = Place(folder)
        print(f"the undisturbed run: {place.account['wall_seconds']:.0f} s", flush=True)

        def play(scenario: Scenario) -> Row:
            row = try_out(scenario, options.times or scenario.times, place, options.seed)
            end = {True: "held", False: "DID NOT HOLD", None: "skipped"}[row.held]
            print(f"{time.monotonic() - since:5.0f} s  {scenario.name}: {end}", flush=True)
            if row.problem:
                print(row.problem, file=sys.stderr, flush=True)
            return row

        order = {word: i for i, word in enumerate(LONGEST_FIRST)}
        queue = sorted(chosen, key=lambda scenario: order.get(scenario.name, len(order)))
        with ThreadPoolExecutor(options.lanes) as lanes:
            made = dict(zip([scenario.name for scenario in queue], lanes.map(play, queue), strict=True))
    rows = [made[scenario.name] for scenario in chosen]
    show(rows, console)
    minutes, seconds = divmod(round(time.monotonic() - since), 60)
    print(f"{minutes} min {seconds} s in all, load {os.getloadavg()[0]:.1f} at the end")
    if options.out:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if any(row.held is False for row in rows) else 0


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="deelbo-faults-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[scenario.name for scenario in SCENARIOS], metavar="NAME")
    parser.add_argument("--times", type=int, help="how often, instead of each fault's own number")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments and victims")
    parser.add_argument("--lanes", type=int, default=2, help="faults at a time")
    parser.add_argument("--keep", type=Path, help="folder to work in; an undisturbed run that is there is used again")
    parser.add_argument("--out", type=Path, help="a JSON file of the rows too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
