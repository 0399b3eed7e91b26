"""What is printed can be pasted and is printed in any encoding; paths are taken from the home folder."""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.cli.arguments import to_path
from bench.cli.console import quoted
from bench.cli.main import build_parser, main
from bench.config.loading import load_benchmark
from bench.exceptions import ConfigError
from bench.storage.files import Storage
from bench.storage.records import RecordStore
from bench.tracking.client import tracking_uri
from cluster.local import __main__ as local_cluster

ROOT = Path(__file__).resolve().parents[3]
ODD_NAMES = ["two words", "o'brien", "$HOME", "a;b", "-x", "~", "~root", "ü", "*", ":heart:"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and another current folder."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_printed_command_can_be_pasted(
    name: str, home: Path, capsys: pytest.CaptureFixture[str], storage: RecordStore
) -> None:
    """A shell that gets the printed `sync` command passes on the storage's folder, whatever its name."""
    folder = Path(name).absolute()
    Path(storage.url).rename(folder)
    assert main(["ui", str(folder)]) == 2
    line = capsys.readouterr().err
    command = line[line.index("`") + 1 : line.rindex("`")]
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    ).stdout
    assert Storage(shown.splitlines()[-1]).url == str(folder)
    assert not shown.splitlines()[-1].startswith("-")


def test_a_relative_name_is_short(home: Path) -> None:
    """Paths below the current folder are relative, others absolute; simple names have no quotes."""
    assert quoted(Path("x", "y").absolute()) == "x/y"
    assert quoted(home) == str(home)


def test_the_local_cluster_prints_quoted_commands(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make cluster` with a folder of two words prints commands that can be pasted."""
    monkeypatch.setattr(local_cluster, "start_services", lambda *_: None)
    monkeypatch.setattr(local_cluster.State, "problems", lambda *_: [])
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)  # which Ray sets in a process that has started it
    folder = home / "two words"
    try:
        assert local_cluster.up(folder) == 0
    finally:
        local_cluster.State.read(folder).temporary.rmdir()
    words = shlex.split(capsys.readouterr().out.split("Next:")[1].replace("#", ""))
    assert str(folder / "storage") in words
    assert f"CLUSTER={folder}" in words


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding(encoding: str, tmp_path: Path, storage: RecordStore) -> None:
    """Letters that the terminal lacks are replaced, on both streams; they end no command."""
    Path(storage.url).rename(tmp_path / "st\u016f-\u2713")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    for arguments, code in (
        (["replay", "st\u016f-\u2713"], 2),
        (["report", "st\u016f-\u2713"], 0),
        (["ui", "\u2713"], 2),
    ):
        command = [sys.executable, "-m", "bench", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        text = (done.stdout + done.stderr).decode(encoding)
        assert done.returncode == code, text
        assert "codec" not in text
        assert "\u2713" in text or "\\u2713" in text


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)


def test_every_path_of_the_command_line_is_expanded() -> None:
    """Arguments that are paths are converted by `to_path`, not by pathlib, which leaves a tilde as it is."""
    types = [action.type for action in actions(build_parser()) if action.type is not None]
    assert types.count(to_path) == 12
    assert not any(isinstance(kind, type) and issubclass(kind, Path) for kind in types)


def test_tildes_stand_for_the_home_folder(home: Path, capsys: pytest.CaptureFixture[str], storage: RecordStore) -> None:
    """In storages, configurations, outputs and databases; nothing by the name ~ is made."""
    Path(storage.url).rename(home / "st")
    (home / "x.yaml").write_text("name: x\n")
    assert main(["sync", "~/st", "--tracking-uri=sqlite:///~/ml.db"]) == 0
    assert main(["report", "file://~/st", "--out=~/out"]) == 0
    assert main(["plan", "quickstart", "--speed=~/speed.json"]) == 2
    assert f"{home}/speed.json: not a result" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", "quickstart", "--speed=~nobody-at-all/y"])
    assert "no home folder is known for ~nobody-at-all" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"~/x\.yaml: "):
        load_benchmark("~/x.yaml")
    assert {path.name for path in home.iterdir()} >= {"ml.db", "out", "st"}
    assert list(Path.cwd().iterdir()) == []
    assert tracking_uri(RecordStore("~/st")) == f"sqlite:///{home}/st/mlflow.db"


def test_a_storage_of_another_user(
    storage: RecordStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the file, the owner and what to do; MLflow's retries are not waited for."""

    def deny(self: Any, name: str) -> bytes:
        raise PermissionError(13, "Permission denied", f"{storage.url}/{name}")

    monkeypatch.setattr("os.access", lambda *_: False)
    assert main(["sync", storage.url]) == 2
    monkeypatch.setattr(Storage, "read_file", deny)
    for command in ("report", "replay", "ui"):
        assert main([command, storage.url]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    owner = Path(storage.url).owner()
    for line in lines:
        assert f"cannot be used (Permission denied; {storage.url}" in line
        assert f"belongs to {owner}): choose another place (--storage, --out, $DEELBO_CACHE, $TMPDIR), or copy" in line
