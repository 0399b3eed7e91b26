"""The output of `status`."""

import json
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


def test_status_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All jobs, or one, with stable keys; the exit code is the job's."""
    ended = Job("deelbo-a-1", "FAILED", 1, 1e9, 1e9 + 158, "", {"benchmark": "a", "storage": "s3://x/y"})
    active = Job("deelbo-b-1", "RUNNING", None, 2e9, None, "", {"benchmark": "b", "tracking-uri": "http://m"})
    lines = ["b in s3://x/z", "3/9 done, 2 running, 4 left", "lost, tried again"]
    cluster = SimpleNamespace(list_jobs=lambda: [active, ended], address="http://x", read_lines=lambda _: lines)
    monkeypatch.setattr(Cluster, "connect", lambda _: cluster)
    assert main(["status", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["address"] == "http://x"
    assert [job["progress"] for job in document["jobs"]] == ["3/9 done, 2 running, 4 left", None]
    assert document["jobs"][1] == {
        "job": "deelbo-a-1",
        "benchmark": "a",
        "status": "FAILED",
        "exit_status": 1,
        "started": 1e9,
        "ended": 1e9 + 158,
        "storage": "s3://x/y",
        "tracking_uri": None,
        "version": None,
        "progress": None,
    }
    assert main(["status", "a", "--json"]) == 1
    assert [job["job"] for job in json.loads(capsys.readouterr().out)["jobs"]] == ["deelbo-a-1"]
