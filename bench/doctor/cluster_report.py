"""What `doctor` was asked, what it found, and what it says of it; and how many nodes are named in a few words."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.config.benchmark import Benchmark
from bench.config.sections import Resources
from bench.ray_backend.capacity import ACCELERATOR, trial_resources, trials_per_node
from bench.utils.text import single_line

__all__ = ["Asked", "Facts", "Finding", "Node", "complaints", "grouped", "is_loopback", "minor", "spread", "where"]


Node = Mapping[str, Any]
MANY = 3
"""Nodes, and different answers, that are spelled out in a line."""


@dataclass(frozen=True)
class Finding:
    """One line of the table: what was looked at, what was found, whether it will do, and what to do where not."""

    check: str
    found: str
    verdict: Literal["ok", "note", "fail"]
    todo: str = ""

    def describe(self) -> str:
        """In one line."""
        return f"{self.check}: {self.found}" + (f": {self.todo}" if self.todo else "")


@dataclass(frozen=True)
class Asked:
    """What would run, and how its code gets there."""

    benchmark: Benchmark | None = None
    storage: str | None = None
    tracking: str | None = None
    from_source: bool = False
    install: bool = False

    @property
    def cpus(self) -> float:
        """Of one trial."""
        return 1 if self.benchmark is None else self.benchmark.resources.cpus_per_trial

    @property
    def gpus(self) -> float:
        """Of one trial."""
        return 0 if self.benchmark is None else self.benchmark.resources.gpus_per_trial

    @property
    def accelerator(self) -> str | None:
        """The type that every GPU must be of."""
        return None if self.benchmark is None else self.benchmark.resources.accelerator

    @property
    def slots(self) -> int | None:
        """Trials at once, where a number was asked for."""
        return None if self.benchmark is None else self.benchmark.resources.slots

    def trials_on(self, node: Node) -> int:
        """How many trials fit a node at once, by what Ray counts there."""
        resources = Resources() if self.benchmark is None else self.benchmark.resources
        there = {ACCELERATOR + kind: 1.0 for kind in node["accelerators"]}
        return trials_per_node({"CPU": node["cpus"], "GPU": node["gpus"], **there}, trial_resources(resources))


@dataclass(frozen=True)
class Facts:
    """What is known of a cluster, and of here.

    Attributes:
        address: as it was given, without a password.
        token_mode: "token", "disabled", or None where that is not known.
        ray: the version of its head; None where it was not asked.
        client: versions of python, ray, torch and deelbo here; None where there is none.
        driver, nodes, problem: as `bench.probe.__main__.look` gives them.
    """

    address: str
    token_mode: str | None
    ray: str | None
    client: Mapping[str, str | None]
    driver: Mapping[str, Any] = field(default_factory=dict)
    nodes: Sequence[Node] = ()
    problem: str | None = None

    @property
    def answered(self) -> list[Node]:
        """The nodes that spoke for themselves."""
        return [node for node in self.nodes if node["problem"] is None]

    @property
    def hosts(self) -> set[str]:
        """Addresses of the machines: two nodes may be on one."""
        return {node["ip"] for node in self.nodes}

    def for_trials(self, asked: Asked) -> list[Node]:
        """Those on which a trial can run."""
        return [node for node in self.answered if asked.trials_on(node)]

    def concerned(self, asked: Asked) -> list[Node]:
        """Those on which a trial or the driver can run; all, where no trial can yet."""
        some = self.for_trials(asked)
        return [node for node in self.answered if node["driver"] or node in some or not some]

    def may_grow(self, asked: Asked) -> bool:
        """Whether nodes for trials may still come: none is there, and the cluster has an autoscaler, or, where that is
        not known, there is a head alone and a number of slots is asked for."""
        if any(asked.trials_on(node) for node in self.nodes):
            return False
        grows: bool | None = self.driver.get("grows")
        return grows if grows is not None else asked.slots is not None and all(node["head"] for node in self.nodes)

    def name(self, node: Node) -> str:
        """A node's name: its host's, with more where several nodes have that."""
        host = single_line(node["host"], 60)
        return host if sum(other["host"] == node["host"] for other in self.nodes) == 1 else f"{host}/{node['id'][:6]}"


def is_loopback(host: str | None) -> bool:
    """Whether a host's name is each machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return False


def minor(version: str | None) -> str | None:
    """``2.60`` of ``2.60.1``."""
    return None if version is None else ".".join(version.split(".")[:2])


def grouped(nodes: Sequence[Node], what: Callable[[Node], Any]) -> dict[Any, list[Node]]:
    """The nodes by what they say, most nodes first."""
    found: dict[Any, list[Node]] = {}
    for node in nodes:
        found.setdefault(what(node), []).append(node)
    return dict(sorted(found.items(), key=lambda one: -len(one[1])))


def complaints(nodes: Sequence[Node], what: Callable[[Node], str]) -> dict[str, list[Node]]:
    """As `grouped`, in at most `MANY` groups: what is rarer is one group, under the first of its complaints."""
    groups = list(grouped(nodes, what).items())
    rare = groups[MANY - 1 :]
    if len(rare) < 2:
        return dict(groups)
    words = f"{rare[0][0]} (and {len(rare) - 1} other complaints)"
    return dict(groups[: MANY - 1]) | {words: [node for _, some in rare for node in some]}


def where(facts: Facts, some: Sequence[Node], of: Sequence[Node]) -> str:
    """Which of the nodes: "5 of 100 nodes (a, b, c, ...)"."""
    if len(some) == len(of):
        one = "the one node" if len(facts.nodes) == 1 else facts.name(of[0])
        return one if len(of) == 1 else f"all {len(of)} nodes"
    names = ", ".join(sorted(facts.name(node) for node in some)[:MANY])
    return f"{len(some)} of {len(of)} nodes ({names}{', ...' if len(some) > MANY else ''})"


def spread(facts: Facts, of: Sequence[Node], what: Callable[[Node], Any]) -> str:
    """What the nodes say, each answer once: "3.11.9 on all 4 nodes"."""
    groups = grouped(of, what)
    told = [f"{single_line(value or 'none', 200)} on {where(facts, some, of)}" for value, some in groups.items()]
    return "; ".join(told[:MANY]) + (f"; and {len(told) - MANY} more answers" if len(told) > MANY else "")
