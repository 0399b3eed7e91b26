"""`ray up` on hosts of name spaces, over a real sshd: cluster/ray-up/on-premise.yaml as it is, but for its pip line."""

from __future__ import annotations

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
TRIALS = 4
FOREIGN = """
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
"""What who has no token is told by each port of a host, called as its services are."""
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
    """Where the hosts have their keys and logs, and the folder that all share."""
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def content() -> str:
    """The file, with a pip line that installs nothing; all other lines are as they are."""
    text, changed = re.subn(r"~/deelbo-venv/bin/pip install .*", "echo installed", FILE.read_text())
    assert changed == 1
    return text


@pytest.fixture(scope="module")
def made(work: Path, content: str) -> Iterator[dict[str, Host]]:
    """A machine that submits, a head and two workers; the cluster is up, but for the second worker, whose sshd is
    down."""
    provider = yaml.safe_load(content)["provider"]
    addresses = {"head": provider["head_ip"]} | dict(zip(("one", "two"), provider["worker_ips"], strict=True))
    with ssh_hosts.hosts(work, addresses) as all_of_them:
        mine = all_of_them["submitting"]
        (mine.folder / "on-premise.yaml").write_text(content)
        (mine.folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        token = mine.run("ray", "get-auth-token", "--generate")
        assert token.returncode == 0, token.stdout
        all_of_them["two"].deafen()
        up(mine)
        yield all_of_them


def up(mine: Host) -> str:
    """`ray up`."""
    done = mine.run("ray", "up", "-y", "/run/host/on-premise.yaml", seconds=300)
    assert done.returncode == 0, done.stdout
    return done.stdout


def nodes(mine: Host) -> list[str]:
    """Addresses of the nodes that have joined, as Ray on the head knows them."""
    code = (
        "import ray; ray.init('auto', log_to_driver=False); print([n['NodeName'] for n in ray.nodes() if n['Alive']])"
    )
    done = mine.run("ray", "exec", "/run/host/on-premise.yaml", f'python -c "{code}"')
    found = re.findall(r"^\[('.*')\]", done.stdout, re.MULTILINE)
    return sorted(re.findall(r"[\d.]+", found[0])) if found else []


def until_nodes(mine: Host, wanted: list[str], seconds: float = 240) -> None:
    """Waits until these have joined, and no other."""
    until = time.monotonic() + seconds
    while (found := nodes(mine)) != wanted:
        assert time.monotonic() < until, found


def tunnels(mine: Host, head: Host) -> None:
    """Opens the two of the file's first lines; they end with the host."""
    no_questions = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    mlflow = ["ssh", *no_questions, "-N", "-L", "5000:127.0.0.1:5000", head.ip]
    for line in (["ray", "dashboard", "/run/host/on-premise.yaml"], mlflow):
        with (mine.folder / "tunnels.log").open("ab") as log:
            subprocess.Popen(mine.line(line), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    until = time.monotonic() + 90
    for address in (DASHBOARD, f"{MLFLOW}/health"):
        while mine.run("curl", "-s", address).returncode:
            assert time.monotonic() < until, (mine.folder / "tunnels.log").read_text()
            time.sleep(0.5)


def test_a_benchmark_runs_while_a_worker_cannot_be_reached(made: dict[str, Host], work: Path) -> None:
    """Through the tunnels that the file names: `doctor` finds nothing missing, and all trials run on the worker that
    is there, to a report in the shared folder and runs in MLflow."""
    mine, head, one = made["submitting"], made["head"], made["one"]
    until_nodes(mine, [head.ip, one.ip])
    where = ["--address", DASHBOARD, "--tracking-uri", MLFLOW, "--storage", f"{SHARED}/tiny"]
    tunnels(mine, head)
    seen = mine.run("deelbo-bench", "doctor", "/run/host/tiny.yaml", *where, "--json")
    assert seen.returncode == 0, seen.stdout
    assert {one["verdict"] for one in json.loads(seen.stdout)["findings"]} == {"ok"}, seen.stdout
    done = mine.run("deelbo-bench", "submit", "/run/host/tiny.yaml", *where, "--unchecked", seconds=500)
    assert done.returncode == 0, done.stdout
    assert "done" in mine.run("deelbo-bench", "status", "tiny", "--address", DASHBOARD).stdout
    records = list(RecordStore(str(work / "shared" / "tiny")).records())
    assert [record.status for record in records] == ["completed"] * TRIALS
    assert {record.hardware["node"] for record in records} == {"one"}
    assert (work / "shared" / "tiny" / "report" / "report.html").is_file()


def test_who_has_no_token_gets_nothing(made: dict[str, Host]) -> None:
    """No port of the head or of a worker that speaks gRPC does what it is asked without the token, nor does the Job
    API; the dashboard and MLflow are on the head's loopback."""
    mine, head = made["submitting"], made["head"]
    for host in (head, made["one"]):
        done = mine.run("python", "-c", FOREIGN, host.ip, *SERVICES)
        answers = [line.split() for line in done.stdout.splitlines() if line.startswith("/ray.rpc.")]
        assert {code for _, code in answers} == {"UNAUTHENTICATED", "UNIMPLEMENTED"}, done.stdout
        refused = {called for called, code in answers if code == "UNAUTHENTICATED"}
        assert refused == (set(SERVICES) if host is head else set(SERVICES[3::2])), done.stdout
    for port in (8265, 5000):
        assert mine.run("curl", "-s", f"http://{head.ip}:{port}/").returncode == 7  # nobody listens there
    asked = head.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{DASHBOARD}/api/jobs/")
    assert asked.stdout == "401"


def test_a_worker_comes_when_it_can_be_reached(made: dict[str, Host]) -> None:
    """The worker whose sshd was down at `ray up` joins once it is up, with nothing done."""
    made["two"].listen()
    until_nodes(made["submitting"], sorted(host.ip for name, host in made.items() if name != "submitting"))


def test_another_ray_up_starts_ray_anew(made: dict[str, Host]) -> None:
    """A second `ray up` of the unchanged file installs nothing, ends Ray on the head, with all that runs there, and
    the workers join the new one; MLflow goes on."""
    mine, head = made["submitting"], made["head"]
    before = head.run("pgrep", "-f", "gcs_server|[m]lflow server").stdout.split()
    said = up(mine)
    assert "Configuration already up to date" in said
    assert "Stopped" in said
    after = head.run("pgrep", "-f", "gcs_server|[m]lflow server").stdout.split()
    assert len(set(before) & set(after)) == 1
    until_nodes(mine, sorted(host.ip for name, host in made.items() if name != "submitting"))


def test_ray_down_ends_ray_on_all_hosts(made: dict[str, Host]) -> None:
    """`ray down` leaves no process of Ray's on the head; on the workers Ray's node and what it runs end in a minute or
    two, and `ray stop` there ends the rest."""
    done = made["submitting"].run("ray", "down", "-y", "/run/host/on-premise.yaml")
    assert done.returncode == 0, done.stdout
    assert "command not found" not in done.stdout
    assert made["head"].run("pgrep", "-af", "gcs_server|raylet|[r]ay::").stdout == ""
    until = time.monotonic() + 150
    for host in (made["one"], made["two"]):
        while found := host.run("pgrep", "-af", "src/ray/raylet/raylet|ray::(IDLE|[a-z])").stdout:
            assert time.monotonic() < until, found
            time.sleep(1)
        host.run("ray", "stop", "--force")
        assert host.run("pgrep", "-af", "raylet|[r]ay::").stdout == ""
