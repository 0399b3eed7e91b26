"""A cluster that grows by itself: its limits, and a benchmark on one that has no node for a trial yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.autoscaler._private.local.config import prepare_local
from ray.autoscaler.v2.schema import LaunchRequest, NodeInfo

from bench.ray_backend import autoscaler as watched
from bench.ray_backend.autoscaler import Growth, NodeType, limits_of, wait_for
from tests.helpers.raylets import AUTOSCALER_1, AUTOSCALER_2, LOOPBACK, Raylets

ROOT = Path(__file__).parents[3]
CONFIG = {
    "max_workers": 2,
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "small": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    },
}
CONNECT = """
import sys, time
from bench.ray_backend.connect import connect
from bench.config.loading import parse_benchmark
from bench.exceptions import ConfigError
from tests.performance.slots import benchmark_of
content = benchmark_of(16).content() | {"resources": {"cpus_per_trial": int(sys.argv[2])}}
since = time.monotonic()
try:
    print(connect(parse_benchmark(content, "x"), sys.argv[1]))
except ConfigError as error:
    print(error)
print(time.monotonic() - since)
"""


def test_limits_are_those_of_the_file() -> None:
    """Types that may have workers count, up to their own limit and the cluster's."""
    growth = limits_of(CONFIG)
    assert growth == Growth((NodeType({"CPU": 1.0}, 3),), 2)
    assert growth.holds({"CPU": 1.0}) == 2
    assert growth.holds({"CPU": 2.0}) == 0


def test_the_larger_nodes_are_started_first() -> None:
    """Of two types the one that holds more trials fills the cluster's limit before the other."""
    growth = Growth((NodeType({"CPU": 2.0}, 5), NodeType({"CPU": 8.0}, 3)), 4)
    assert growth.holds({"CPU": 2.0}) == 3 * 4 + 1
    assert growth.holds({"CPU": 2.0, "GPU": 1.0}) == 0


def test_unknown_limits_are_unknown() -> None:
    """An autoscaler whose limits nobody says is said to hold nothing certain."""
    assert Growth().holds({"CPU": 1.0}) is None


def test_machines_of_ones_own_are_not_counted_before_they_join() -> None:
    """`ray up` writes no resources for machines that are not a cloud's: what they hold is unknown, and not nothing."""
    provider = {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]}
    config, _ = prepare_local({"provider": provider})
    assert config["available_node_types"]["local.cluster.node"]["max_workers"] == 2
    assert limits_of(config) == Growth()


class Waiting:
    """Stands in for a placement group that nobody ever fulfils, and for the clock: every look takes ten seconds."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.removed = 0.0, 0
        patch.setattr(watched, "placement_group", lambda _: self)
        patch.setattr(watched, "remove_placement_group", self.remove)
        patch.setattr(watched, "time", SimpleNamespace(monotonic=lambda: self.now))

    def wait(self, _: int) -> bool:
        self.now += 10
        return False

    def remove(self, _: object) -> None:
        self.removed += 1


@pytest.mark.parametrize("second", [False, True], ids=["v1", "v2"])
def test_a_launch_that_fails_for_ever_is_given_up(second: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoscaler that starts again and again what its cloud refuses is waited for half an hour; each reason is told
    once as it becomes known, and again at the end."""
    waiting, said = Waiting(monkeypatch), list[str]()
    pending = LaunchRequest("g5", "gpu", 2, LaunchRequest.Status.PENDING, 0)
    refused = LaunchRequest("g5", "gpu", 2, LaunchRequest.Status.FAILED, 0, 1, "no capacity\nin this zone")
    node = NodeInfo("g5", "gpu", "i-1", "10.0.0.9")
    status = SimpleNamespace(pending_launches=[pending], pending_nodes=[node], failed_launches=[refused])
    record = {"is_available": False, "unavailable_node_information": {"description": "no capacity in this zone"}}
    report = {
        "pending_launches": {"gpu": 2},
        "pending_nodes": [["10.0.0.9", "gpu", "setting-up"]],
        "node_availability_summary": {"node_availabilities": {"gpu": record, "cpu": {"is_available": True}}},
    }
    monkeypatch.setattr(watched, "is_autoscaler_v2", lambda: second)
    monkeypatch.setattr(watched, "get_cluster_status", lambda _: status)
    monkeypatch.setattr(watched, "report", lambda: report)
    monkeypatch.setattr(watched.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="x"))
    trouble = wait_for({"GPU": 1.0}, said.append)
    assert trouble == "none came in 1810 s, and could not be started: gpu (no capacity in this zone)"
    assert said[1:] == ["waiting for 3 x gpu", "could not be started: gpu (no capacity in this zone)"]
    assert waiting.removed == 1


def test_where_nothing_is_on_its_way_it_is_given_up_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoscaler that starts nothing, or says nothing, is waited for a minute; what died is named."""
    waiting = Waiting(monkeypatch)
    monkeypatch.setattr(watched, "is_autoscaler_v2", lambda: False)
    monkeypatch.setattr(watched, "report", lambda: {"failed_nodes": [["10.0.0.9", "gpu"], ["10.0.0.8", "gpu"]]})
    assert wait_for({"GPU": 1.0}, lambda _: None) == "none came in 70 s, and could not be started: gpu"
    monkeypatch.setattr(watched, "report", lambda: 1 / 0)
    assert wait_for({"GPU": 1.0}, lambda _: None) == "none came in 70 s"
    assert waiting.removed == 2


def test_a_file_that_is_none_is_refused() -> None:
    """A configuration without types of nodes gives no limits."""
    with pytest.raises(KeyError):
        limits_of({"max_workers": 3})


def connect(cluster: Raylets, cpus: int) -> tuple[list[str], float]:
    """What a driver of its own says on the way, and how long it took, Ray's start included."""
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, cluster.address, str(cpus)],
        cwd=ROOT,
        env=os.environ | LOOPBACK,
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
        check=True,
    )
    *said, seconds = done.stdout.splitlines()
    return said, float(seconds)


@pytest.fixture(params=[AUTOSCALER_1, AUTOSCALER_2], ids=["v1", "v2"])
def growing(request: pytest.FixtureRequest) -> Iterator[Raylets]:
    """A head without CPUs whose autoscaler, Ray's first or second, may start two nodes of one."""
    with Raylets(CONFIG, request.param) as cluster:
        time.sleep(5)  # Ray's first autoscaler says something of itself once it has looked around
        yield cluster


@pytest.mark.slow
@pytest.mark.cluster
def test_a_benchmark_runs_on_a_cluster_that_sleeps(growing: Raylets) -> None:
    """A trial that no node could ever hold is refused; one that the autoscaler may start a node for is waited for, in a
    line that says so; then as many run at once as its limits allow."""
    said, seconds = connect(growing, 2)
    assert len(said) == 1
    assert "no trial fits: it takes 2 CPU" in said[0]
    assert "the largest that the cluster has or may start is of 1 and 0" in said[0]
    assert seconds < 30
    command = [sys.executable, "tests/performance/slots.py", "--drive", growing.address, "--trials", "16"]
    done = subprocess.run(
        [*command, "--since", str(time.time())],
        cwd=ROOT,
        env=os.environ | LOOPBACK,
        stdout=subprocess.PIPE,
        text=True,
        timeout=400,
        check=True,
    )
    assert "asking its autoscaler for one, and waiting" in done.stdout
    assert "a node that holds a trial is there" in done.stdout
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (result["slots"], result["trials"], result["processes"]) == (2, 16, 2)
    assert result["max_concurrency"] == 2


@pytest.mark.slow
@pytest.mark.cluster
def test_where_nobody_starts_nodes_it_is_refused_at_once() -> None:
    """On a cluster without an autoscaler no trial is waited for: one line says what the nodes have."""
    with Raylets() as cluster:
        said, seconds = connect(cluster, 1)
    assert len(said) == 1
    assert "the largest that the cluster has is of 0 and 0: lower resources" in said[0]
    assert seconds < 30
