"""Start, stop or check a Ray cluster and an MLflow server that listen on loopback only: `python -m cluster.local`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from deelbo.paths import expand_user

DEFAULTS = {"DASHBOARD_PORT": 8265, "MLFLOW_PORT": 5000, "RAY_PORT": 6379, "WORKERS": 2, "CPUS": 1}
MAX_START_SECONDS = 180.0
TOKEN_ENV = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")  # for Ray's nodes only
OTHER_CLUSTER_ENV = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_TMPDIR")
MARK = "DEELBO_CLUSTER"  # environment variable that the processes of a cluster inherit: the folder of the cluster


def session_of(process: psutil.Process) -> int:
    """Session of a process; 0 if it has ended, and for threads of the kernel."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return os.getsid(process.pid)
    return 0


def find_processes(folder: Path) -> set[psutil.Process]:
    """Find marked processes and, as Ray overwrites the environment of some, their sessions and all descendants."""
    sessions = {process: session_of(process) for process in psutil.process_iter(["ppid", "environ"])}
    alive = {process for process, session in sessions.items() if session} - {psutil.Process()}
    found = {process for process in alive if (process.info["environ"] or {}).get(MARK) == str(folder)}
    found |= {process for process in alive if sessions[process] in {sessions[marked] for marked in found}}
    while children := {one for one in alive if one.info["ppid"] in {parent.pid for parent in found}} - found:
        found |= children
    return found


def stop_processes(folder: Path, seconds: float = 15.0) -> int:
    """End all processes of a cluster by SIGTERM, then by SIGKILL, and return how many there were."""
    found = find_processes(folder)
    services = {process for process in found if session_of(process) == process.pid}  # these end their own in order
    for group, number in ((services, signal.SIGTERM), (found, signal.SIGTERM), (found, signal.SIGKILL)):
        found |= find_processes(folder)
        for process in group:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)  # never to a later process of the same number
        deadline = time.monotonic() + seconds
        while any(map(session_of, group)) and time.monotonic() < deadline:
            time.sleep(0.1)
    if left := sorted(process.pid for process in found | find_processes(folder) if session_of(process)):
        raise OSError(f"processes {left} outlive SIGKILL; they may wait for an unreachable disk: check them")
    return len(found)


class State(BaseModel):
    """Ports and process numbers of a cluster, by name, recorded in its folder while it is up."""

    folder: Path
    ports: dict[str, int] = {}
    services: dict[str, int] = {}

    @classmethod
    def read(cls, folder: Path) -> State:
        file = folder / "state.json"
        try:
            return cls.model_validate_json(file.read_bytes()) if file.exists() else cls(folder=folder)
        except ValidationError:
            raise ValueError(f"{file} is not the state of a cluster; remove it, and try again") from None

    @property
    def temporary(self) -> Path:
        """Folder of Ray's sockets, whose paths must be shorter than 108 bytes, and logs: removed with the cluster."""
        return Path(f"/tmp/deelbo-{hashlib.sha256(bytes(self.folder)).hexdigest()[:8]}")  # noqa: S108

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}"

    def start(self, name: str, command: list[str], variables: dict[str, str]) -> None:
        """Start a command of this Python in a session, working directory and $TMPDIR of its own, and record it."""
        work = self.temporary / f"{name}-work"
        work.mkdir()
        environment = {key: value for key, value in os.environ.items() if key not in (*TOKEN_ENV, *OTHER_CLUSTER_ENV)}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        environment |= variables | {MARK: str(self.folder), "PYTHONUNBUFFERED": "1", "TMPDIR": str(work)}
        with (self.folder / "logs" / f"{name}.log").open("wb") as log:
            pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            command = [sys.executable, *command]
            process = subprocess.Popen(command, cwd=work, env=environment, start_new_session=True, **pipes)
        self.services[name] = process.pid
        (self.folder / "state.json").write_text(self.model_dump_json(indent=2), encoding="utf-8")

    def ended(self) -> list[str]:
        """Names of the services that no longer run."""
        running = {process.pid for process in find_processes(self.folder)}
        return [name for name, pid in self.services.items() if pid not in running]

    def problems(self, token: str) -> list[str]:
        """Describe services that have ended, then those whose API does not answer, though MLflow's /health might."""
        found = [f"{name} has ended; see {self.folder}/logs/{name}.log" for name in self.ended()]
        nodes = get_json(f"{self.url('dashboard')}/nodes?view=summary", token).get("data", {}).get("summary", [])
        alive = sum(node["raylet"].get("state") == "ALIVE" for node in nodes)
        if alive < len(self.services) - 1:
            found.append(f"{alive} of {len(self.services) - 1} Ray nodes are alive, by {self.url('dashboard')}")
        if "experiment" not in get_json(f"{self.url('mlflow')}/api/2.0/mlflow/experiments/get?experiment_id=0"):
            found.append(f"mlflow does not answer on {self.url('mlflow')}")
        return found

    def stop(self) -> int:
        """End all processes, save the logs of Ray's nodes and jobs, and remove the temporary folder and the record."""
        count = stop_processes(self.folder)
        for logs in self.temporary.glob("*/session_latest/logs"):
            saved = self.folder / "logs" / f"{logs.parents[1].name}-ray"
            shutil.rmtree(saved, ignore_errors=True)
            shutil.copytree(logs, saved, ignore_dangling_symlinks=True)
        shutil.rmtree(self.temporary, ignore_errors=True)
        (self.folder / "state.json").unlink(missing_ok=True)
        return count


def get_json(url: str, token: str = "") -> Any:
    request = Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310 - loopback
    with suppress(OSError, ValueError), build_opener(ProxyHandler({})).open(request, timeout=5) as answer:
        return json.loads(answer.read())
    return {}


def read_variable(name: str) -> int:
    lowest, highest = (1024, 65535) if name.endswith("_PORT") else (1, 64)
    text = os.environ.get(name) or str(DEFAULTS[name])
    if not (text.isascii() and text.isdigit() and lowest <= int(text[:9]) <= highest):
        raise ValueError(f"{name}={text}: expected a whole number from {lowest} to {highest}")
    return int(text)


def read_token() -> str:
    """Return the token that Ray shall require, from where Ray looks for it; empty unless RAY_AUTH_MODE=token."""
    mode = os.environ.get("RAY_AUTH_MODE", "").strip().lower() or "disabled"
    if mode not in ("disabled", "token"):
        raise ValueError(f"RAY_AUTH_MODE={mode}: expected token, disabled or nothing")
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "get-auth-token"]
    token = mode == "token" and subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if mode == "token" and not token:
        raise ValueError("RAY_AUTH_MODE=token: no token; set RAY_AUTH_TOKEN, or run `ray get-auth-token --generate`")
    return token or ""


def read_ports() -> dict[str, int]:
    """Return the ports of the services, and a free one for the server of Ray's client."""
    sockets = psutil.net_connections("tcp")
    used = {one.laddr.port for one in sockets if one.laddr and one.status == psutil.CONN_LISTEN}
    ports = {}
    for name in ("dashboard", "mlflow", "ray"):
        variable = f"{name.upper()}_PORT"
        ports[name] = port = read_variable(variable)
        if port in used:
            raise ValueError(f"port {port} is in use; end what listens there, or set another {variable}")
        used.add(port)
    return ports | {"client": next(free for free in range(10001 + port % 20000, 32768) if free not in used)}


def start_services(state: State, token: str, workers: int, cpus: int) -> None:
    """Start MLflow, the head, and the workers, which wait for the head."""
    folder, ports = state.folder, state.ports
    hosts = f"127.0.0.1,127.0.0.1:{ports['mlflow']},localhost,localhost:{ports['mlflow']}"
    options = f"--host 127.0.0.1 --port {ports['mlflow']} --workers 1 --allowed-hosts {hosts} --serve-artifacts".split()
    options += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    options += ["--artifacts-destination", f"{folder}/mlartifacts"]
    variables = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    state.start("mlflow", ["-m", "mlflow", "server", *options], variables)
    head = f"--head --port {ports['ray']} --num-cpus 0 --ray-client-server-port {ports['client']} --disable-usage-stats"
    nodes = {"head": f"{head} --dashboard-host 127.0.0.1 --dashboard-port {ports['dashboard']}"}
    worker = f"--address 127.0.0.1:{ports['ray']} --num-cpus {cpus}"
    nodes |= {f"worker{number}": worker for number in range(1, workers + 1)}
    # nodes of one address would choose the same ports, and Ray would take a third of the memory for each node's objects
    common = "--block --node-ip-address 127.0.0.1 --num-gpus 0 --object-store-memory 536870912 "
    common += "--min-worker-port 0 --max-worker-port 0 --dashboard-agent-listen-port 0"
    variables = {"RAY_AUTH_MODE": "token" if token else "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    variables |= {name: os.environ[name] for name in TOKEN_ENV if token and name in os.environ}
    for name, node in nodes.items():
        command = [str(Path(__file__).with_name("node.py")), *node.split(), *common.split(), "--node-name", name]
        state.start(name, [*command, "--temp-dir", str(state.temporary / name)], variables)


def up(folder: Path) -> int:
    """Start a cluster and wait until all of it answers; on failure stop what was started."""
    workers, cpus, token = read_variable("WORKERS"), read_variable("CPUS"), read_token()
    named = f" CLUSTER={shlex.quote(str(folder))}" * (folder != Path("deelbo-cluster").absolute())
    down_command = f"make cluster-down{named}"
    State.read(folder)
    if find_processes(folder):
        raise ValueError(f"a cluster is already up in {folder}; use it, or end it by `{down_command}`")
    state = State(folder=folder, ports=read_ports())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # Ray's logs contain the variables of jobs
    with FileLock(folder / "lock", timeout=0):
        shutil.rmtree(state.temporary, ignore_errors=True)
        state.temporary.mkdir(mode=0o700)
        (folder / "logs").mkdir(exist_ok=True)
        try:
            start_services(state, token, workers, cpus)
            deadline = time.monotonic() + MAX_START_SECONDS
            while problems := state.problems(token):
                if state.ended() or time.monotonic() > deadline:
                    raise ValueError(f"the cluster did not start: {problems[0]}")
                time.sleep(0.3)
        except BaseException:
            state.stop()
            raise
    tokens = "required (RAY_AUTH_MODE=token in each shell)" if token else "off: other users here can run code as you"
    dashboard, mlflow = state.url("dashboard"), state.url("mlflow")
    own = shlex.quote(f"{Path(sys.executable).parent}/deelbo-bench")
    bench = "deelbo-bench" if shutil.which("deelbo-bench") else own
    print(f"""\
Ray     {dashboard}  (dashboard and Job API; workers: {workers}, CPUs of each: {cpus})
MLflow  {mlflow}
Tokens  {tokens}
Kept    {folder}: logs, MLflow's database and artifacts

Next:
  {bench} submit quickstart --address {dashboard} --storage {shlex.quote(f"{folder}/storage")} --tracking-uri {mlflow}
  {bench} status --address {dashboard}
  {down_command}
  RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 {bench} run ... --address 127.0.0.1:{state.ports["ray"]}    # a local driver""")
    return 0


def down(folder: Path) -> int:
    removed, state, count = not folder.is_dir(), State.read(folder), 0
    if state.services or find_processes(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=0):
            count = state.stop()
    lost = "; the folder was removed meanwhile: MLflow's database and artifacts are gone" * removed
    print(f"ended {count} processes; kept: {folder}{lost}" if count else f"no cluster of {folder} is up")
    return 0


def status(folder: Path) -> int:
    state = State.read(folder)
    if not state.services or not find_processes(folder):
        raise ValueError(f"no cluster of {folder} is up; `make cluster` starts one")
    problems = state.problems(read_token())
    print("\n".join(problems) or f"all services run and answer: {', '.join(state.services)}")
    return 1 if problems else 0


def main() -> int:
    """Return 0 on success, 1 if `status` found a problem, 2 after an error in one line, 130 if interrupted."""
    parser = argparse.ArgumentParser("cluster", usage=argparse.SUPPRESS, description=__doc__)
    parser.epilog = "variables: " + ", ".join(f"{name}={value}" for name, value in DEFAULTS.items())
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("--folder", type=Path, default=Path("deelbo-cluster"), help="for logs and MLflow's database")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        folder = expand_user(options.folder).absolute()
        return {"up": up, "down": down, "status": status}[options.action](folder)
    except Timeout:
        print(f"cluster: another command starts or stops the cluster in {folder}; wait for it", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"cluster: {' '.join(str(error).split())}", file=sys.stderr)
    except KeyboardInterrupt:
        print("cluster: stopped", file=sys.stderr)
        return 130
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
