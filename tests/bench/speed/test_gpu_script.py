"""`tests/performance/gpu.sh`, the measurements on a GPU, without one: by a stand-in for Python, or with tiny sizes."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cli.main import build_parser
from tests.helpers.bare_machine import ROOT, bare_environment

SCRIPT = ROOT / "tests" / "performance" / "gpu.sh"
PARTS = ["resnet50", "vit_b_16", "resnet50_compile", "convnext_tiny"]
MORE = ["resnet50_naive", "vit_b_16_compile", "peers"]
STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$CALLS"
out=
while [ $# -gt 0 ]; do [ "$1" = --out ] && out=$2; shift; done
case $out in
  */hangs.json|*/vit_b_16.json) [ -n "$HANG" ] && { echo $$ > "$CALLS.pid"; sleep 600 & wait; } ;;
  */convnext_tiny.json) [ -n "$HANG" ] && exit 3 ;;
esac
[ -n "$out" ] && echo '{}' > "$out"
exit 0
"""


def run_script(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, list[str]]:
    """Run the script with the stand-in; return its exit code, its log, and Python's arguments, call by call."""
    python, calls = folder / "python", folder / "calls"
    python.write_text(STAND_IN, encoding="utf-8")
    python.chmod(0o755)
    variables = {"PYTHON": str(python), "OUT": str(folder / "out"), "CALLS": str(calls), "HANG": ""}
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env=os.environ | variables | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert (folder / "out" / "all.log").read_text() == done.stdout
    return done.returncode, done.stdout, calls.read_text().splitlines()


@pytest.mark.parametrize(("arguments", "parts"), [([], PARTS), (["more"], MORE), (["peers", "resnet50"], None)])
def test_each_part_has_its_file(arguments: list[str], parts: list[str] | None, tmp_path: Path) -> None:
    """Without arguments, with `more` or with names, each part is one call of `speed` that its parser takes."""
    code, _, calls = run_script(tmp_path, *arguments)
    assert code == 0
    parsed = [build_parser().parse_args(words[2:]) for words in map(shlex.split, calls) if words[:2] == ["-m", "bench"]]
    expected = parts or arguments
    assert [options.out.stem for options in parsed] == expected
    assert sorted(file.stem for file in (tmp_path / "out").glob("*.json")) == sorted(expected)
    assert {(options.device, options.precision, options.size, options.batch) for options in parsed} == {
        ("cuda", "bf16", 224, 128)
    }
    assert any("test_on_gpu.py" in call for call in calls) is (arguments == [])


def test_a_part_that_hangs_or_fails_costs_no_other(tmp_path: Path) -> None:
    """A part is ended at its limit, the rest runs, and the exit code says that something is missing."""
    start = time.monotonic()
    code, log, _ = run_script(tmp_path, HANG="1", LIMIT="3")
    assert time.monotonic() - start < 60
    assert code == 1
    assert sorted(file.stem for file in (tmp_path / "out").glob("*.json")) == ["resnet50", "resnet50_compile"]
    codes = [line.split()[3] for line in log.splitlines() if line.startswith("== exit code")]
    assert codes == ["0", "0", "0", "124", "0", "3"]  # versions, tests, and four networks
    pid = int((tmp_path / "calls.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    """An unknown name of a part is a line in the log and exit code 1."""
    code, log, _ = run_script(tmp_path, "resnet51")
    assert code == 1
    assert "no part resnet51" in log


@pytest.mark.long
def test_the_script_runs_on_a_bare_machine(tmp_path: Path) -> None:
    """Tests, times, baseline and peers need none of the extras, nor the plugins of the project's own tests."""
    options = "--device cpu --backbone digits-resnet --batch 4 --size 16 --rounds 1 --steps 1 --threads 1"
    variables = bare_environment(tmp_path) | {
        **{"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "OPTIONS": options},
        **{"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "LIMIT": "200"},
    }
    parts = ["tests", "resnet50", "peers"]
    done = subprocess.run(["bash", str(SCRIPT), *parts], env=variables, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout
    assert "skipped" in done.stdout
    network, peers = (json.loads((tmp_path / "out" / f"{part}.json").read_text()) for part in parts[1:])
    assert set(network["de_elbo_over_map"]) == {"l2-sp", "ptyl"}
    assert "conv" in json.dumps(network["profile"])
    assert set(peers["over_sgd"]) == {"sgd", "adamw", "learned-l2"}
    assert peers["left_out"] == {"ivon": "not installed: pip install 'deelbo[peers]'"}
