"""`make cluster` and `make cluster-down`, with real processes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from cluster.local.__main__ import MARK, State, find_processes, stop_processes
from tests.cluster.conftest import ROOT, Cluster, alive, cluster_command, free_ports, start_cluster
from tests.faults.processes import until

STARTS_A_CLUSTER = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


class TestUp:
    pytestmark = STARTS_A_CLUSTER

    def test_all_services_answer(self, cluster: Cluster) -> None:
        """The dashboard counts the head and both workers, MLflow answers by its API, and the state names them."""
        assert cluster.state.problems("") == []
        assert list(cluster.state.services) == ["mlflow", "head", "worker1", "worker2"]

    def test_everything_listens_on_loopback(self, cluster: Cluster) -> None:
        """No process of the cluster, including Ray's agents and raylets, listens on another address than 127.0.0.1."""
        pids = {process.pid for process in cluster.processes()}
        sockets = [one for one in psutil.net_connections("tcp") if one.pid in pids and one.status == "LISTEN"]
        assert {one.laddr.port for one in sockets} >= set(cluster.state.ports.values())
        assert {one.laddr.ip for one in sockets} <= {"127.0.0.1", "::ffff:127.0.0.1"}

    def test_nodes_share_no_folder(self, cluster: Cluster) -> None:
        """Each node has its own working directory and temporary folder."""
        nodes = [name for name in cluster.state.services if name != "mlflow"]
        places = {os.readlink(f"/proc/{cluster.state.services[name]}/cwd") for name in nodes}
        assert {Path(place).name for place in places} == {f"{name}-work" for name in nodes}
        sessions = [cluster.state.temporary / name / "session_latest" for name in nodes]
        assert len({os.path.realpath(session) for session in sessions if session.is_dir()}) == 3

    def test_a_second_cluster_in_the_folder_is_refused(self, cluster: Cluster) -> None:
        """`up` in the folder of a running cluster prints one line, returns 2 and changes nothing."""
        before = cluster.processes()
        done = cluster_command("up", cluster.folder, free_ports())
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(
            r"cluster: a cluster is already up in .* end it by `make cluster-down CLUSTER=.*`\n", done.stderr
        )
        assert len(alive(before)) == len(before)

    def test_a_port_in_use_is_refused(self, cluster: Cluster, tmp_path: Path) -> None:
        """`up` on a port in use names it in one line, returns 2 and creates no folder."""
        port = cluster.state.ports["dashboard"]
        done = cluster_command("up", tmp_path / "other", free_ports() | {"DASHBOARD_PORT": str(port)})
        assert done.returncode == 2
        assert re.fullmatch(rf"cluster: port {port} is in use; .* DASHBOARD_PORT\n", done.stderr)
        assert not (tmp_path / "other").exists()

    def test_mlflow_refuses_other_hosts(self, cluster: Cluster) -> None:
        """A request by another host name than loopback's, as from a page of another site, is answered by 403."""
        url = f"{cluster.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0"
        with pytest.raises(HTTPError, match="403"):
            urlopen(Request(url, headers={"Host": "evil.example"}), timeout=20)  # noqa: S310 - loopback


class TestDown:
    pytestmark = STARTS_A_CLUSTER

    def test_a_cluster_with_tokens_from_start_to_end(self, tmp_path: Path) -> None:
        """Requests without the token get 401, `status` reports a killed worker, and `down` leaves no process, port or
        temporary folder, while another process of the machine still runs."""
        bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        secret = "0123456789abcdef" * 4
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secret}
        folder = tmp_path / "deelbo-cluster"
        try:
            cluster = start_cluster(folder, token | {"WORKERS": "1"})
            state, processes = cluster.state, cluster.processes()
            with pytest.raises(HTTPError, match="401"):
                urlopen(f"{cluster.address}/nodes?view=summary", timeout=20)  # noqa: S310 - loopback
            assert secret not in " ".join(word for process in processes for word in process.cmdline())
            assert secret not in (folder / "state.json").read_text()

            assert cluster_command("status", folder, token).returncode == 0
            worker = psutil.Process(state.services["worker1"])
            (raylet,) = (one for one in worker.children(recursive=True) if one.name() == "raylet")
            raylet.kill()
            until(lambda: not alive({worker}), "the worker's process notices", 30)
            done = cluster_command("status", folder, token)
            assert done.returncode == 1
            assert re.search(r"^worker1 has ended; see .*worker1.log$", done.stdout, re.MULTILINE)

            done = cluster_command("down", folder)
            assert (done.returncode, done.stderr) == (0, "")
            assert re.match(r"ended \d+ processes; kept: ", done.stdout)
            assert alive(processes) == []
            for port in state.ports.values():
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            assert not state.temporary.exists()
            assert not (folder / "state.json").exists()
            assert (folder / "mlflow.db").is_file()
            assert (folder / "logs" / "head-ray" / "gcs_server.out").is_file()
            assert bystander.poll() is None
            assert cluster_command("down", folder).stdout.startswith("no cluster of ")
        finally:
            bystander.kill()
            bystander.wait()
            cluster_command("down", folder)

    def test_a_cluster_that_starts_in_part_is_ended(self, tmp_path: Path) -> None:
        """If MLflow's database is damaged, `up` names MLflow and its log in one line, returns 2 and leaves nothing."""
        folder = tmp_path / "deelbo-cluster"
        folder.mkdir()
        (folder / "mlflow.db").write_text("not a database, but long enough to be taken for one" * 100)
        done = cluster_command("up", folder, free_ports())
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(
            r"cluster: the cluster did not start: mlflow has ended; see .*/logs/mlflow.log\n", done.stderr
        )
        assert not (folder / "state.json").exists()
        assert find_processes(folder) == set()

    @pytest.mark.parametrize(
        ("number", "removed"), [(signal.SIGTERM, False), (signal.SIGKILL, False), (signal.SIGKILL, True)]
    )
    def test_up_is_interrupted(self, tmp_path: Path, number: signal.Signals, removed: bool) -> None:
        """`up` stopped by SIGTERM ends all that it started; after SIGKILL `down` does, even without the folder."""
        folder = tmp_path / "deelbo-cluster"
        command = [sys.executable, "-m", "cluster.local", "up", "--folder", str(folder)]
        environment = os.environ | free_ports() | {"RAY_AUTH_MODE": "disabled"}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as starting:
            until(lambda: len(find_processes(folder)) > 4, "services start processes of their own", 60)
            state, processes = State.read(folder), find_processes(folder)
            starting.send_signal(number)
            assert starting.wait(60) == (130 if number == signal.SIGTERM else -signal.SIGKILL)
        if number == signal.SIGKILL:
            assert alive(processes)
            if removed:
                shutil.rmtree(folder)
            printed = cluster_command("down", folder).stdout
            assert re.match(r"ended \d+ processes", printed)
            assert ("the folder was removed" in printed) == removed
        assert find_processes(folder) == set()
        assert alive(processes) == []
        assert not state.temporary.exists()
        assert not (folder / "state.json").exists()


class TestRefused:
    @pytest.mark.parametrize(
        ("variables", "message"),
        [
            ({"WORKERS": "0"}, "WORKERS=0: expected a whole number from 1 to 64"),
            ({"WORKERS": "two"}, "WORKERS=two: expected .*"),
            ({"CPUS": "65"}, "CPUS=65: expected .*"),
            ({"RAY_PORT": "80"}, "RAY_PORT=80: expected a whole number from 1024 to 65535"),
            ({"MLFLOW_PORT": "-1"}, "MLFLOW_PORT=-1: expected .*"),
            ({"MLFLOW_PORT": "43210", "RAY_PORT": "43210"}, "port 43210 is in use; .* another RAY_PORT"),
            ({"RAY_AUTH_MODE": "maybe"}, "RAY_AUTH_MODE=maybe: expected token, disabled or nothing"),
            ({"RAY_AUTH_MODE": "token"}, "RAY_AUTH_MODE=token: no token; set RAY_AUTH_TOKEN, or run .*"),
        ],
    )
    def test_up_with_a_wrong_variable(self, tmp_path: Path, variables: dict[str, str], message: str) -> None:
        """One line names the variable, the exit code is 2, and no folder is created."""
        no_token = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""}
        done = cluster_command("up", tmp_path / "none", free_ports() | no_token | variables)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(f"cluster: {message}\n", done.stderr)
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize("action", ["up", "down", "status"])
    def test_a_foreign_state_file(self, tmp_path: Path, action: str) -> None:
        """A state file that `up` did not write is named in one line with exit code 2, and stays."""
        (tmp_path / "state.json").write_text("[1, 2]")
        done = cluster_command(action, tmp_path, free_ports())
        assert done.returncode == 2
        assert re.fullmatch(r"cluster: .*state.json is not the state of a cluster; remove it, .*\n", done.stderr)
        assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
        assert (tmp_path / "state.json").read_text() == "[1, 2]"

    def test_status_without_a_cluster(self, tmp_path: Path) -> None:
        """`status` of a folder without a cluster names the command that starts one, and returns 2."""
        done = cluster_command("status", tmp_path)
        assert done.returncode == 2
        assert "`make cluster` starts one" in done.stderr

    def test_an_unknown_action(self, tmp_path: Path) -> None:
        """A wrong command line is refused in one line with exit code 2."""
        done = cluster_command("restart", tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)


class TestProcesses:
    def test_a_process_number_in_the_state_is_not_enough(self, tmp_path: Path) -> None:
        """A process that reuses the number of a recorded service is neither counted nor ended."""
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as other:
            try:
                state = State(folder=tmp_path, services={"head": other.pid})
                (tmp_path / "state.json").write_text(state.model_dump_json())
                assert state.stop() == 0
                assert other.poll() is None
            finally:
                other.kill()

    @pytest.mark.parametrize("orphans", [False, True])
    def test_stubborn_processes_and_orphans_are_ended(self, tmp_path: Path, orphans: bool) -> None:
        """Processes that ignore SIGTERM are found and ended by their mark, by their session if they lack it, or by
        their parent if they also have a session of their own; without the parent, only that last one is not."""
        script = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for environment in (None, {}):
    for session in (False, True):
        subprocess.Popen(["sleep", "600"], env=environment, start_new_session=session)
print("ready", flush=True)
time.sleep(600)
"""
        environment = os.environ | {MARK: str(tmp_path)}
        with subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, start_new_session=True
        ) as root:
            assert root.stdout is not None
            assert root.stdout.readline() == b"ready\n"
            processes = find_processes(tmp_path)
            try:
                assert len(processes) == 5
                if orphans:
                    root.kill()
                    root.wait()
                assert stop_processes(tmp_path, seconds=1.0) == (3 if orphans else 5)
                assert len(alive(processes)) == (1 if orphans else 0)
            finally:
                for process in alive(processes):
                    process.kill()
