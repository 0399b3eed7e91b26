"""The request, the cluster's report and the results of checks; descriptions of nodes in a few words."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.config.benchmark import Benchmark
from bench.config.sections import Resources
from bench.ray_backend.capacity import ACCELERATOR, trial_resources, trials_per_node
from bench.utils.text import single_line

__all__ = ["CheckResult", "ClusterReport", "DoctorRequest", "Node", "Status", "is_loopback", "minor_version"]


Node = Mapping[str, Any]
Status = Literal["ok", "note", "fail"]
MAX_SHOWN = 3
"""Nodes that are named in a line, and different problems of one check."""


@dataclass(frozen=True)
class CheckResult:
    """One row of the table: the check, what it found, its status, and what to do about it."""

    check: str
    found: str
    status: Status
    todo: str = ""

    def describe(self) -> str:
        """Describe the result in one line."""
        return f"{self.check}: {self.found}" + (f": {self.todo}" if self.todo else "")


@dataclass(frozen=True)
class DoctorRequest:
    """The benchmark that would run, its storage and MLflow URI, and how its code reaches the nodes."""

    benchmark: Benchmark | None = None
    storage: str | None = None
    tracking: str | None = None
    from_source: bool = False
    install: bool = False

    @property
    def resources(self) -> Resources:
        """Resources of one trial."""
        return Resources() if self.benchmark is None else self.benchmark.resources

    def trials_on(self, node: Node) -> int:
        """Return the number of simultaneous trials that fit a node."""
        available = {ACCELERATOR + kind: 1.0 for kind in node["accelerators"]}
        available |= {"CPU": node["cpus"], "GPU": node["gpus"]}
        return trials_per_node(available, trial_resources(self.resources))


@dataclass(frozen=True)
class ClusterReport:
    """The facts about a cluster and this machine.

    Attributes:
        address: the address that was given, without a password.
        token_mode: "token", "disabled", or None if unknown.
        ray: Ray's version on the head.
        client: versions of python, ray, torch and deelbo on this machine; None for what is not installed.
        driver, nodes, problem, python: as `bench.probe.cluster.inspect_cluster` returns them.
    """

    address: str
    token_mode: str | None
    ray: str | None
    client: Mapping[str, str | None]
    driver: Mapping[str, Any] = field(default_factory=dict)
    nodes: Sequence[Node] = ()
    problem: str | None = None
    python: str | None = None

    @property
    def answered(self) -> list[Node]:
        """The nodes that answered."""
        return [node for node in self.nodes if node["problem"] is None]

    @property
    def hosts(self) -> set[str]:
        """IP addresses of the machines; several nodes may share one."""
        return {node["ip"] for node in self.nodes}

    def trial_nodes(self, request: DoctorRequest) -> list[Node]:
        """Return the nodes on which a trial can run."""
        return [node for node in self.answered if request.trials_on(node)]

    def used_nodes(self, request: DoctorRequest) -> list[Node]:
        """Return the nodes on which a trial or the driver can run; all, if no trial can yet."""
        for_trials = self.trial_nodes(request)
        return [node for node in self.answered if node["driver"] or node in for_trials or not for_trials]

    def may_grow(self, request: DoctorRequest) -> bool:
        """Return True if no node fits a trial and an autoscaler may start one.

        If Ray does not say, a head alone with a fixed number of slots counts as a cluster that grows.
        """
        if any(request.trials_on(node) for node in self.nodes):
            return False
        grows: bool | None = self.driver.get("grows")
        if grows is None:
            return request.resources.slots is not None and all(node["head"] for node in self.nodes)
        return grows

    def describe_nodes(self, some: Sequence[Node], of: Sequence[Node]) -> str:
        """Name some of the nodes: "all 4 nodes", or "5 of 100 nodes (a, b, c, ...)"."""
        if len(some) == len(of) > 1:
            return f"all {len(of)} nodes"
        hosts = Counter(node["host"] for node in self.nodes)  # several nodes may share one
        names = sorted(node["host"] + f"/{node['id'][:6]}" * (hosts[node["host"]] > 1) for node in some)
        shown = single_line(", ".join(names[:MAX_SHOWN]) + ", ..." * (len(names) > MAX_SHOWN), 200)
        return shown if len(of) == 1 else f"{len(some)} of {len(of)} nodes ({shown})"

    def check_each(
        self,
        check: str,
        nodes: Sequence[Node],
        problem: Callable[[Node], str | None],
        todo: Callable[[str], str] | str,
        ok: str | None = None,
        status: Status = "fail",
    ) -> list[CheckResult]:
        """Return a result for each group of nodes with the same problem; without problems, one that is ``ok``.

        Rare problems share one group, under the first of them. ``todo`` may depend on the problem.
        Without ``ok`` there is no result without problems.
        """
        groups: dict[str, list[Node]] = {}
        for node in nodes:
            if why := problem(node):
                groups.setdefault(single_line(why, 200), []).append(node)
        ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
        if rare := ordered[MAX_SHOWN:]:
            why, some = ordered[MAX_SHOWN - 1]
            others = [node for _, members in rare for node in members]
            ordered[MAX_SHOWN - 1 :] = [(f"{why} (and {len(rare)} other problems)", some + others)]
        results = []
        for why, some in ordered:
            found = f"{why} on {self.describe_nodes(some, nodes)}"
            results.append(CheckResult(check, found, status, todo(why) if callable(todo) else todo))
        return results or ([CheckResult(check, ok, "ok")] if ok else [])


def is_loopback(host: str | None) -> bool:
    """Return True for addresses that mean another machine on every machine."""
    try:
        return host == "localhost" or ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return False


def minor_version(version: str | None) -> str:
    """Return ``2.60`` of ``2.60.1``."""
    return ".".join((version or "").split(".")[:2])
