"""How far a cluster can grow by itself: whether it has an autoscaler, what that may start, and waiting for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.util.placement_group import placement_group, remove_placement_group

from bench.probe.driver import has_autoscaler, read_autoscaler_report
from bench.ray_backend.capacity import trials_per_node
from bench.utils.text import single_line

__all__ = ["Growth", "NodeType", "growth", "wait_for"]


PATIENCE = 60.0  # seconds without a node on its way: an autoscaler looks every 5
LONGEST = 1800.0
"""Seconds in all: an autoscaler asks its cloud again and again for what that refuses, so some node is always coming."""


@dataclass(frozen=True)
class NodeType:
    """Machines that an autoscaler may start: each one's resources, and how many there may be."""

    resources: dict[str, float]
    most: int


@dataclass(frozen=True)
class Growth:
    """What an autoscaler may start: nodes of these types, ``most`` of them together; None where nobody says."""

    types: tuple[NodeType, ...] | None = None
    most: int = 0

    @property
    def resources(self) -> list[dict[str, float]]:
        """Of one node of each type."""
        return [kind.resources for kind in self.types or ()]

    def holds(self, wanted: Mapping[str, float]) -> int | None:
        """How many trials that take ``wanted`` such nodes hold together; None where nobody says."""
        if self.types is None:
            return None
        left, count = self.most, 0
        for each, most in sorted(((trials_per_node(t.resources, wanted), t.most) for t in self.types), reverse=True):
            nodes = min(most, left)
            count, left = count + nodes * each, left - nodes
        return count


def growth() -> Growth | None:
    """What the cluster's autoscaler may start; None where there is none.

    The limits of `ray up` are in a file of the head, and known where the driver runs there. Those of KubeRay are not to
    be read from inside.
    """
    for file in _configs(ray.get_runtime_context().gcs_address):
        try:
            return limits_of(yaml.safe_load(file.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
            return Growth()
    return Growth() if has_autoscaler() else None  # an autoscaler that does not answer starts nothing either


def limits_of(config: Mapping[str, Any]) -> Growth:
    """What a `ray up` configuration allows to be started beside the head; unknown where it does not say what a node
    has, as that of one's own machines, whose resources Ray counts when they join."""
    kinds = [kind for kind in config["available_node_types"].values() if kind.get("max_workers")]
    if not all(kind.get("resources") for kind in kinds):
        return Growth()
    types = [
        NodeType({name: float(amount) for name, amount in kind["resources"].items()}, kind["max_workers"])
        for kind in kinds
    ]
    return Growth(tuple(types), int(config.get("max_workers", sum(kind.most for kind in types))))


def wait_for(wanted: Mapping[str, float], say: Callable[[str], object]) -> str | None:
    """Asks for a node that holds a trial, and waits as long as one is on its way, half an hour at most.

    What is asked for is a placement group, as Tune asks for its trials: unlike `request_resources` it ends with the
    driver, so that a cluster whose driver was killed goes to sleep again.

    Returns:
        None once it is there, else what became of it, in words.
    """
    say("no node of the cluster holds a trial: asking its autoscaler for one, and waiting")
    group = placement_group([dict(wanted)])
    told, failed, since = "", "", time.monotonic()
    hoped = since
    try:
        while not group.wait(1):
            coming, problem = _coming()
            if coming:
                hoped = time.monotonic()
            if coming and coming != told:
                say(f"waiting for {coming}")
                told = coming
            if problem and problem != failed:
                say(f"could not be started: {problem}")
                failed = problem
            now = time.monotonic()
            if now - hoped > PATIENCE or now - since > LONGEST:
                return f"none came in {now - since:.0f} s" + (f", and could not be started: {failed}" if failed else "")
    finally:
        remove_placement_group(group)
    say("a node that holds a trial is there")
    return None


def _coming() -> tuple[str, str]:
    """What is on its way, and what could not be started, in words; nothing where nothing is, or nobody answers."""
    try:
        coming, failed = _second() if is_autoscaler_v2() else _first()
    except Exception:
        return "", ""
    listed = ", ".join(f"{coming.count(name)} x {name}" for name in sorted(set(coming)))
    return listed, single_line("; ".join(sorted({f"{name} ({why})" if why else name for name, why in failed})), 300)


Launches = tuple[list[str], list[tuple[str, str]]]
"""Types of the nodes that are on their way, one by one; and of those that failed, each with the reason."""


def _second() -> Launches:
    """As Ray's second autoscaler says."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    coming = [launch.ray_node_type_name for launch in status.pending_launches for _ in range(launch.count)]
    coming += [node.ray_node_type_name for node in status.pending_nodes]
    return coming, [(launch.ray_node_type_name, launch.details or "") for launch in status.failed_launches]


def _first() -> Launches:
    """As Ray's first autoscaler says: nodes that were started and died, and types that its cloud refused of late."""
    told = read_autoscaler_report()
    coming = [name for name, count in told.get("pending_launches", {}).items() for _ in range(count)]
    coming += [name for _, name, _ in told.get("pending_nodes", [])]
    failed = [(name, "") for _, name in told.get("failed_nodes", [])]
    refused = (told.get("node_availability_summary") or {}).get("node_availabilities", {})
    for name, record in refused.items():
        if not record["is_available"]:
            failed.append((name, (record.get("unavailable_node_information") or {}).get("description") or ""))
    return coming, failed


def _configs(gcs_address: str) -> Iterator[Path]:
    """The file that the autoscaler of that cluster was started with, where it runs on this machine."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # the process has ended, or is another user's
        if f"--gcs-address={gcs_address}" in words:
            for word in words:
                name, _, value = word.partition("=")
                if name == "--autoscaling-config" and value:
                    yield Path(os.path.expanduser(value))
