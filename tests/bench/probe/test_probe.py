"""What the script that `doctor` sends finds out, on this machine: MLflow, the storage, versions, data."""

from __future__ import annotations

import ast
import base64
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import bench
import deelbo
from bench.probe import __main__ as probe
from bench.probe import node as doctor_node
from bench.probe.__main__ import look
from bench.probe.driver import mlflow
from bench.probe.node import answer, clean, data_of, unseen, version_of
from tests.faults.processes import until
from tests.faults.servers import Server
from tests.helpers.http_server import Answers, serving

HERE = Path(bench.__file__).parent
SENT = sorted(str(path.relative_to(HERE)) for folder in ("probe", "utils") for path in (HERE / folder).glob("*.py"))
INVALID = "Invalid Host header - possible DNS rebinding attack detected"


def healthy_but(status: int, text: str) -> Answers:
    """/health and /version answer, the API does not."""
    return lambda path, _: (200, "3.17.0" if path == "/version" else "OK") if "/api/" not in path else (status, text)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials of whoever runs the tests, and no pauses for network disks."""
    monkeypatch.setattr(doctor_node, "SETTLING", (0.0,))
    for name in ("TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


def questions(**given: Any) -> dict[str, Any]:
    """As `doctor` asks, of little."""
    return {"packages": [], "datasets": [], "data": None, "verify": True, "weights": [], "seconds": 60.0} | given


@pytest.mark.parametrize("name", SENT)
def test_what_is_sent_runs_on_an_old_cluster(name: str) -> None:
    """The files take Python 3.9's grammar, and import the standard library and each other alone at the top."""
    tree = ast.parse((HERE / name).read_text(encoding="utf-8"), feature_version=(3, 9))
    modules = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    own = {module for module in modules if module.partition(".")[0] not in sys.stdlib_module_names}
    assert own <= {
        "bench",
        "bench.probe",
        "bench.probe.node",
        "bench.probe.driver",
        "bench.utils.text",
        "bench.utils.urls",
    }


def test_what_is_sent_is_enough(tmp_path: Path) -> None:
    """Where no cluster can be joined, the files alone, elsewhere, say so in one line of facts and no traceback."""
    for name in ("__init__.py", *SENT):
        place = tmp_path / "bench" / name
        place.parent.mkdir(exist_ok=True, parents=True)
        place.write_bytes((HERE / name).read_bytes())
    (tmp_path / "questions.json").write_text(json.dumps(questions()))
    (tmp_path / "deelbo.py").write_text("raise SystemExit(9)")
    environment = os.environ | {"RAY_ADDRESS": "no address", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": ""}
    ended = subprocess.run(
        [sys.executable, "-m", "bench.probe"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("DEELBO-FACTS ")]
    facts = json.loads(line.removeprefix("DEELBO-FACTS "))
    assert facts["nodes"] == []
    assert "no address" in facts["problem"]
    assert "Traceback" not in ended.stderr


def test_an_mlflow_whose_api_answers() -> None:
    """A server that takes a request of the API is fine, and its version is known."""
    with serving(lambda path, _: (200, "3.17.0" if path == "/version" else '{"experiments": []}')) as (uri, _):
        assert mlflow(uri) == {"ok": True, "status": 200, "words": "", "version": "3.17.0"}


def test_an_mlflow_that_is_healthy_and_takes_nothing() -> None:
    """A server whose /health passes and whose API answers 403 is one that refuses, in its words."""
    with serving(healthy_but(403, INVALID)) as (uri, _):
        assert mlflow(uri) == {"ok": False, "status": 403, "words": INVALID, "version": "3.17.0"}


def test_a_server_that_is_no_mlflow() -> None:
    """A page is no answer of MLflow's, nor is a JSON text that is no object."""
    for text in ("<html>hello</html>", "[]"):
        with serving(lambda path, _, text=text: (200, text)) as (uri, _):
            found = mlflow(uri)
            assert found is not None
            assert (found["ok"], found["words"]) == (False, "the answer is not MLflow's")


def test_nobody_listens() -> None:
    """A port without a server is a fact in the system's words."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        found = mlflow(f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert found == {"ok": False, "status": None, "words": "[Errno 111] Connection refused"}


def test_mlflow_is_asked_as_its_client_would_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """User and password of the URI or the environment, or a token, go along, and come back in no fact."""
    basic = "Basic " + base64.b64encode(b"me:hush").decode()

    def only_for(wanted: str) -> Answers:
        return lambda _, headers: (200, "{}") if headers["Authorization"] == wanted else (401, "who are you, me:hush?")

    with serving(only_for(basic)) as (uri, _):
        found = mlflow(uri)
        assert found is not None
        assert found["status"] == 401
        named = mlflow(uri.replace("://", "://me:hush@"))
        assert named is not None
        assert named["ok"]
        assert "hush" not in str(named)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
        assert (mlflow(uri) or {})["ok"]
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with serving(only_for("Bearer secret")) as (uri, _):
        assert (mlflow(uri) or {})["ok"]


def test_an_mlflow_database(tmp_path: Path) -> None:
    """A sqlite URI needs a folder to be written in; another database a port that is open."""
    assert (mlflow(f"sqlite:///{tmp_path}/mlflow.db") or {})["ok"]
    lacking = mlflow(f"sqlite:///{tmp_path}/nowhere/mlflow.db") or {}
    assert not lacking["ok"]
    assert f"{tmp_path}/nowhere" in lacking["words"]
    with socket.socket() as database:
        database.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{database.getsockname()[1]}/runs"
        database.listen()
        assert (mlflow(f"postgresql+psycopg2://me:hush@{place}") or {})["ok"]
    closed = mlflow(f"postgresql://me:hush@{place}") or {}
    assert not closed["ok"]
    assert "hush" not in str(closed)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_real_mlflow_that_allows_other_hosts(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlflow server --allowed-hosts other.example` answers /health and refuses the API with 403, which is found out;
    with this host among them it takes requests."""
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "other.example")
    with Server(tmp_path / "other.db", database) as server:
        found = mlflow(server.uri) or {}
        assert (found["ok"], found["status"], found["words"]) == (False, 403, INVALID)
        server.kill()
        monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", f"other.example,127.0.0.1:{server.port}")
        server.start()
        until(lambda: (mlflow(server.uri) or {})["ok"], "the API answers", 60)


def test_a_storage_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    """A node writes into a storage that is not there yet, sees another's file, and nothing is left of it."""
    url = str(tmp_path / "new" / "storage")
    first = answer(questions(storage=url), ".probe-0")["storage"]
    second = answer(questions(storage=url), ".probe-1")["storage"]
    assert first == {"wrote": True, "why": None, "made": [url, str(tmp_path / "new")]}
    assert (second["wrote"], second["made"]) == (True, [])
    assert unseen(url, {"a": ".probe-0", "b": ".probe-1"}) == {"unseen": []}
    clean(url, ".probe-0", first["made"])
    assert unseen(url, {"a": ".probe-0", "b": ".probe-1"}) == {"unseen": ["a"]}
    clean(url, ".probe-1", first["made"])
    assert list(tmp_path.iterdir()) == []


def test_a_storage_keeps_what_is_in_it(tmp_path: Path) -> None:
    """What was in a storage stays; a file URL is a folder too."""
    (tmp_path / "record.json").write_text("{}")
    found = answer(questions(storage=f"file://{tmp_path}"), ".probe-0")["storage"]
    assert (found["wrote"], found["made"]) == (True, [])
    clean(f"file://{tmp_path}", ".probe-0", found["made"])
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_storage_that_cannot_be_made(tmp_path: Path) -> None:
    """A storage below a file cannot be written: the reason names no file of the probe's, so that nodes agree in it."""
    (tmp_path / "file").write_text("")
    found = answer(questions(storage=str(tmp_path / "file" / "storage")), ".probe-0")["storage"]
    assert found["wrote"] is False
    assert "probe-0" not in found["why"]
    assert "Error" in found["why"]


def test_a_storage_that_is_a_url() -> None:
    """An fsspec URL is written, read and removed; one whose package is missing is a fact."""
    found = answer(questions(storage="memory://doctor"), ".probe-0")
    assert found["storage"]["wrote"]
    assert "the storage" not in found["free"]
    assert unseen("memory://doctor", {"a": ".probe-0", "b": ".probe-1"}) == {"unseen": ["b"]}
    clean("memory://doctor", ".probe-0", [])
    assert unseen("memory://doctor", {"a": ".probe-0"}) == {"unseen": ["a"]}
    missing = answer(questions(storage="nonsense://x/y"), ".probe-0")["storage"]
    assert missing["wrote"] is False
    assert "nonsense" in missing["why"]


def test_data_and_weights(tmp_path: Path, data_root: Path) -> None:
    """Datasets that are not there and files of weights that are not there are facts, each with its reason."""
    asked = questions(datasets=["CIFAR-10", "mnist-digits"], data=str(data_root), verify=False)
    assert data_of(asked) == {"data": {"CIFAR-10": None, "mnist-digits": None}}
    lacking = data_of(asked | {"data": str(tmp_path)})["data"]
    assert lacking["mnist-digits"] is None
    assert lacking["CIFAR-10"].startswith(f"CIFAR-10 is not there: {tmp_path} has no folder")
    (tmp_path / "weights.pt").write_text("")
    files = [{"backbone": "resnet50", "file": str(tmp_path / name)} for name in ("weights.pt", "other.pt")]
    there, gone = answer(questions(weights=files), "")["weights"]
    assert there["missing"] is None
    assert gone["missing"] == f"there is no file {tmp_path / 'other.pt'}"


@pytest.mark.slow
@pytest.mark.cluster
def test_a_node_that_reads_for_long_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose data take longer than a node has to answer has said all else, and that they are late."""
    import ray

    def reads_on(_: Any) -> dict[str, Any]:
        time.sleep(120)
        return {"data": {}}

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        asked = questions(datasets=["mnist-digits"], seconds=20.0)
        (quick,) = look(asked)["nodes"]
        monkeypatch.setattr(probe, "data_of", reads_on)
        (node,) = look(asked)["nodes"]
    finally:
        ray.shutdown()
    assert (quick["data"], quick["unread"]) == ({"mnist-digits": None}, None)
    assert (node["problem"], node["python"]) == (None, quick["python"])
    assert (node["data"], node["unread"]) == ({}, {"problem": "no answer in 20 s", "late": True})


def test_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package's version is what is installed; deelbo's is that of the files that would be imported."""
    assert version_of("deelbo") == deelbo.__version__
    assert version_of("no-such-package") is None
    packages = answer(questions(packages=["ray", "no-such-package"]), "")["packages"]
    assert packages["no-such-package"] is None
    assert packages["ray"].count(".") == 2


def test_what_a_method_imports_is_looked_for() -> None:
    """By the name to import, among the packages; nothing is imported for it."""
    found = answer(questions(modules=["optuna", "no_such_module", "no_such.module"]), "")["packages"]
    assert found == {"optuna": "there", "no_such_module": None, "no_such.module": None}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from bench.probe.node import importable; importable('laplace');"
            "sys.exit('laplace' in sys.modules)",
        ],
        check=False,
    )
    assert done.returncode == 0
