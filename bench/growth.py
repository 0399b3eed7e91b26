"""How far a cluster can grow by itself: whether it has an autoscaler, what that may start, and waiting for it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import placement_group, remove_placement_group

from bench.capacity import held

__all__ = ["Growth", "NodeType", "growth", "wait_for"]

PATIENCE = 60.0  # seconds without a node on its way: an autoscaler looks every 5
UNMANAGED = "node_"
"""How Ray names a node's type where nobody started it but people."""


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
        for each, most in sorted(((held(t.resources, wanted), t.most) for t in self.types), reverse=True):
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
    try:
        return Growth() if any(_managed()) else None
    except Exception:  # an autoscaler that does not answer starts nothing either
        return None


def limits_of(config: Mapping[str, Any]) -> Growth:
    """What a `ray up` configuration allows to be started beside the head."""
    types = [
        NodeType({name: float(amount) for name, amount in kind.get("resources", {}).items()}, kind["max_workers"])
        for name, kind in config["available_node_types"].items()
        if kind.get("max_workers")
    ]
    return Growth(tuple(types), int(config.get("max_workers", sum(kind.most for kind in types))))


def wait_for(wanted: Mapping[str, float], say: Callable[[str], object]) -> bool:
    """Asks for a node that holds a trial, and waits for as long as one is on its way; whether it came.

    What is asked for is a placement group, as Tune asks for its trials: unlike `request_resources` it ends with the
    driver, so that a cluster whose driver was killed goes to sleep again.
    """
    say("no node of the cluster holds a trial: asking its autoscaler for one, and waiting")
    group = placement_group([dict(wanted)])
    told, hoped = "", time.monotonic()
    try:
        while not group.wait(1):
            coming = _coming()
            if coming:
                hoped = time.monotonic()
            if coming and coming != told:
                say(f"waiting for {coming}")
                told = coming
            if time.monotonic() - hoped > PATIENCE:
                return False
    finally:
        remove_placement_group(group)
    say("a node that holds a trial is there")
    return True


def _managed() -> Iterator[bool]:
    """Of each node, whether somebody starts nodes of its kind."""
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        for node in [*status.active_nodes, *status.idle_nodes]:
            yield bool(node.ray_node_type_name) and not node.ray_node_type_name.startswith(UNMANAGED)
    else:
        for name in _report().get("active_nodes", {}):
            yield not name.startswith(UNMANAGED)


def _coming() -> str:
    """What is on its way, in words; nothing where nothing is, or nobody answers."""
    try:
        names = _names()
    except Exception:
        return ""
    return ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))


def _names() -> list[str]:
    """Types of the nodes that are on their way."""
    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        names = [launch.ray_node_type_name for launch in status.pending_launches for _ in range(launch.count)]
        names += [node.ray_node_type_name for node in status.pending_nodes]
    else:
        report = _report()
        names = [name for name, count in report.get("pending_launches", {}).items() for _ in range(count)]
        names += [name for _, name, _ in report.get("pending_nodes", [])]
    return names


def _report() -> dict[str, Any]:
    """What Ray's first autoscaler says of itself."""
    found = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    report: dict[str, Any] = json.loads(found).get("autoscaler_report") or {} if found else {}
    return report


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
