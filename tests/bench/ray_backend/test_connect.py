"""Counting the slots of a cluster, and waiting for the first node of one that has an autoscaler."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bench.config.loading import parse_benchmark
from bench.exceptions import ConfigError
from bench.ray_backend import connect
from tests.helpers.raylets import AUTOSCALER_1, AUTOSCALER_2, Raylets, start_driver

CONFIG = {
    "max_workers": 2,
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "small": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    },
}


class FakeCluster:
    """Nodes of a cluster with an autoscaler, or without one; a node comes after ``comes_after`` seconds of waiting."""

    def __init__(self, nodes: list[dict[str, float]], elastic: bool | None = True, comes_after: float = 1e9) -> None:
        self.nodes, self.elastic, self.comes_after = nodes, elastic, comes_after
        self.now, self.num_groups, self.lines = 0.0, 0, list[str]()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connect, "_node_resources", lambda: self.nodes)
        monkeypatch.setattr(connect, "has_autoscaler", lambda: self.elastic)
        monkeypatch.setattr(connect, "placement_group", self._add_group)
        monkeypatch.setattr(connect, "remove_placement_group", self._remove_group)
        monkeypatch.setattr(connect, "time", SimpleNamespace(monotonic=lambda: self.now))

    def wait(self, _: float) -> bool:
        self.now += 1
        if self.now > self.comes_after:
            self.nodes = [{"CPU": 1.0}]
        return self.now > self.comes_after

    def _add_group(self, _: object) -> FakeCluster:
        self.num_groups += 1
        return self

    def _remove_group(self, _: object) -> None:
        self.num_groups -= 1


def count(
    cluster: FakeCluster,
    content: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    address: str | None = "x",
    **given: Any,
) -> tuple[int, int] | str:
    """The slots of that cluster and how many fit, or the line by which it is refused."""
    cluster.install(monkeypatch)
    benchmark = parse_benchmark(content | {"resources": given}, "x")
    try:
        return connect.count_slots(benchmark, address, cluster.lines.append)
    except ConfigError as error:
        return str(error)
    finally:
        assert cluster.num_groups == 0


@pytest.mark.parametrize(
    ("num_nodes", "address", "elastic", "slots", "expected", "line"),
    [
        (2, None, None, None, (4, 4), ""),
        (2, None, None, 3, (3, 4), ""),
        (2, "x", False, None, (4, 4), ""),
        (2, "x", False, 9, (4, 4), ""),
        (2, "x", None, 9, (4, 4), ""),
        (2, "x", True, None, (4, 4), "4 at once; the autoscaler may start more nodes: set resources.slots to use them"),
        (2, "x", True, 9, (9, 9), ""),
        (2, "x", True, 3, (3, 4), ""),
    ],
)
def test_slots_are_those_of_the_nodes(
    content: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    num_nodes: int,
    address: str | None,
    elastic: bool | None,
    slots: int | None,
    expected: tuple[int, int],
    line: str,
) -> None:
    """Slots are what the nodes hold, at most `resources.slots`, which is believed if there is an autoscaler."""
    cluster = FakeCluster([{"CPU": 2.0}] * num_nodes, elastic)
    assert count(cluster, content, monkeypatch, address, slots=slots) == expected
    assert cluster.lines == [line] * bool(line)


def test_a_node_is_waited_for(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that the autoscaler starts after 20 minutes is waited for; two lines say so."""
    cluster = FakeCluster([{"CPU": 0.0}], comes_after=1200)
    assert count(cluster, content, monkeypatch, slots=2) == (2, 2)
    assert cluster.lines == [
        "no node of the cluster holds a trial: asking its autoscaler for one, and waiting up to 30 min",
        "a node that holds a trial is there",
    ]


def test_a_node_that_does_not_come_is_given_up(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """After half an hour without a node, one line says what a trial takes and where to look."""
    cluster = FakeCluster([{"CPU": 0.0}])
    message = count(cluster, content, monkeypatch, slots=2, cpus_per_trial=3)
    assert cluster.now == pytest.approx(1800, abs=2)
    assert isinstance(message, str)
    assert "\n" not in message
    assert message.startswith("no trial fits: it takes 3 CPU and 0 GPU of one node")
    assert message.endswith("check with `ray status` on the head why its autoscaler started no such node in 30 min")


def test_slots_are_needed_before_the_first_node(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster without a node for a trial nothing is waited for until `resources.slots` is given."""
    cluster = FakeCluster([{"CPU": 0.0}])
    assert str(count(cluster, content, monkeypatch)).startswith("resources.slots is not given, expected")
    assert cluster.now == 0


@pytest.mark.parametrize("elastic", [False, None])
def test_without_an_autoscaler_nothing_is_waited_for(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, elastic: bool | None
) -> None:
    """A cluster that has no autoscaler, or does not say, is refused at once, with what its nodes have."""
    cluster = FakeCluster([{"CPU": 1.0}], elastic)
    message = count(cluster, content, monkeypatch, slots=2, cpus_per_trial=3)
    assert "the largest that the cluster has is of 1 and 0: lower resources" in str(message)
    assert cluster.now == 0


@pytest.fixture(params=[AUTOSCALER_1, AUTOSCALER_2], ids=["v1", "v2"])
def growing(request: pytest.FixtureRequest) -> Iterator[Raylets]:
    """A head without CPUs whose autoscaler, Ray's first or second, may start two nodes of one."""
    with Raylets(CONFIG, request.param) as cluster:
        time.sleep(5)  # Ray's first autoscaler reports itself once it has looked at the nodes
        yield cluster


@pytest.mark.slow
@pytest.mark.cluster
def test_a_benchmark_runs_on_a_cluster_that_sleeps(growing: Raylets) -> None:
    """Ctrl-C ends the wait for a node at once; once the autoscaler starts nodes, `resources.slots` trials run."""
    driver = start_driver(growing, cpus_per_trial=2, slots=2)
    assert driver.stdout is not None
    assert "asking its autoscaler for one, and waiting up to 30 min" in driver.stdout.readline()
    driver.send_signal(signal.SIGINT)
    since = time.monotonic()
    driver.communicate(timeout=60)
    assert time.monotonic() - since < 20
    driver = start_driver(growing, slots=2)
    out, error = driver.communicate(timeout=400)
    assert "a node that holds a trial is there" in out, error
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert (result["slots"], result["trials"], result["processes"]) == (2, 16, 2)
    assert result["max_concurrency"] == 2


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cluster_without_an_autoscaler_is_refused_at_once() -> None:
    """No trial is waited for: one line says what the nodes have."""
    with Raylets() as cluster:
        since = time.monotonic()
        _, error = start_driver(cluster).communicate(timeout=200)
        assert time.monotonic() - since < 60
    assert "the largest that the cluster has is of 0 and 0: lower resources" in error.splitlines()[-1]
