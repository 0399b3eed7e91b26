"""The facts that the probe collects on this machine: MLflow, the storage, versions, data."""

import ast
import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
import deelbo
from bench.doctor.examine import EXTENDED_PACKAGE
from bench.probe import MARKER, cluster, node
from bench.probe.cluster import OTHER_SERVER, check_mlflow, inspect_cluster
from bench.probe.node import collect_node_info, installed_version, missing_markers, read_datasets, remove_marker
from tests.faults.processes import until
from tests.faults.servers import Server
from tests.helpers.http_server import Answers, serving
from tests.helpers.plugins import write_plugin
from tests.helpers.tiny_bert import write_bert

BENCH = Path(bench.__file__).parent
INVALID = "Invalid Host header - possible DNS rebinding attack detected"


def healthy_but(status: int, text: str) -> Answers:
    """Answer /health correctly, and the API as given."""
    return lambda path, _: (status, text) if "/api/" in path else (200, "OK")


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the credentials of whoever runs the tests, and the pauses for network disks."""
    monkeypatch.setattr(node, "RETRY_PAUSES_SECONDS", (0.0,))
    for name in ("TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


def request_for(**changed: Any) -> dict[str, Any]:
    """Make a request as `doctor` does, for a few facts."""
    return {"packages": [], "datasets": [], "data": None, "verify": True, "weights": [], "seconds": 60.0} | changed


@pytest.mark.parametrize("name", ["__init__.py", "probe/__init__.py", "probe/__main__.py"])
def test_first_files_are_valid_on_old_pythons(name: str) -> None:
    """Files run before the check of Python's version have the grammar of 3.6, and import the standard library."""
    tree = ast.parse((BENCH / name).read_text(encoding="utf-8"), feature_version=(3, 6))
    modules = {alias.name for part in tree.body if isinstance(part, ast.Import) for alias in part.names}
    modules |= {part.module or "" for part in tree.body if isinstance(part, ast.ImportFrom)}
    assert modules <= {"bench.probe", *sys.stdlib_module_names} - {"__future__"}


OLD = "sys.version_info = (3, 9, 18, 'final', 0); "


@pytest.mark.parametrize(("version", "problem"), [("", "no address"), (OLD, "Python 3.9.18 is too old")])
def test_sent_files_are_sufficient(version: str, problem: str, tmp_path: Path) -> None:
    """The sent files alone print one line of results and no traceback: without a cluster, and on an old Python."""
    for path in (BENCH / "__init__.py", *BENCH.glob("probe/*.py"), *BENCH.glob("utils/*.py")):
        copy = tmp_path / path.relative_to(BENCH.parent)
        copy.parent.mkdir(exist_ok=True, parents=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "request.json").write_text(json.dumps(request_for()))
    (tmp_path / "deelbo.py").write_text("raise SystemExit(9)")
    script = f"import sys, runpy; {version}runpy.run_module('bench.probe', run_name='__main__')"
    env = os.environ | {"RAY_ADDRESS": "no address", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": ""}
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, **options)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(MARKER)]
    report = json.loads(line.removeprefix(MARKER))
    assert report["nodes"] == []
    assert problem in report["problem"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("status", "text", "problem"),
    [
        (200, '{"experiments": []}', None),
        (403, INVALID, INVALID),
        (200, "<html>hello</html>", OTHER_SERVER),
        (200, "[]", OTHER_SERVER),
    ],
)
def test_answers_of_mlflow(status: int, text: str, problem: str | None) -> None:
    """A server counts only if its API answers as MLflow's, however healthy it says it is; its message is kept."""
    with serving(healthy_but(status, text)) as (uri, _):
        assert check_mlflow(uri) == {"status": status, "problem": problem}


def test_mlflow_that_is_not_there() -> None:
    """A port without a server is reported with the system's error; a database is not checked."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        found = check_mlflow(f"http://me:hush@127.0.0.1:{closed.getsockname()[1]}")
    assert found == {"status": None, "problem": "[Errno 111] Connection refused"}
    assert check_mlflow("postgresql://mlflow/runs") is None


def test_credentials_for_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user of the URI or of the environment, or a token, are sent as MLflow's client does, and not reported."""

    def check(uri: str) -> dict[str, Any]:
        found = check_mlflow(uri) or {}
        assert "hush" not in str(found)
        return found

    def accept(authorization: str) -> Answers:
        return lambda _, headers: (200, "{}") if headers["Authorization"] == authorization else (401, "who are you?")

    with serving(accept("Basic " + base64.b64encode(b"me:hu@sh").decode())) as (uri, _):
        assert check(uri)["status"] == 401
        assert check(uri.replace("://", "://me:hu@sh@"))["problem"] is None
        assert check(uri.replace("://", "://me:hu%40sh@"))["problem"] is None
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hu@sh")
        assert check(uri)["problem"] is None
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with serving(accept("Bearer secret")) as (uri, _):
        assert check(uri)["problem"] is None


@pytest.mark.slow
@pytest.mark.cluster
def test_mlflow_that_allows_other_hosts(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real server that does not allow this host is found out, and accepted once it does."""
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "other.example")
    with Server(tmp_path / "other.db", database) as server:
        found = check_mlflow(server.uri) or {}
        assert found == {"status": 403, "problem": INVALID}
        server.kill()
        monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", f"other.example,127.0.0.1:{server.port}")
        server.start()
        until(lambda: check_mlflow(server.uri) == {"status": 200, "problem": None}, "the API answers", 60)


@pytest.mark.parametrize("url", ["{tmp_path}", "file://{tmp_path}", "{tmp_path}/new/storage", "memory://doctor"])
def test_storage_is_left_unchanged(url: str, tmp_path: Path) -> None:
    """A node writes into a storage, or where it will be made, sees another node's file, and nothing is left."""
    url = url.format(tmp_path=tmp_path)
    (tmp_path / "record.json").write_text("{}")
    markers = {"a": ".probe-0", "b": ".probe-1"}
    for marker in markers.values():
        found = collect_node_info(request_for(storage=url), marker)
        assert found["storage"] == {"problem": None}
        assert ("the storage" in found["free"]) is (url != "memory://doctor")
    assert missing_markers(url, markers) == {"unseen": []}
    remove_marker(url, ".probe-0")
    assert missing_markers(url, markers) == {"unseen": ["a"]}
    remove_marker(url, ".probe-1")
    assert missing_markers(url, markers) == {"unseen": ["a", "b"]}
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("url", "why"), [("{tmp_path}/file/storage", "NotADirectoryError"), ("nonsense://x/y", "nonsense")]
)
def test_storage_that_cannot_be_written(url: str, why: str, tmp_path: Path) -> None:
    """A storage below a file, or of an unknown scheme, is reported with an error that is the same on all nodes."""
    (tmp_path / "file").write_text("")
    problem = collect_node_info(request_for(storage=url.format(tmp_path=tmp_path)), ".probe-0")["storage"]["problem"]
    assert why in problem
    assert "probe-0" not in problem


def test_data_and_weights(tmp_path: Path, data_root: Path) -> None:
    """Missing datasets and weight files are reported, each with its error."""
    request = request_for(datasets=["CIFAR-10", "mnist-digits"], data=str(data_root), verify=False)
    assert read_datasets(request) == {"data": {"CIFAR-10": None, "mnist-digits": None}, "examples": {}}
    lacking = read_datasets(request | {"data": str(tmp_path)})["data"]
    assert lacking["mnist-digits"] is None
    assert lacking["CIFAR-10"].startswith(f"CIFAR-10 was not found: {tmp_path} has no folder")
    (tmp_path / "weights.pt").write_text("")
    files = [(str(tmp_path / name),) for name in ("weights.pt", "other.pt")]
    weights = collect_node_info(request_for(weights=files), "")["weights"]
    assert weights == {files[0][0]: None, files[1][0]: "there is no such file"}


def test_own_images(tmp_path: Path) -> None:
    """The user's own images are counted without being opened, and a folder that is missing is reported."""
    for name in (f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in range(5)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    images = {"photos": {"path": str(tmp_path)}, "gone": {"path": str(tmp_path / "gone"), "is_manifest": True}}
    found = read_datasets(request_for(datasets=["photos", "gone"], sources=images))
    assert found["examples"] == {"photos": 20, "gone": None}
    assert found["data"]["photos"] is None
    assert found["data"]["gone"].startswith(f"gone: there is no {tmp_path}/gone")


def test_own_texts(tmp_path: Path) -> None:
    """The user's own texts are counted, and a tokenizer that is not on the node is reported."""
    (tmp_path / "news.csv").write_text("body,class\n" + "king,a\nball,b\n" * 10)
    source = {"path": str(tmp_path / "news.csv"), "text": ["body"], "label": "class"}
    bert = {"tokenizer": str(write_bert(tmp_path / "bert")), "max_length": 8}
    sources = {"news": source | bert, "lost": source | {"tokenizer": str(tmp_path / "gone")}}
    found = read_datasets(request_for(datasets=["news", "lost"], sources=sources))
    assert found["examples"] == {"news": 20, "lost": 20}
    assert found["data"]["news"] is None
    assert found["data"]["lost"].startswith(f"there is no folder {tmp_path}/gone")


@pytest.mark.slow
@pytest.mark.cluster
def test_slow_read_is_not_a_silent_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that takes too long to read its data reports everything else, and that the data are late."""
    import ray

    def read_slowly(_: Any) -> dict[str, Any]:
        time.sleep(120)
        return {"data": {}}

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        request = request_for(datasets=["mnist-digits"], seconds=20.0)
        (quick,) = inspect_cluster(request)["nodes"]
        monkeypatch.setattr(cluster, "read_datasets", read_slowly)
        (slow,) = inspect_cluster(request)["nodes"]
    finally:
        ray.shutdown()
    assert (quick["data"], quick["unread"]) == ({"mnist-digits": None}, None)
    assert (slow["problem"], slow["python"]) == (None, quick["python"])
    assert slow["unread"] == "not read (no answer in 20 s)"


def test_versions_and_missing_modules() -> None:
    """A version is that of the installation, or for deelbo of the files that are imported; modules are not imported."""
    assert installed_version("deelbo") == deelbo.__version__
    assert (installed_version("ray") or "").count(".") == 2
    assert installed_version("no-such-package") is None
    script = "import sys; from bench.probe.node import collect_node_info; "
    script += (
        "print(collect_node_info({'modules': ['laplace', 'no_such_module']}, '')['missing'], 'laplace' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "['no_such_module'] False\n"


def test_plugins(tmp_path: Path) -> None:
    """Each is described and imported; what cannot be imported, or lacks a package that it needs, is reported.

    The parts of `bench` that are not sent to a node are found in its own installation.
    """
    for path in (*BENCH.glob("probe/*.py"), *BENCH.glob("utils/*.py")):
        copy = tmp_path / path.relative_to(BENCH.parent)
        copy.parent.mkdir(exist_ok=True, parents=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "bench" / "__init__.py").write_bytes(EXTENDED_PACKAGE["bench/__init__.py"])
    write_plugin(tmp_path, "two-plugins", {"good": "import bench.methods", "bad": "raise SystemExit(7)"}, {})
    needs = {"good": ["ray"], "bad": [], "no_such_module": []}
    request = {"plugins": [(name, "two-plugins", needs[name]) for name in needs]}
    script = f"from bench.probe.node import collect_node_info; print(collect_node_info({request}, '')['plugins'])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(BENCH.parent)])}
    options: dict[str, Any] = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", script], check=False, **options)
    found = ast.literal_eval(done.stdout)
    assert {module: facts["problem"] for module, facts in found.items()} == {
        "good": None,
        "bad": "SystemExit: 7",
        "no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
    }
    assert [facts["found"].partition(" ")[0] for facts in found.values()] == ["1.0", "1.0", "none"]
    lacking = collect_node_info({"plugins": [("json", "", ["ray", "no-such-package"])]}, "")
    assert lacking["plugins"]["json"]["problem"] == "no-such-package missing"


def test_error_of_torch_about_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without GPUs the last line of torch's error is reported; a torch.py here is not torch."""
    (tmp_path / "torch.py").write_text("raise SystemExit('not torch')")
    monkeypatch.chdir(tmp_path)
    if torch.cuda.is_available():
        assert node._cuda_problem() == ""
    else:
        assert re.match(r"\w+Error: .*(CUDA|NVIDIA)", node._cuda_problem())
