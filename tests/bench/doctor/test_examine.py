"""`doctor` on real clusters: two nodes with private disks, behind a token; and a server of another Ray version."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
import ray

from bench.cli.main import main
from bench.config.loading import load_benchmark
from bench.doctor.cluster_report import ClusterReport, DoctorRequest
from bench.doctor.examine import examine
from bench.jobs.client import Cluster
from bench.probe import MARKER
from tests.bench.probe.test_probe import INVALID, healthy_but
from tests.faults.processes import CHILD, GONE, Process, alive, descendants, until
from tests.helpers.http_server import serving

NODE = Path(__file__).resolve().parents[3] / "cluster" / "local" / "node.py"
TOKEN = "a-token-of-the-tests-0123456789abcdef"
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
BARE = ["--num-cpus", "1", "--object-store-memory", "100000000", "--min-worker-port", "0", "--max-worker-port", "0"]


def free_port() -> str:
    """Return a free port of loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@dataclass(frozen=True)
class Two:
    """A head and a worker; ``private`` is another folder on each of them."""

    gcs: str
    dashboard: str
    shared: Path
    private: Path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """A cluster of two nodes on two loopback addresses, with token authentication, for all tests of this file."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a mount namespace")
    folder = tmp_path_factory.mktemp("two")
    session = tempfile.mkdtemp(prefix="rd", dir="/tmp")
    gcs, dashboard = free_port(), free_port()
    found = Two(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", folder / "shared", folder / "private")
    found.shared.mkdir()
    found.private.mkdir()
    head = ["--head", "--node-ip-address", "127.0.0.1", "--port", gcs, "--temp-dir", session, *BARE, "--block"]
    head += ["--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard, "--ray-client-server-port", free_port()]
    head += ["--dashboard-agent-listen-port", free_port()]
    joins = [sys.executable, str(NODE), "--address", found.gcs, "--node-ip-address", "127.0.0.2", *BARE, "--block"]
    joins += ["--dashboard-agent-listen-port", free_port()]
    apart = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(found.private), *joins]
    nodes = []
    try:
        nodes.append(_start([sys.executable, str(NODE), *head], folder / "head.log"))
        until(lambda: _count_nodes(found) == 1 or _has_ended(nodes, folder), "the head answers", 90, 0.5)
        nodes.append(_start(apart, folder / "worker.log"))
        until(lambda: _count_nodes(found) == 2 or _has_ended(nodes, folder), "the worker has joined", 90, 0.5)
        yield found
    finally:
        for node in reversed(nodes):
            _end(node)
        shutil.rmtree(session, ignore_errors=True)


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        environment = os.environ | CHILD | AUTH
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def _has_ended(nodes: list[subprocess.Popen[bytes]], folder: Path) -> bool:
    """Raise AssertionError if a node has ended, as waiting would not help."""
    for node in nodes:
        if node.poll() is not None:
            raise AssertionError("\n".join(log.read_text(errors="replace")[-900:] for log in folder.glob("*.log")))
    return False


def _count_nodes(found: Two) -> int:
    """Return the number of nodes that the dashboard counts as alive."""
    asked = Request(f"{found.dashboard}/nodes?view=summary", headers={"Authorization": f"Bearer {TOKEN}"})  # noqa: S310
    try:
        with urlopen(asked, timeout=5) as answer:  # noqa: S310 - loopback
            summary = json.load(answer)["data"]["summary"]
    except (URLError, HTTPError, TimeoutError, ConnectionError):
        return 0
    return sum(node["raylet"].get("state") == "ALIVE" for node in summary)


def _end(node: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, then SIGKILL to the processes that are left."""
    started = descendants(node.pid)
    node.send_signal(signal.SIGTERM)
    try:
        node.wait(30)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()
    for pid in alive(started):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(started), "the node's processes are gone", GONE)


def doctor(folder: Path, *arguments: str) -> tuple[int, dict[str, list[dict[str, Any]]], str]:
    """Run `deelbo-bench doctor --json`; return its exit code, its findings by check, and its output."""
    command = ["bench", "doctor", *arguments, "--json"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (AUTH | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}).items():
            patch.setenv(name, value)
        with Process(command, folder, "doctor") as process:
            code = process.end()
    assert "Traceback" not in process.complained, process.tail()
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(process.said)["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    assert TOKEN not in process.said + process.complained
    return code, found, process.said


def failed(found: dict[str, list[dict[str, Any]]]) -> set[str]:
    """Return the checks that failed."""
    return {check for check, some in found.items() if any(finding["verdict"] == "fail" for finding in some)}


@pytest.mark.slow
@pytest.mark.cluster
def test_cluster_that_fits(two: Two, tmp_path: Path) -> None:
    """With a shared folder, which will hold MLflow's database, nothing fails, and no file is left."""
    place = ["--storage", str(two.shared / "new" / "runs")]
    code, found, _ = doctor(tmp_path, "quickstart", "--address", two.dashboard, *place)
    assert (code, failed(found)) == (0, set())
    assert found["storage"][0]["found"].endswith("shared by, all 2 nodes")
    assert found["access"][0]["verdict"] == "ok"
    assert list(two.shared.iterdir()) == []


@pytest.mark.slow
@pytest.mark.cluster
def test_problems_are_found_by_one_job(two: Two, tmp_path: Path) -> None:
    """One job finds a folder that is not shared, missing data and weights, and an MLflow whose API refuses."""
    with serving(healthy_but(403, INVALID)) as (uri, _), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEELBO_DATA", str(tmp_path))
        patch.setenv("TORCH_HOME", str(tmp_path))
        change = ["--set", "priors=[l2-sp]", "--set", "resources={cpus_per_trial: 1, gpus_per_trial: 0}"]
        env = ["--env", "DEELBO_DATA", "--env", "TORCH_HOME"]
        place = ["--storage", str(two.private / "runs"), "--tracking-uri", uri]
        code, found, said = doctor(tmp_path, "poster", "--address", two.dashboard, *place, *change, *env)
    assert code == 1
    assert failed(found) == {"storage", "MLflow", "data", "weights"}
    assert "writable but not shared" in found["storage"][0]["found"]
    assert "CIFAR-10 was not found" in found["data"][0]["found"]
    assert found["data"][0]["found"].endswith("on all 2 nodes")
    assert str(tmp_path) in found["weights"][0]["found"]
    facts = json.loads(said)["facts"]
    assert f"refuses the driver (status 403): {INVALID}" in found["MLflow"][0]["found"]
    assert facts["driver"]["mlflow"]["status"] == 403
    assert list(two.private.iterdir()) == []


@pytest.mark.slow
@pytest.mark.cluster
def test_inspection_from_a_machine_of_the_cluster(two: Two, tmp_path: Path) -> None:
    """If `doctor` joins the cluster itself, it finds the same; a missing GPU fails."""
    change = ["--set", "resources.gpus_per_trial=1"]
    where = ["--address", two.gcs, "--storage", str(two.private)]
    code, found, _ = doctor(tmp_path, "quickstart", *where, *change)
    assert code == 1
    assert failed(found) == {"storage", "room"}
    assert found["room"][0]["found"].startswith("no trial fits: it takes 1 CPU and 1 GPU")
    assert found["access"][0]["found"].endswith("wants a token")


def dashboard_of(version: str) -> Any:
    """Return the answers of a dashboard of that version of Ray, without tokens and jobs."""
    answers: dict[str, Any] = {
        "/api/authentication_mode": {"authentication_mode": "disabled"},
        "/api/version": {"version": "4", "ray_version": version, "ray_commit": "", "session_name": ""},
    }
    return lambda path, _: (200, json.dumps(answers[path])) if path in answers else (500, "unexpected request")


def test_cluster_of_another_ray(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of another version of Ray fails in one row, and no job is started there."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with serving(dashboard_of("2.9.3")) as (address, requests):
        assert main(["doctor", "--address", address]) == 1
        report, results = examine(address, DoctorRequest())
    assert (report.ray, report.nodes) == ("2.9.3", ())
    assert [(result.check, result.status) for result in results] == [("access", "note"), ("Ray", "fail")]
    assert len(requests) == 4
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "2 checks: 1 failed, 1 to note"
    assert f"fail  Ray: {ray.__version__} here, 2.9.3 on the cluster" in out


OLD = {"problem": "Python 3.9.1 is too old", "nodes": []}


@pytest.mark.parametrize(
    ("code", "log", "found"),
    [
        (0, f"noise\n{MARKER}{json.dumps(OLD)}\n", OLD["problem"]),
        (2, "a\n\nb\n", "a small job ended with 2 and no result (b)"),
        (None, "", "a small job did not end in 600 s (no output)"),
    ],
)
def test_end_of_the_job(
    code: int | None,
    log: str,
    found: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line of results in a job's log is read; a job without results is a failure. --json prints both."""
    cluster = SimpleNamespace(address="http://h:1", token_mode=None, ray_version=ray.__version__)
    cluster.run_to_end = lambda *_: (code, log)
    monkeypatch.setattr(Cluster, "connect", lambda _: cluster)
    assert main(["doctor", "--address", cluster.address, "--json"]) == 1
    last = json.loads(capsys.readouterr().out)["findings"][-1]
    assert (last["check"], last["found"], last["verdict"]) == ("nodes", found, "fail")
    assert last["todo"]


def test_packages_of_methods_are_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages of the extra `methods` are looked for on the nodes if a method of the benchmark imports them."""
    modules = []

    def inspect(address: str, request: dict[str, Any]) -> ClusterReport:
        modules.append(request["modules"])
        return ClusterReport(
            address, "token", None, {"python": "3", "ray": None, "torch": None, "deelbo": None, "code": None}
        )

    monkeypatch.setattr("bench.doctor.examine._inspect_from_inside", inspect)
    for preset in ("digits", "quickstart"):
        examine("127.0.0.1:1", DoctorRequest(load_benchmark(preset)))
    assert modules == [["curvlinops", "laplace", "optuna", "prodigyopt"], []]


@pytest.mark.slow
def test_without_an_address_this_machine_is_checked(tmp_path: Path, cache: Path) -> None:
    """Ray is started here for the checks, which are those of a cluster without its access and Ray version."""
    env = {name: value for name, value in os.environ.items() if name != "RAY_API_SERVER_ADDRESS"}
    command = [sys.executable, "-m", "bench", "doctor", "quickstart", "--json"]
    env["PYTHONPATH"] = str(NODE.parents[2])
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["facts"]["address"] == "this machine"
    verdicts = {row["check"]: row["verdict"] for row in found["findings"]}
    assert verdicts == dict.fromkeys(verdicts, "ok")
    assert {"nodes", "torch", "deelbo", "room", "storage", "data"} <= verdicts.keys()
    assert not {"access", "Ray"} & verdicts.keys()
    assert str(tmp_path / "deelbo-runs" / "quickstart") in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_missing_token_is_one_line(tmp_path: Path) -> None:
    """From a machine of a cluster that needs a token, without one, the command prints where it belongs, and exits 2."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    with socket.create_server(("127.0.0.1", 0)) as head:
        command = [sys.executable, "-m", "bench", "doctor", "--address", f"127.0.0.1:{head.getsockname()[1]}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"deelbo-bench: .* requires its token \(.*\): put it into \$RAY_AUTH_TOKEN.*\n", done.stderr)


def test_job_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of the same Ray version that accepts no job is reported in one line."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with (
        serving(dashboard_of(ray.__version__)) as (address, _),
        pytest.raises(ValueError, match="status code 500") as refused,
    ):
        examine(address, DoctorRequest())
    assert len(str(refused.value).splitlines()) == 1


NOWHERE = ["--address", "http://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (NOWHERE, "no Ray cluster answers at http://127.0.0.1:1"),
        (["--address", "ray://127.0.0.1:1"], "expected http://HOST:8265"),
        ([*NOWHERE, "--set", "n=[3]"], "expected a configuration that it changes"),
        ([*NOWHERE, "--tracking-uri", "mlflow:5000"], "--tracking-uri 'mlflow:5000'"),
        ([*NOWHERE, "--storage", "sftp://me:secret@h/x"], "sftp://me:***@h/x has a password in"),
        (["nowhere", *NOWHERE], "no preset or file 'nowhere'"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad input is one line on stderr, with exit code 2."""
    assert main(["doctor", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    assert message in error
