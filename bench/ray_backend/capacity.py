"""How many trials the nodes of a cluster hold at once, counted node by node: a trial is never spread over two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from bench.config.benchmark import Benchmark
from bench.config.sections import Resources

__all__ = ["accelerator_of", "one_accelerator", "refusal", "trial_resources", "trials_per_node"]


ACCELERATOR = "accelerator_type:"
PIN = 0.001
"""Of a node's one `accelerator_type:X`: Ray counts it like a resource, so a trial takes as little as Ray can count."""
SLACK = 1e-4  # Ray counts in ten-thousandths: ten trials of 0.1 GPU fit one


def trial_resources(resources: Resources) -> dict[str, float]:
    """What Ray is asked for, for one trial, by the names that nodes have for it."""
    wanted = {"CPU": float(resources.cpus_per_trial), "GPU": resources.gpus_per_trial}
    if resources.accelerator is not None:
        wanted[ACCELERATOR + resources.accelerator] = PIN
    return {name: amount for name, amount in wanted.items() if amount}


def trials_per_node(node: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """How many trials that take ``wanted`` a node of these resources holds."""
    return min(int(node.get(name, 0.0) / amount + SLACK) for name, amount in wanted.items())


def accelerator_of(node: Mapping[str, float]) -> str:
    """The type of a node's accelerator as Ray names it, such as H100."""
    named = sorted(name.removeprefix(ACCELERATOR) for name in node if name.startswith(ACCELERATOR))
    return named[0] if named else "unnamed"


def one_accelerator(benchmark: Benchmark, nodes: Iterable[Mapping[str, float]]) -> str | None:
    """Why trials of these nodes could not be compared by their seconds, in one line; None where they can.

    Args:
        benchmark: whose trials they are.
        nodes: resources of each node that is there or may come.
    """
    resources = benchmark.resources
    if not benchmark.timed or not resources.gpus_per_trial or resources.accelerator is not None:
        return None
    wanted = trial_resources(resources)
    fits = [node for node in nodes if trials_per_node(node, wanted)]
    types = Counter[str]()
    for node in fits:
        types[accelerator_of(node)] += int(node["GPU"])
    if len(types) < 2:
        return None
    several = ", ".join(f"{count} x {name}" for name, count in sorted(types.items()))
    return (
        f"the cluster's GPUs are of {len(types)} types ({several}), expected one type for trials that are timed: set "
        f"resources.accelerator to one of them, or timed: false"
    )


def refusal(
    resources: Resources, nodes: Iterable[Mapping[str, float]], may_come: Iterable[Mapping[str, float]] = ()
) -> str:
    """That no node holds a trial: what it takes, what there is, and what to do; in one line.

    Args:
        resources: what a trial takes.
        nodes: resources of each node that is there.
        may_come: those of each type of node that the cluster's autoscaler may start.
    """
    known = [*nodes, *may_come]
    pin = "" if resources.accelerator is None else f" of type {resources.accelerator}"
    most = max(known, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)), default={})
    types = {accelerator_of(node) for node in known if node.get("GPU")}
    named = f"; its GPUs are of type {', '.join(sorted(types))}" if pin and types else ""
    where = f"the cluster has{' or may start' if may_come else ''}"
    what = "lower resources in the configuration, or add a node"
    if resources.gpus_per_trial and not most.get("GPU"):
        what = "set resources.gpus_per_trial=0 to train on CPUs, or add a node with a GPU"
    return (
        f"no trial fits: it takes {resources.cpus_per_trial} CPU and {resources.gpus_per_trial:g} GPU{pin} of one "
        f"node, the largest that {where} is of {most.get('CPU', 0):g} and {most.get('GPU', 0):g}{named}: {what}"
    )
