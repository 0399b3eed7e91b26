"""Checks of --storage and --tracking-uri."""

import re
from pathlib import Path

import pytest

from bench.config.places import check_database, check_places, expand_tracking_uri, resolve_storage
from bench.exceptions import ConfigError

SERVER = "http://mlflow:5000"


@pytest.mark.parametrize(
    ("storage", "tracking", "message"),
    [
        (None, None, "no --storage"),
        ("runs/x", None, "absolute path"),
        ("file://runs/x", None, "absolute path"),
        ("s3://", SERVER, "is incomplete"),
        ("s3://bucket/x", None, "give --tracking-uri"),
        ("s3://key:secret@bucket/x", SERVER, "s3://key:***@bucket/x has a password in it"),
        ("sftp://me:secret@host/x", SERVER, "has a password in it"),
        ("https://token@host/x", SERVER, "has a password in it"),
        ("/shared/x", "mlflow.example:5000", "expected one of http"),
        ("/shared/x", "sqlite:///mlflow.db", "relative to this machine"),
    ],
)
def test_invalid_places_are_refused(storage: str | None, tracking: str | None, message: str) -> None:
    """A location that is incomplete, relative to this machine or contains a password is refused in one line."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_places(storage, tracking)


@pytest.mark.parametrize(
    ("storage", "canonical"),
    [
        ("/shared/x/", "/shared/x"),
        ("/shared//x", "/shared/x"),
        ("//shared/x", "/shared/x"),
        ("/shared/y/../x", "/shared/x"),
        ("file:///shared/x/", "/shared/x"),
        ("s3://bucket/x/", "s3://bucket/x"),
        ("sftp://me@host/x", "sftp://me@host/x"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
    ],
)
def test_storage_has_one_canonical_form(storage: str, canonical: str) -> None:
    """Different spellings of one storage give the same string; a directory needs no tracking URI."""
    assert check_places(storage, None if canonical.startswith("/") else SERVER) == canonical


def test_tildes_are_this_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line a tilde is this user's home folder, as the shell expands it; not a folder of that name."""
    monkeypatch.setenv("HOME", "/home/me")
    assert check_places("~/x", "sqlite:////x.db") == "/home/me/x"
    assert expand_tracking_uri("sqlite:///~/x.db") == "sqlite:////home/me/x.db"
    assert expand_tracking_uri("http://h/~/x") == "http://h/~/x"
    with pytest.raises(ValueError, match="no home folder is known for ~nobody-at-all"):
        check_places("~nobody-at-all/x", None)


def test_a_name_that_is_not_text_is_refused() -> None:
    """A folder's name in bytes that this terminal's encoding cannot read is refused with a remedy."""
    with pytest.raises(ConfigError, match=r"cannot be read as text .*: set LC_ALL=C.UTF-8"):
        resolve_storage("/x/\udcff")


@pytest.mark.parametrize("folder", ["/proc", "/nowhere/at/all"])
def test_database_that_cannot_be_opened_is_refused(folder: str) -> None:
    """A sqlite file in a directory that does not exist or cannot be written is refused."""
    with pytest.raises(ConfigError, match="expected sqlite:/// and a file in an existing directory"):
        check_database(f"sqlite:///{folder}/x.db")


def test_database_check_leaves_no_file(tmp_path: Path) -> None:
    """The check creates nothing; other URIs are not checked."""
    check_database(f"sqlite:///{tmp_path}/x.db")
    check_database("sqlite:///file:/nowhere/x.db?mode=ro")
    check_database(SERVER)
    assert list(tmp_path.iterdir()) == []
