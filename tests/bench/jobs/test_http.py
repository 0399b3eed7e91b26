"""Connections to clusters that answer wrongly, late or not at all; each is a real server on loopback."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.exceptions import ConfigError, UnreachableError
from bench.jobs.client import Cluster, Job, entrypoint
from bench.jobs.http import resolve_address, translate_error
from tests.helpers.http_server import serving

Pages = dict[str, tuple[int, Any]]
Serve = Callable[..., str]
MODE, VERSION = "/api/authentication_mode", "/api/version"
OPEN: Pages = {
    MODE: (200, {"authentication_mode": "disabled"}),
    VERSION: (200, {"version": "4", "ray_version": "2.9.3", "ray_commit": "x", "session_name": "s"}),
}
NEEDS_TOKEN = {MODE: (200, {"authentication_mode": "token"})}


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers of an open cluster, some of whose pages are changed; return the address."""
    with ExitStack() as stack:

        def start(changed: Pages | None = None, requests: list[Any] | None = None) -> str:
            pages = OPEN | (changed or {})

            def answer(path: str, _: Any) -> tuple[int, str]:
                status, content = pages.get(path, (404, {}))
                return status, content if isinstance(content, str) else json.dumps(content)

            address, headers = stack.enter_context(serving(answer))
            if requests is not None:
                requests.append(headers)
            return address

        yield start


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home directory without a token; returns the token's path."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # restored afterwards, although the code under test sets it
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "auto", "http://[::1", "http://h:x"]
)
def test_address_must_be_a_dashboard(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses of Ray's other ports and malformed URLs are refused."""
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="http://HOST:8265"):
        resolve_address(address)


def test_address_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument takes precedence over Ray's variable."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265/")
    assert resolve_address(None) == "http://head:8265"
    assert resolve_address("https://other") == "https://other"


def test_requests_go_to_the_given_address(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client, which prefers the address in the environment, asks the given one."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", serve())
    monkeypatch.setenv("RAY_ADDRESS", serve())
    version = OPEN[VERSION][1] | {"ray_version": "2.50.0"}
    cluster = Cluster.connect(serve({VERSION: (200, version), "/api/jobs/": (200, [])}))
    assert cluster.ray_version == "2.50.0"
    assert cluster.list_jobs() == []
    assert cluster.option == f" --address {cluster.address}"


def test_refused_connection_is_one_line_with_its_cause() -> None:
    """The message contains the system's error, and not the password of the address."""
    with pytest.raises(UnreachableError, match="Connection refused") as caught:
        Cluster.connect("http://me:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("page", "kind", "message"),
    [
        ((200, "<html>welcome</html>"), ConfigError, "is not a Ray dashboard"),
        ((200, {"other": 1}), ConfigError, "is not a Ray dashboard"),
        ((200, []), ConfigError, "is not a Ray dashboard"),
        ((503, "<html>no backend</html>"), UnreachableError, r"does not answer \(status 503\)"),
    ],
)
def test_server_that_is_not_a_cluster(page: tuple[int, Any], kind: type[Exception], message: str, serve: Serve) -> None:
    """Another server is refused; a gateway's 5xx may pass, and does not mean that no token is needed."""
    with pytest.raises(kind, match=message):
        Cluster.connect(serve({MODE: page}))


def test_slow_dashboard_is_a_passing_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time-out raises an error that means: try again."""
    monkeypatch.setattr("bench.jobs.http.TIMEOUT_SECONDS", 0.3)

    def answer(path: str, _: Any) -> tuple[int, str]:
        time.sleep(1)
        return 200, path

    with serving(answer) as (address, _), pytest.raises(UnreachableError, match="timed out"):
        Cluster.connect(address)


def test_port_that_does_not_speak_http() -> None:
    """Ray's own port, which is easily mistaken for the dashboard's, is refused without its bytes in the message."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x00\x00\x18\x04\x00\x00")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConfigError, match="is not a Ray dashboard"):
            Cluster.connect(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize("mode", [OPEN[MODE], (404, {})], ids=["open", "older-ray"])
def test_version_and_token_mode_are_read(mode: tuple[int, Any], serve: Serve) -> None:
    """Any version of Ray is accepted here; one that has no page for the token mode needs no token."""
    cluster = Cluster.connect(serve({MODE: mode}))
    assert (cluster.ray_version, cluster.token_mode) == ("2.9.3", "disabled")


@pytest.mark.parametrize("mode", [None, "token"])
@pytest.mark.parametrize("empty_file", [False, True])
def test_missing_token_is_refused(
    mode: str | None, empty_file: bool, serve: Serve, no_token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token, or with an empty file, the message says where it belongs; Ray's own variable does not matter."""
    if empty_file:
        no_token.parent.mkdir()
        no_token.touch()
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ConfigError, match=r"wants a token.*RAY_AUTH_TOKEN") as caught:
        Cluster.connect(serve(NEEDS_TOKEN))
    assert str(no_token) in str(caught.value)


def test_token_is_not_sent_to_an_open_cluster(serve: Serve) -> None:
    """A cluster that needs no token gets none, whatever the environment says."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "abc"}
    line = "import sys; from bench.jobs.client import Cluster; print(Cluster.connect(sys.argv[1]).token_mode)"
    requests: list[Any] = []
    command = [sys.executable, "-c", line, serve(requests=requests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "disabled\n", done.stderr
    assert len(requests[0]) == 2
    assert "abc" not in "".join(map(str, requests[0]))


@pytest.mark.parametrize(
    "rest", [": <html>\n<h1>Bad Gateway</h1>\n</html>\n.", ": Traceback:\n  File x\nNo agent.", "."]
)
def test_server_errors_are_shortened(rest: str) -> None:
    """A 5xx is shown as its status, without Ray's traceback or a gateway's HTML page."""
    error = translate_error(RuntimeError(f"Request failed with status code 502{rest}"), "http://x")
    assert isinstance(error, UnreachableError)
    assert str(error) == "the cluster at http://x does not answer (status code 502): see its dashboard"


def test_entrypoint_is_quoted_for_the_shell() -> None:
    """A storage with a space or a semicolon in it is one word."""
    assert entrypoint(["-m", "bench", "--storage", "/a b;rm"]) == "exec sh entrypoint.sh -m bench --storage '/a b;rm'"


@pytest.mark.parametrize(
    ("status", "exit_code", "code"),
    [
        ("PENDING", None, 0),
        ("RUNNING", None, 0),
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", -9, 2),
        ("FAILED", None, 2),
        ("STOPPED", None, 130),
    ],
)
def test_exit_code_of_a_job_is_that_of_its_run(status: str, exit_code: int | None, code: int) -> None:
    """The exit code is not zero if trials failed, or the job never started or was killed."""
    assert Job("deelbo-x-1", status, exit_code, 1.0, None, "", {}).run_code == code
