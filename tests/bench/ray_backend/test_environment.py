"""The environment that Ray is started with."""

import os
import socket
from pathlib import Path

import pytest

from bench.config.sections import Resources
from bench.exceptions import ConfigError
from bench.ray_backend import connect
from bench.ray_backend.environment import configure_ray


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what the tests set."""
    for name in [name for name in os.environ if name.startswith(("RAY_", "TUNE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.mark.parametrize("address", [None, "head:6379"])
def test_a_home_that_cannot_hold_rays_token(address: str | None) -> None:
    """Ray on this machine gets a token of its own; that of a cluster is never replaced."""
    os.environ["HOME"] = "/proc/nonexistent"
    configure_ray(address)
    assert ("RAY_AUTH_TOKEN" in os.environ) == (address is None)


def test_a_home_that_can_hold_it(tmp_path: Path) -> None:
    """Otherwise Ray keeps its token there, where its other tools find it."""
    os.environ["HOME"] = str(tmp_path)
    configure_ray(None)
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_folder_for_temporary_files_that_is_too_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own error about a socket's path becomes a line that names the variable."""

    def fail(**options: object) -> None:
        raise OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /long")

    monkeypatch.setattr(connect.ray, "init", fail)
    with pytest.raises(ConfigError, match=r"too long for Ray's sockets .*: set \$RAY_TMPDIR to a short one, such as"):
        connect._initialize(Resources(), None)


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A $TMPDIR that Ray cannot make is named with what to do."""
    monkeypatch.setenv("TMPDIR", "/proc/nowhere")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with pytest.raises(ConfigError, match=r"no folder for temporary files \(.*/proc/nowhere.*\): set \$TMPDIR"):
        connect._initialize(Resources(), None)


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "[::1]:{}", "localhost:99999"])
def test_nothing_listens_at_the_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is not asked to join, as it would try for minutes and print each attempt."""
    monkeypatch.setattr(connect.ray, "init", lambda **_: pytest.fail("Ray was asked"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=r"^no Ray cluster answers at .*: check --address"):
        connect._initialize(Resources(), address.format(port))
