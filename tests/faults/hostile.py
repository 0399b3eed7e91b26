"""Malformed configurations and files of results: the hostile-input tests, counted."""

import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

from tests.faults.place import Place
from tests.faults.processes import ROOT
from tests.faults.rows import SkippedError

NATURAL = 500
"""Examples that DEELBO_FUZZ=1 stands for, at least."""


def feed_hostile(times: int, place: Place) -> str:
    """Runs tests/bench/**/test_hostile_*.py, with the counts that make ``times`` examples at least."""
    files = [str(file) for file in sorted((ROOT / "tests" / "bench").rglob("test_hostile_*.py"))]
    if not files:
        raise SkippedError("no tests of hostile input here")
    report = place.folder / "hostile.xml"
    command = ["pytest", "-q", "-p", "no:cacheprovider", "--timeout", "600", *files, f"--junitxml={report}"]
    since = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"DEELBO_FUZZ": str(times / NATURAL)},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - since
    assert ended.returncode == 0, f"{ended.stdout.strip().splitlines()[-1:]}\n{ended.stdout[-3000:]}"
    examples, tests = _counted(report)
    assert examples >= times, f"{examples} examples, expected {times} at least"
    return f"{examples} examples in {tests} tests, none led to a traceback or a hang; {seconds:.0f} s"


def _counted(report: Path) -> tuple[int, int]:
    """Count the examples, which each test notes in pytest's report, and the tests."""
    tree = ElementTree.parse(report)  # noqa: S314 - pytest wrote it
    noted = tree.iterfind(".//property[@name='examples']")
    return sum(int(item.attrib["value"]) for item in noted), len(tree.findall(".//testcase"))
