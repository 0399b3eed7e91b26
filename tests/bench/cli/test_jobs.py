"""What is said of jobs that were submitted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench.cli import jobs as submitted
from bench.cli.console import console
from bench.jobs.client import Job


def test_names_are_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow terminal and where only ASCII can be printed, too: whoever reads a name will type it."""
    name = f"deelbo-{'a' * 60}-18b21f0a-12"
    ended = Job(name, "FAILED", 2, 1e9, 1e9 + 158, "", {"benchmark": "a"})
    cluster = SimpleNamespace(jobs=lambda: [ended], address="http://x")
    monkeypatch.setattr(submitted.Cluster, "connect", lambda address: cluster)
    monkeypatch.setattr(console, "_width", 40)
    assert submitted.status(None, None) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "deelbo-" in line]
    assert line.split() == [name, "failed,", "exit", "code", "2", "2001-09-09", "01:46", "2", "min", "38", "s"]
    assert "\u2026" not in said
