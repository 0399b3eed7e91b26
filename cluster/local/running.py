"""A cluster of this machine from its start to its end."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.local.asking import alive_nodes, mlflow_answers, token_mode
from cluster.local.parts import start_head, start_mlflow, start_worker
from cluster.local.processes import end
from cluster.local.state import Part, State, temporary_folder

__all__ = ["StartError", "down", "down_command", "status", "up"]

PATIENCE = 180.0
"""Seconds from the start until all must answer."""


class StartError(ValueError):
    """A cluster that did not come up, and is gone again."""


def up(folder: Path, ports: Mapping[str, int], workers: int, cpus: int, patience: float = PATIENCE) -> State:
    """Starts a cluster and waits until all of it answers; what is half started is ended again.

    Raises:
        ValueError: one of the folder is up already, a port is taken, or there is no token where one is asked for.
        StartError: a part of it died or did not answer in time.
    """
    token = token_mode(os.environ)
    if State.read(folder) is None:  # refused input leaves nothing behind
        _check_ports(ports)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # Ray's logs have the variables of jobs in them
    with _alone(folder):
        before = State.read(folder)
        if before is not None and (left := before.processes()):
            raise ValueError(
                f"a cluster is up in {folder} already ({len(left)} processes, dashboard {before.dashboard}): use it, "
                f"or end it with `{down_command(folder)}`"
            )
        if before is not None:
            _clear(before)
        _check_ports(ports)
        (folder / "logs").mkdir(exist_ok=True)
        state = State(folder, temporary_folder(), dict(ports) | {"client": _free_port()}, token, workers)
        state.write()
        try:
            _start(state, cpus, time.monotonic() + patience)
        except BaseException:
            end(state.mark, state.roots)
            _clear(state)
            raise
        return state


def _start(state: State, cpus: int, limit: float) -> None:
    mlflow = start_mlflow(state)  # first, as it takes longest
    head = start_head(state)
    _wait(state, lambda: alive_nodes(state) >= 1, head, limit)
    for number in range(1, state.workers + 1):
        worker = start_worker(state, number, cpus)
    _wait(state, lambda: alive_nodes(state) >= 1 + state.workers, worker, limit)
    _wait(state, lambda: mlflow_answers(state), mlflow, limit)


def _wait(state: State, ready: Callable[[], bool], awaited: Part, limit: float) -> None:
    while not ready():
        for part in state.parts:
            if not part.lives:
                raise StartError(f"{part.name} ended while the cluster started ({_last_words(part)}): see {part.log}")
        if time.monotonic() > limit:
            raise StartError(f"{awaited.name} does not answer in time ({_last_words(awaited)}): see {awaited.log}")
        time.sleep(0.3)


def _last_words(part: Part) -> str:
    """What a part said last, or of that the last that reads like a cause."""
    lines = Path(part.log).read_text(encoding="utf-8", errors="replace").splitlines()
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in lines]
    said = [re.sub(r"^[-\d]+ [:,\d]+\s+[A-Z]+ \S+ -- ", "", line) for line in plain if line]
    causes = [line for line in said if re.search(r"exit code=|^(\w+\.)*\w*(Error|Exception)\b|\[Errno", line)]
    return (causes or said or ["it said nothing"])[-1].rstrip(" :")[:200]


def down_command(folder: Path) -> str:
    """What ends the cluster of that folder."""
    return "make cluster-down" + ("" if folder == Path("deelbo-cluster").absolute() else f" CLUSTER={folder}")


def down(folder: Path) -> tuple[int, list[str]]:
    """Ends what `up` started in a folder; how many processes that were, and what to know of the rest, line by line.

    Raises:
        OSError: a process does not end.
    """
    if State.read(folder) is None:
        return 0, []
    removed = not folder.is_dir()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(folder):
        state = State.read(folder)
        if state is None:
            return 0, []
        count = end(state.mark, state.roots)
        _clear(state)
        remarks = (
            ["the folder was removed while it was up: MLflow's database and artifacts are gone"] if removed else []
        )
        taken = [f"port {port} ({name}) is taken by another" for name, port in state.ports.items() if _taken(port)]
        return count, remarks + taken


def status(folder: Path) -> tuple[State | None, list[tuple[str, str]]]:
    """The cluster of a folder, and what is wrong with it: names and words."""
    state = State.read(folder)
    if state is None:
        return None, []
    wrong = [(part.name, f"has ended ({_last_words(part)}), see {part.log}") for part in state.parts if not part.lives]
    if (nodes := alive_nodes(state)) < 1 + state.workers:
        wrong.append(("ray", f"{nodes} of {1 + state.workers} nodes are alive, by the dashboard on {state.dashboard}"))
    if not mlflow_answers(state):
        wrong.append(("mlflow", f"does not answer on {state.mlflow}"))
    return state, wrong


def _clear(state: State) -> None:
    """Keeps what Ray's nodes and jobs wrote, and removes all else that was for the time being."""
    for part in state.parts:
        logs = Path(state.temporary) / part.name / "session_latest" / "logs"
        kept = state.folder / "logs" / f"{part.name}-ray"
        shutil.rmtree(kept, ignore_errors=True)
        if logs.is_dir():
            shutil.copytree(logs, kept, ignore_dangling_symlinks=True)
    state.forget()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of several that start or end a cluster of one folder, one at a time."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another call starts or ends the cluster in {folder}: wait for it") from None
        yield


def _check_ports(ports: Mapping[str, int]) -> None:
    for name, port in ports.items():
        variable = f"{name.upper()}_PORT"
        if not 1024 <= port <= 65535:
            raise ValueError(f"{variable}={port}: expected a port from 1024 to 65535")
        if list(ports.values()).count(port) > 1:
            raise ValueError(f"{variable}={port} is another part's port too: give each its own")
        if _taken(port):
            raise ValueError(f"port {port} of 127.0.0.1 is taken: end what listens there, or give another {variable}=")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
