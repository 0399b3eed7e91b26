"""`make cluster` and `make cluster-down`, with real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from cluster.local.asking import alive_nodes, mlflow_answers, token_mode
from cluster.local.processes import MARK, alive, born, end, family
from cluster.local.state import State, temporary_folder
from tests.cluster.conftest import ROOT, Cluster, call, free_ports, started
from tests.faults.processes import descendants, until

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """Addresses, as the kernel writes them, and ports on which processes listen."""
    sockets = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(handle)))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
class TestUp:
    def test_both_addresses_answer_and_all_nodes_are_alive(self, cluster: Cluster) -> None:
        """The head and two workers are alive by the dashboard, and MLflow answers by its API."""
        assert alive_nodes(cluster.state) == 3
        assert mlflow_answers(cluster.state)

    def test_state_names_the_parts(self, cluster: Cluster) -> None:
        """The state file has each part's process with its birth, and no token."""
        state = cluster.state
        assert [part.name for part in state.parts] == ["mlflow", "head", "worker1", "worker2"]
        assert all(part.lives for part in state.parts)
        assert not state.token

    def test_everything_listens_on_loopback(self, cluster: Cluster) -> None:
        """No process of the cluster, Ray's agents and raylets included, listens on another address than 127.0.0.1."""
        found = listening(set(cluster.pids()))
        assert {port for _, port in found} >= set(cluster.state.ports.values())
        assert {address for address, _ in found} <= LOOPBACK

    def test_nodes_have_folders_of_their_own(self, cluster: Cluster) -> None:
        """Each node runs in a working directory and with a temporary folder that no other node has."""
        nodes = [part for part in cluster.state.parts if part.name != "mlflow"]
        places = {os.readlink(f"/proc/{part.pid}/cwd") for part in nodes}
        assert len(places) == 3
        assert {Path(place).name for place in places} == {"head-work", "worker1-work", "worker2-work"}
        sessions = [Path(cluster.state.temporary) / part.name / "session_latest" for part in nodes]
        assert len({os.path.realpath(session) for session in sessions}) == 3
        assert all(session.is_dir() for session in sessions)

    def test_a_second_one_is_refused(self, cluster: Cluster) -> None:
        """`up` in the folder of a cluster that is up ends with 2 and one line, and changes nothing."""
        before = cluster.pids()
        done = call("up", cluster.folder, free_ports())
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(
            r"cluster: a cluster is up in .* already .* end it with `make cluster-down CLUSTER=.*`\n", done.stderr
        )
        assert set(alive(before)) == set(before)

    def test_a_port_that_is_taken_is_named(self, cluster: Cluster, tmp_path: Path) -> None:
        """`up` on a port on which something listens ends with 2 and one line, and leaves no folder."""
        port = cluster.state.ports["dashboard"]
        done = call("up", tmp_path / "other", free_ports() | {"DASHBOARD_PORT": str(port)})
        assert done.returncode == 2
        assert re.fullmatch(rf"cluster: port {port} of 127.0.0.1 is taken: .* DASHBOARD_PORT=\n", done.stderr)
        assert not (tmp_path / "other").exists()

    def test_mlflow_refuses_other_hosts(self, cluster: Cluster) -> None:
        """A request by another name than loopback's, as a page of another site would make, is answered by 403."""
        url = f"{cluster.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0"
        with pytest.raises(HTTPError, match="403"):
            urlopen(Request(url, headers={"Host": "evil.example"}), timeout=20)  # noqa: S310 - loopback


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_whole_life_with_tokens(tmp_path: Path) -> None:
    """With tokens: no token is answered by 401, a killed worker is told by `status`, and after `down` no process, no
    port and no temporary folder is left, and another process on the machine still runs."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    secret = "0123456789abcdef" * 4
    asked = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secret}
    try:
        cluster = started(tmp_path / "deelbo-cluster", asked | {"WORKERS": "1"})
        state, processes = cluster.state, cluster.pids()
        with pytest.raises(HTTPError, match="401"):
            urlopen(f"{cluster.address}/nodes?view=summary", timeout=20)  # noqa: S310 - loopback
        assert secret not in "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in processes)
        assert secret not in (cluster.folder / "state.json").read_text()

        assert call("status", cluster.folder, asked).returncode == 0
        (worker,) = (part for part in state.parts if part.name == "worker1")
        (raylet,) = (pid for pid in descendants(worker.pid) if "/raylet/raylet" in _program(pid))
        os.kill(raylet, signal.SIGKILL)
        until(lambda: not worker.lives, "the worker's process notices", 30)
        told = call("status", cluster.folder, asked)
        assert told.returncode == 1
        assert re.search(r"^worker1 +has ended \(.*\), see .*worker1.log$", told.stdout, re.MULTILINE)

        done = call("down", cluster.folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.match(r"ended \d+ processes; kept: ", done.stdout)
        assert alive(processes) == []
        for port in state.ports.values():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        assert not Path(state.temporary).exists()
        assert not (cluster.folder / "state.json").exists()
        assert (cluster.folder / "mlflow.db").is_file()
        assert (cluster.folder / "logs" / "head-ray" / "gcs_server.out").is_file()
        assert bystander.poll() is None
        assert call("down", cluster.folder).stdout.startswith("no cluster of ")
    finally:
        bystander.kill()
        bystander.wait()
        call("down", tmp_path / "deelbo-cluster")


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
    except OSError:
        return ""


@pytest.mark.slow
@pytest.mark.cluster
def test_what_is_half_started_is_ended_again(tmp_path: Path) -> None:
    """Where MLflow cannot start, as its database is none, `up` ends with 2 and one line with the log; nothing runs."""
    folder = tmp_path / "deelbo-cluster"
    folder.mkdir()
    (folder / "mlflow.db").write_text("no database, and long enough to be taken for none" * 100)
    variables = free_ports() | {"SPY": str(tmp_path)}
    done = call("up", folder, variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"cluster: mlflow ended while the cluster started \(.+\): see .*/logs/mlflow.log\n", done.stderr
    )
    assert not (folder / "state.json").exists()
    spy = f"SPY={tmp_path}".encode()
    left = [pid for pid in os.listdir("/proc") if pid.isdigit() and spy in _environment(pid)]
    assert left == []


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("what", "removed"), [(signal.SIGTERM, False), (signal.SIGKILL, False), (signal.SIGKILL, True)]
)
def test_up_is_stopped_on_the_way(tmp_path: Path, what: signal.Signals, removed: bool) -> None:
    """Where `up` is stopped by a signal it ends what it has started; where it is killed, `down` does, even where its
    folder was removed meanwhile."""
    folder = tmp_path / "deelbo-cluster"
    command = [sys.executable, "-m", "cluster.local", "up", "--folder", str(folder)]
    environment = os.environ | free_ports() | {"RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as going:
        until(lambda: (state := State.read(folder)) and len(state.parts) == 2, "two parts are started", 60)
        state = State.read(folder)
        assert state is not None
        until(lambda: len(state.processes()) > 2, "they start others", 60)
        processes = state.processes()
        going.send_signal(what)
        assert going.wait(60) == (130 if what == signal.SIGTERM else -signal.SIGKILL)
    if what == signal.SIGKILL:
        assert alive(processes)
        if removed:
            shutil.rmtree(folder)
        said = call("down", folder).stdout
        assert re.match(r"ended \d+ processes", said)
        assert ("the folder was removed" in said) == removed
    assert state.processes() == {}
    assert alive(processes) == []
    assert not Path(state.temporary).exists()
    assert not (folder / "state.json").exists()


def _environment(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("WORKERS", "0"), ("WORKERS", "two"), ("CPUS", "65"), ("RAY_PORT", "80"), ("MLFLOW_PORT", "-1")],
    )
    def test_a_variable_that_makes_no_sense(self, tmp_path: Path, name: str, value: str) -> None:
        """A number that is none, or out of range, is refused by its name in one line, with 2."""
        done = call("up", tmp_path / "none", free_ports() | {name: value})
        assert done.returncode == 2
        assert re.fullmatch(rf"cluster: {name}={value}: expected .*\n", done.stderr)
        assert not (tmp_path / "none").exists()

    def test_one_port_for_two(self, tmp_path: Path) -> None:
        """Two parts on one port are refused."""
        ports = free_ports()
        done = call("up", tmp_path / "none", ports | {"MLFLOW_PORT": ports["RAY_PORT"]})
        assert done.returncode == 2
        assert "is another part's port too" in done.stderr

    def test_token_mode_without_a_token(self, tmp_path: Path) -> None:
        """RAY_AUTH_MODE=token without a token anywhere is refused before anything starts."""
        nowhere = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""}
        done = call("up", tmp_path / "none", free_ports() | nowhere)
        assert done.returncode == 2
        assert re.fullmatch(r"cluster: RAY_AUTH_MODE=token, but there is no token: set .*\n", done.stderr)

    def test_another_mode(self) -> None:
        """A mode that Ray does not have is refused by its name."""
        with pytest.raises(ValueError, match="RAY_AUTH_MODE=maybe: expected token, disabled or nothing"):
            token_mode({"RAY_AUTH_MODE": "maybe"})

    def test_a_state_that_is_none(self, tmp_path: Path) -> None:
        """A state file that was not written by `up` is named, with 2, and stays."""
        (tmp_path / "state.json").write_text("[1, 2]")
        done = call("down", tmp_path)
        assert done.returncode == 2
        assert re.fullmatch(r"cluster: .*state.json is no state of a cluster .*\n", done.stderr)
        assert (tmp_path / "state.json").read_text() == "[1, 2]"

    def test_status_without_a_cluster(self, tmp_path: Path) -> None:
        """`status` of a folder without a cluster ends with 2 and says how to start one."""
        done = call("status", tmp_path)
        assert done.returncode == 2
        assert "`make cluster` starts one" in done.stderr


class TestRemovedFolder:
    @pytest.fixture
    def state(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
        """A cluster whose folder is gone."""
        monkeypatch.setattr("cluster.local.state.PLACE", str(tmp_path))
        (tmp_path / "folder").mkdir()
        state = State(tmp_path / "folder", temporary_folder(), {"ray": 6379}, False, 2)
        state.write()
        shutil.rmtree(state.folder)
        return state

    def test_its_cluster_is_found(self, state: State) -> None:
        """By the copy of the state among what Ray keeps meanwhile, and by no other folder's name."""
        assert State.read(state.folder) == state
        assert State.read(state.folder.with_name("other")) is None
        state.forget()
        assert State.read(state.folder) is None

    def test_a_state_that_names_no_folder(self, state: State) -> None:
        """As those of before: it is of the folder that it lies in."""
        state.folder.mkdir()
        content = asdict(state)
        del content["folder"]
        (state.folder / "state.json").write_text(json.dumps(content))
        assert State.read(state.folder) == state

    def test_a_copy_from_before_the_machine_started_is_none(self, state: State) -> None:
        """Numbers of processes mean nothing then."""
        state.boot = "another"
        (Path(state.temporary) / "state.json").write_text(json.dumps(asdict(state) | {"folder": str(state.folder)}))
        assert State.read(state.folder) is None

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file to another user")
    def test_another_users_copy_is_none(self, state: State) -> None:
        """Else whoever may write to /tmp could say which processes are ended."""
        os.chown(Path(state.temporary) / "state.json", 65534, 65534)
        assert State.read(state.folder) is None


class TestFamily:
    def test_a_recycled_number_is_not_ours(self, tmp_path: Path) -> None:
        """A process of a number that is in the state, but with another birth, is never ended."""
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        try:
            state = State(tmp_path, str(tmp_path), {}, False, 0)
            assert family(state.mark, {other.pid: str(int(born(other.pid)) - 1)}) == {}
            assert end(state.mark, {other.pid: str(int(born(other.pid)) - 1)}) == 0
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()

    def test_orphans_and_the_stubborn_are_ended(self) -> None:
        """What lost its parent, what began a session of its own, and what ignores SIGTERM is found and ended."""
        stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        script = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {stubborn!r}], start_new_session=True)
subprocess.Popen([sys.executable, "-c", {stubborn!r}], env={{}})
if os.fork() == 0:
    os.setsid()
    time.sleep(600)
print("ready", flush=True)
time.sleep(600)
"""
        mark = "a-test-of-its-own"
        root = subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | {MARK: mark},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert root.stdout is not None
        assert root.stdout.readline() == b"ready\n"
        roots = {root.pid: born(root.pid)}
        processes = family(mark, roots)
        assert len(processes) == 4
        root.kill()
        root.wait()
        assert len(family(mark, roots)) == 3
        assert end(mark, roots, seconds=1.0) == 3
        assert alive(processes) == []
        root.stdout.close()
