"""`ray up` with cluster/ray-up/on-premise.yaml over a real sshd, on hosts made of Linux namespaces."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bench.storage.records import RecordStore
from tests.cluster import ssh_hosts
from tests.cluster.ssh_hosts import SHARED, Host
from tests.helpers.tiny import CONTENT

FILE = ssh_hosts.ROOT / "cluster" / "ray-up" / "on-premise.yaml"
MISSING = ssh_hosts.missing()
DASHBOARD, MLFLOW = "http://127.0.0.1:8265", "http://127.0.0.1:5000"
TINY = CONTENT | {"methods": {"de-elbo": {"learning_rates": [0.1, 0.01]}, "elbo": {"learning_rates": [0.1, 0.01]}}}
NUM_TRIALS = 4
CALL_WITHOUT_TOKEN = """
import grpc, socket, sys
for port in range(1024, 65536):
    with socket.socket() as one:
        one.settimeout(1)
        if one.connect_ex((sys.argv[1], port)):
            continue
    for called in sys.argv[2:]:
        try:
            with grpc.insecure_channel(f"{sys.argv[1]}:{port}") as channel:
                channel.unary_unary(called)(b"", timeout=5)
                print(called, "ANSWERED")
        except grpc.RpcError as error:
            if error.code().name != "UNAVAILABLE":  # else no gRPC
                print(called, error.code().name)
"""
"""Calls Ray's services on all ports of a host without a token, and prints the status codes of gRPC."""
SERVICES = [
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.JobInfoGcsService/AddJob",
    "/ray.rpc.InternalKVGcsService/InternalKVPut",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.ObjectManagerService/Push",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the hosts' keys and logs, and of the folder that they share."""
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def content() -> str:
    """The file, except that its pip line installs nothing."""
    text, changed = re.subn(r"~/deelbo-venv/bin/pip install .*", "echo installed", FILE.read_text())
    assert changed == 1
    return text


@pytest.fixture(scope="module")
def hosts(work: Path, content: str) -> Iterator[dict[str, Host]]:
    """A submitting machine, a head and two workers, after `ray up`; the sshd of the second worker does not run."""
    provider = yaml.safe_load(content)["provider"]
    addresses = {"head": provider["head_ip"]} | dict(zip(("one", "two"), provider["worker_ips"], strict=True))
    with ssh_hosts.hosts(work, addresses) as started:
        mine = started["submitting"]
        (mine.folder / "on-premise.yaml").write_text(content)
        (mine.folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        token = mine.run("ray", "get-auth-token", "--generate")
        assert token.returncode == 0, token.stdout
        started["two"].stop_sshd()
        up(mine)
        yield started


def up(mine: Host) -> str:
    """Run `ray up` and return its output."""
    done = mine.run("ray", "up", "-y", "/run/host/on-premise.yaml", seconds=300)
    assert done.returncode == 0, done.stdout
    return done.stdout


def find_nodes(mine: Host) -> list[str]:
    """Return the addresses of the nodes that have joined the head."""
    code = (
        "import ray; ray.init('auto', log_to_driver=False); print([n['NodeName'] for n in ray.nodes() if n['Alive']])"
    )
    done = mine.run("ray", "exec", "/run/host/on-premise.yaml", f'python -c "{code}"')
    found = re.findall(r"^\[('.*')\]", done.stdout, re.MULTILINE)
    return sorted(re.findall(r"[\d.]+", found[0])) if found else []


def wait_for_nodes(mine: Host, expected: list[str], seconds: float = 240) -> None:
    """Wait until exactly these nodes have joined."""
    deadline = time.monotonic() + seconds
    while (found := find_nodes(mine)) != expected:
        assert time.monotonic() < deadline, found


def open_tunnels(mine: Host, head: Host) -> None:
    """Open the tunnels of the file's first lines; they end with the host."""
    no_questions = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    mlflow = ["ssh", *no_questions, "-N", "-L", "5000:127.0.0.1:5000", head.ip]
    for line in (["ray", "dashboard", "/run/host/on-premise.yaml"], mlflow):
        with (mine.folder / "tunnels.log").open("ab") as log:
            subprocess.Popen(mine.line(line), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    deadline = time.monotonic() + 90
    for address in (DASHBOARD, f"{MLFLOW}/health"):
        while mine.run("curl", "-s", address).returncode:
            assert time.monotonic() < deadline, (mine.folder / "tunnels.log").read_text()
            time.sleep(0.5)


def test_a_benchmark_runs_while_a_worker_cannot_be_reached(hosts: dict[str, Host], work: Path) -> None:
    """Through the tunnels, `doctor` finds no problem, and all trials run on the reachable worker, to a report in the
    shared folder and runs in MLflow."""
    mine, head, one = hosts["submitting"], hosts["head"], hosts["one"]
    wait_for_nodes(mine, [head.ip, one.ip])
    options = ["--address", DASHBOARD, "--tracking-uri", MLFLOW, "--storage", f"{SHARED}/tiny"]
    open_tunnels(mine, head)
    seen = mine.run("deelbo-bench", "doctor", "/run/host/tiny.yaml", *options, "--json")
    assert seen.returncode == 0, seen.stdout
    assert {one["verdict"] for one in json.loads(seen.stdout)["findings"]} == {"ok"}, seen.stdout
    done = mine.run("deelbo-bench", "submit", "/run/host/tiny.yaml", *options, "--unchecked", seconds=500)
    assert done.returncode == 0, done.stdout
    assert "done" in mine.run("deelbo-bench", "status", "tiny", "--address", DASHBOARD).stdout
    records = list(RecordStore(str(work / "shared" / "tiny")).records())
    assert [record.status for record in records] == ["completed"] * NUM_TRIALS
    assert {record.hardware["node"] for record in records} == {"one"}
    assert (work / "shared" / "tiny" / "report" / "report.html").is_file()


def test_calls_without_a_token_are_refused(hosts: dict[str, Host]) -> None:
    """No gRPC port of the head or a worker, and not the Job API, serves a call without the token; the dashboard and
    MLflow listen on the head's loopback only."""
    mine, head = hosts["submitting"], hosts["head"]
    for host in (head, hosts["one"]):
        done = mine.run("python", "-c", CALL_WITHOUT_TOKEN, host.ip, *SERVICES)
        answers = [line.split() for line in done.stdout.splitlines() if line.startswith("/ray.rpc.")]
        assert {code for _, code in answers} == {"UNAUTHENTICATED", "UNIMPLEMENTED"}, done.stdout
        refused = {called for called, code in answers if code == "UNAUTHENTICATED"}
        assert refused == (set(SERVICES) if host is head else set(SERVICES[3::2])), done.stdout
    for port in (8265, 5000):
        assert mine.run("curl", "-s", f"http://{head.ip}:{port}/").returncode == 7  # connection refused
    answer = head.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{DASHBOARD}/api/jobs/")
    assert answer.stdout == "401"


def test_a_worker_joins_once_it_is_reachable(hosts: dict[str, Host]) -> None:
    """The worker whose sshd was down at `ray up` joins once its sshd runs, without another command."""
    hosts["two"].start_sshd()
    wait_for_nodes(hosts["submitting"], sorted(host.ip for name, host in hosts.items() if name != "submitting"))


def test_a_second_ray_up_restarts_ray(hosts: dict[str, Host]) -> None:
    """A second `ray up` of the unchanged file installs nothing and restarts Ray on the head, which the workers join;
    MLflow keeps running."""
    mine, head = hosts["submitting"], hosts["head"]
    before = head.run("pgrep", "-f", "gcs_server|[m]lflow server").stdout.split()
    output = up(mine)
    assert "Configuration already up to date" in output
    assert "Stopped" in output
    after = head.run("pgrep", "-f", "gcs_server|[m]lflow server").stdout.split()
    assert len(set(before) & set(after)) == 1
    wait_for_nodes(mine, sorted(host.ip for name, host in hosts.items() if name != "submitting"))


def test_ray_down_ends_ray_on_all_hosts(hosts: dict[str, Host]) -> None:
    """`ray down` leaves no process of Ray on the head; on the workers the node and its processes end in a minute or
    two, and `ray stop` there ends the rest."""
    done = hosts["submitting"].run("ray", "down", "-y", "/run/host/on-premise.yaml")
    assert done.returncode == 0, done.stdout
    assert "command not found" not in done.stdout
    assert hosts["head"].run("pgrep", "-af", "gcs_server|raylet|[r]ay::").stdout == ""
    deadline = time.monotonic() + 150
    for host in (hosts["one"], hosts["two"]):
        while found := host.run("pgrep", "-af", "src/ray/raylet/raylet|ray::(IDLE|[a-z])").stdout:
            assert time.monotonic() < deadline, found
            time.sleep(1)
        host.run("ray", "stop", "--force")
        assert host.run("pgrep", "-af", "raylet|[r]ay::").stdout == ""
