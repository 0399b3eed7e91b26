"""Ray clusters for tests and measurements: a head and its nodes, processes of this machine that listen on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG

from cluster.local import node
from cluster.local.node import LOOPBACK_ENV
from tests.faults.processes import alive, descendants

LOOPBACK = {
    **LOOPBACK_ENV,
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "120",  # 30 are not enough where many nodes start on few cores
}
FAKE = {
    "type": "external",  # "fake_multinode" reads a file that Ray's wheel does not have
    "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    "launch_multiple": True,
    "disable_node_updaters": True,  # there is no machine to log in to
    "head_node_id": FAKE_HEAD_NODE_ID,
}
"""Ray's provider of nodes that are processes of this machine."""
AUTOSCALER_1 = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0"}
AUTOSCALER_2 = AUTOSCALER_1 | {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_NODE_TYPE_NAME": "ray.head.default",  # as `ray up` and KubeRay set it
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}
"""Variables of a head with Ray's first, or second, autoscaler; the second is the default of `ray up` and KubeRay."""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Raylets:
    """A head without CPUs, as those of clusters should be, and nodes beside it. All are gone when the block ends.

    Args:
        config: of an autoscaler, as `ray up` takes it, with the fake provider; None for none.
        environment: more variables for the head.
    """

    def __init__(self, config: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # sockets' paths must be short
        self.address = f"127.0.0.1:{_free_port()}"
        self.environment = os.environ | LOOPBACK | (environment or {})
        self.processes: list[subprocess.Popen[bytes]] = []
        self._config = config

    def __enter__(self) -> Raylets:
        command = ["--head", f"--port={self.address.rpartition(':')[2]}", "--num-cpus=0", "--include-dashboard=false"]
        command += [
            f"--temp-dir={self.folder}",
            f"--ray-client-server-port={_free_port()}",
            f"--dashboard-port={_free_port()}",  # taken although there is to be no dashboard
            "--dashboard-agent-listen-port=0",
        ]
        if self._config is not None:
            file = self.folder / "autoscaler.yaml"
            provider = FAKE | {"gcs_address": self.address}
            file.write_text(json.dumps(BASE_READONLY_CONFIG | {"provider": provider} | self._config))
            command.append(f"--autoscaling-config={file}")
        try:
            self._start(*command)
            self._until(self._answers, "the head answers")
            self.wait(1)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def add(self, cpus: float = 1, gpus: float = 0, resources: Mapping[str, float] | None = None) -> None:
        """One more node."""
        command = [f"--address={self.address}", f"--num-cpus={cpus:g}", f"--num-gpus={gpus:g}"]
        command += [f"--resources={json.dumps(dict(resources or {}))}", "--dashboard-agent-listen-port=0"]
        self._start(*command)

    def wait(self, nodes: int, seconds: float = 60.0) -> None:
        """Until so many nodes are there, the head included."""
        from ray._raylet import GcsClient

        client = GcsClient(self.address)
        self._until(lambda: len(client.get_all_node_info(timeout=10)) >= nodes, f"{nodes} nodes", seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends just what was started here: each `ray start --block`, and what it started."""
        below: dict[int, str] = {}
        for process in self.processes:
            below |= descendants(process.pid)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in alive(below):
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["rm", "-rf", str(self.folder)], check=False)

    def _start(self, *command: str) -> None:
        ray = [sys.executable, node.__file__, "--block"]
        with (self.folder / f"start{len(self.processes)}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [*ray, "--disable-usage-stats", "--node-ip-address=127.0.0.1", *command],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        with socket.socket() as asked:
            return asked.connect_ex((host, int(port))) == 0

    def _until(self, what: Callable[[], bool], words: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end or any(process.poll() is not None for process in self.processes):
                logs = "\n".join(file.read_text()[-500:] for file in self.folder.glob("start*.log"))
                raise RuntimeError(f"not within {seconds:.0f} s: {words}\n{logs}")
            time.sleep(0.1)


def start_driver(cluster: Raylets, **resources: Any) -> subprocess.Popen[str]:
    """Start a driver of its own that runs sixteen trials that sleep."""
    command = [sys.executable, "tests/performance/slots.py", "--drive", cluster.address, "--trials", "16"]
    command += ["--since", str(time.time()), "--resources", json.dumps(resources)]
    root, pipe = Path(__file__).parents[2], subprocess.PIPE
    return subprocess.Popen(command, cwd=root, env=os.environ | LOOPBACK, stdout=pipe, stderr=pipe, text=True)
