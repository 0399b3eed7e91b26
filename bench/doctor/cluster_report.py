"""The request to `doctor`, the cluster's report, and the results of checks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bench.config.benchmark import Benchmark
from bench.config.sections import Resources
from bench.ray_backend.capacity import trial_resources, trials_per_node
from bench.utils.text import single_line

Node = Mapping[str, Any]
Status = Literal["ok", "note", "fail"]
THIS_MACHINE = "this machine"
"""The address of a report on the machine of this process, which is in no cluster."""
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
        return trials_per_node(node["resources"], trial_resources(self.resources))


@dataclass(frozen=True)
class ClusterReport:
    """The facts about a cluster and this machine.

    Attributes:
        address: the address that was given, without a password.
        token_mode: "token" or "disabled".
        ray: Ray's version on the head.
        client: versions of python, ray, torch and deelbo on this machine, None for what is not installed; and the hash
            of its ``code``.
        driver, nodes, problem: as `bench.probe.cluster.inspect_cluster` returns them.
    """

    address: str
    token_mode: str
    ray: str | None
    client: Mapping[str, str | None]
    driver: Mapping[str, Any] = field(default_factory=dict)
    nodes: Sequence[Node] = ()
    problem: str | None = None

    @property
    def answered(self) -> list[Node]:
        """The nodes that answered."""
        return [node for node in self.nodes if node["problem"] is None]

    def trial_nodes(self, request: DoctorRequest) -> list[Node]:
        """Return the nodes on which a trial can run."""
        return [node for node in self.answered if request.trials_on(node)]

    def used_nodes(self, request: DoctorRequest) -> list[Node]:
        """Return the nodes on which a trial or the driver can run; all, if no trial can yet."""
        for_trials = self.trial_nodes(request)
        return [node for node in self.answered if node["driver"] or node in for_trials or not for_trials]


def describe_nodes(some: Sequence[Node], of: Sequence[Node]) -> str:
    """Name some of the nodes: "all 4 nodes", or "5 of 100 nodes (a, b, c, ...)"."""
    if len(some) == len(of) > 1:
        return f"all {len(of)} nodes"
    names = sorted(node["host"] for node in some)
    shown = single_line(", ".join(names[:MAX_SHOWN]) + ", ..." * (len(names) > MAX_SHOWN), 200)
    return shown if len(of) == 1 else f"{len(some)} of {len(of)} nodes ({shown})"


def check_each(
    check: str,
    nodes: Sequence[Node],
    problem: Callable[[Node], str | None],
    todo: str,
    ok: str | None = None,
    status: Status = "fail",
) -> list[CheckResult]:
    """Return a result for each of the most frequent problems of nodes; if there is none, one that is ``ok``."""
    groups: dict[str, list[Node]] = {}
    for node in nodes:
        if why := problem(node):
            groups.setdefault(single_line(why, 200), []).append(node)
    shown = sorted(groups, key=lambda why: -len(groups[why]))[:MAX_SHOWN]
    results = [CheckResult(check, f"{why} on {describe_nodes(groups[why], nodes)}", status, todo) for why in shown]
    if more := len(groups) - len(shown):
        results[-1] = replace(results[-1], found=f"{results[-1].found} (and {more} other problems)")
    return results or ([CheckResult(check, ok, "ok")] if ok else [])
