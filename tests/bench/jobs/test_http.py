"""What is said of clusters that do not answer as they should; each a real server on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench.exceptions import ConfigError, UnreachableError
from bench.jobs.client import Cluster, Job, entrypoint
from bench.jobs.http import address_of, refusal

Answers = dict[str, tuple[int, Any]]


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], str]]:
    """A server with these answers by path; its address."""
    servers = []

    def start(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, content = answers.get(self.path, (404, {}))
                if callable(content):
                    code, content = content(self.headers)
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: Any) -> None:
                """In silence."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


OPEN: Answers = {
    "/api/authentication_mode": (200, {"authentication_mode": "disabled"}),
    "/api/version": (200, {"version": "4", "ray_version": "2.9.3", "ray_commit": "x", "session_name": "s"}),
}


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without a token; where it would be."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever a test sets
        monkeypatch.delenv(name)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path / ".ray" / "auth_token"


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "auto", "http://[::1", "http://h:x"]
)
def test_an_address_must_be_a_dashboards(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray has several ports, and people try them all."""
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="http://HOST:8265"):
        address_of(address)


def test_the_address_may_be_in_rays_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given wins."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265/")
    assert address_of(None) == "http://head:8265"
    assert address_of("https://other") == "https://other"


def test_the_address_that_is_given_is_the_one_that_is_asked(
    serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's client by itself would ask the one in the environment, whatever it is told."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", serve(OPEN))
    monkeypatch.setenv("RAY_ADDRESS", serve(OPEN))
    version = OPEN["/api/version"][1] | {"ray_version": "2.50.0"}
    cluster = Cluster.connect(serve(OPEN | {"/api/version": (200, version), "/api/jobs/": (200, [])}))
    assert cluster.ray_version == "2.50.0"
    assert cluster.jobs() == []
    assert cluster.option == f" --address {cluster.address}"


def test_nobody_there_is_told_with_its_cause() -> None:
    """One line, without the password in the address."""
    with pytest.raises(UnreachableError, match="Connection refused") as caught:
        Cluster.connect("http://me:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)


def test_something_else_that_listens_is_no_cluster(serve: Callable[[Answers], str]) -> None:
    """A page that is no JSON, or JSON of another kind."""
    for page in (b"<html>welcome</html>", {"other": 1}, []):
        with pytest.raises(ConfigError, match="is no Ray dashboard"):
            Cluster.connect(serve({"/api/authentication_mode": (200, page)}))


def test_what_stands_before_a_dashboard_and_fails_is_no_answer(serve: Callable[[Answers], str]) -> None:
    """A status of 5xx may pass; it does not mean that no token is wanted."""
    with pytest.raises(UnreachableError, match=r"does not answer \(status 503\)"):
        Cluster.connect(serve(OPEN | {"/api/authentication_mode": (503, b"<html>no backend</html>")}))


def test_a_busy_dashboard_is_still_one(serve: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes too long is said to be so, and may answer later."""
    monkeypatch.setattr("bench.jobs.http.TIMEOUT", 0.3)

    def late(headers: Any) -> tuple[int, Any]:
        time.sleep(1)
        return 200, {"authentication_mode": "disabled"}

    with pytest.raises(UnreachableError, match="gave no answer in"):
        Cluster.connect(serve(OPEN | {"/api/authentication_mode": (200, late)}))


def test_what_does_not_talk_http_is_no_cluster() -> None:
    """As Ray's own port, which is easily taken for the dashboard's: its bytes are not repeated."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x00\x00\x18\x04\x00\x00")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConfigError, match="is no Ray dashboard"):
            Cluster.connect(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_the_version_of_the_head_is_known(serve: Callable[[Answers], str]) -> None:
    """Whatever it is: `doctor` judges it."""
    cluster = Cluster.connect(serve(OPEN))
    assert (cluster.ray_version, cluster.token_mode) == ("2.9.3", "disabled")


def test_an_older_cluster_that_knows_no_tokens_answers_too(serve: Callable[[Answers], str]) -> None:
    """It has no such path."""
    assert Cluster.connect(serve({"/api/version": OPEN["/api/version"]})).token_mode == "disabled"


def test_a_cluster_that_wants_a_token_says_where_it_goes(serve: Callable[[Answers], str], no_token: Path) -> None:
    """Before anything is sent."""
    address = serve(OPEN | {"/api/authentication_mode": (200, {"authentication_mode": "token"})})
    with pytest.raises(ConfigError, match=r"wants a token.*RAY_AUTH_TOKEN") as caught:
        Cluster.connect(address)
    assert str(no_token) in str(caught.value)


def test_an_empty_token_is_none(serve: Callable[[Answers], str], no_token: Path) -> None:
    """A file with nothing in it, also where the mode is set already."""
    no_token.parent.mkdir()
    no_token.touch()
    address = serve(OPEN | {"/api/authentication_mode": (200, {"authentication_mode": "token"})})
    with pytest.raises(ConfigError, match="wants a token"):
        Cluster.connect(address)
    os.environ["RAY_AUTH_MODE"] = "token"
    with pytest.raises(ConfigError, match="wants a token"):
        Cluster.connect(address)


def test_a_token_goes_to_no_cluster_that_wants_none(serve: Callable[[Answers], str]) -> None:
    """Whatever the environment says."""
    asked = []

    def version(headers: Any) -> tuple[int, Any]:
        asked.append(str(headers))
        return OPEN["/api/version"]

    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "abc"}
    line = "import sys; from bench.jobs.client import Cluster; print(Cluster.connect(sys.argv[1]).token_mode)"
    done = subprocess.run(
        [sys.executable, "-c", line, serve(OPEN | {"/api/version": (200, version)})],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "disabled\n", done.stderr
    assert len(asked) == 1
    assert "abc" not in asked[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("Request failed with status code 502: <html>\n<h1>Bad Gateway</h1>\n</html>\n.", "(status code 502)"),
        ('Request failed with status code 500: {"detail": "busy"}.', '(status code 500: {"detail": "busy"})'),
        ("Request failed with status code 503.", "(status code 503)"),
        ("Request failed with status code 500: Traceback:\n  File x\nNo available agent.", ": No available agent)"),
    ],
)
def test_what_a_failing_cluster_says(words: str, told: str) -> None:
    """The status and the end of Ray's traceback, not the page of what stands before it."""
    error = refusal(RuntimeError(words), "http://x")
    assert isinstance(error, UnreachableError)
    assert told in str(error)


def test_what_an_entry_point_runs_is_quoted_for_the_shell() -> None:
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
def test_a_jobs_exit_code_is_its_runs(status: str, exit_code: int | None, code: int) -> None:
    """Non-zero where trials failed, or where it never started."""
    assert Job("deelbo-x-1", status, exit_code, 1.0, None, "", {}).code == code
