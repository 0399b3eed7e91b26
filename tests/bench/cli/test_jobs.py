"""The output of `status`."""

from types import SimpleNamespace

import pytest

from bench.cli.console import console
from bench.cli.main import main
from bench.jobs.client import Cluster, Job


def test_names_are_never_shortened(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name, which will be copied, is complete on a narrow terminal and where only ASCII can be printed."""
    name = f"deelbo-{'a' * 60}-18b21f0a-12"
    ended = Job(name, "FAILED", 2, 1e9, 1e9 + 158, "", {"benchmark": "a"})
    cluster = SimpleNamespace(list_jobs=lambda: [ended], address="http://x")
    monkeypatch.setattr(Cluster, "connect", lambda _: cluster)
    monkeypatch.setattr(console, "_width", 40)
    assert main(["status"]) == 0
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if "deelbo-" in line]
    assert line.split() == [name, "failed,", "exit", "code", "2", "2001-09-09", "01:46", "2", "min", "38", "s"]
    assert "\u2026" not in output
