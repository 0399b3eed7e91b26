"""Count the trials that the nodes of a cluster hold, node by node: a trial is never spread over two nodes."""

from collections import Counter
from collections.abc import Iterable, Mapping

from bench.config.benchmark import Benchmark
from bench.config.sections import Resources

ACCELERATOR = "accelerator_type:"
"""Prefix of the resource by which Ray names a node's type of accelerator; a node has 1 of it."""
ACCELERATOR_SHARE = 0.001
"""Amount of that resource which a trial asks for: the least that Ray counts."""
ROUNDING = 1e-4
"""Ray counts in ten-thousandths, so that ten trials of 0.1 GPU fit one."""


def trial_resources(resources: Resources) -> dict[str, float]:
    """Return the amounts that one trial asks Ray for, by Ray's names of resources."""
    amounts = {"CPU": float(resources.cpus_per_trial), "GPU": resources.gpus_per_trial}
    if resources.accelerator is not None:
        amounts[ACCELERATOR + resources.accelerator] = ACCELERATOR_SHARE
    return {name: amount for name, amount in amounts.items() if amount}


def trials_per_node(node: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """Return the number of trials, each of which takes the resources ``wanted``, that a node holds."""
    return min(int(node.get(name, 0.0) / amount + ROUNDING) for name, amount in wanted.items())


def accelerator_conflict(benchmark: Benchmark, nodes: Iterable[Mapping[str, float]]) -> str | None:
    """Check that all nodes that hold a timed trial have one type of GPU, since seconds on two cannot be compared.

    Args:
        benchmark: whose trials they are.
        nodes: resources of each node.

    Returns:
        the problem in one line, or None.
    """
    resources = benchmark.resources
    if not benchmark.timed or not resources.gpus_per_trial or resources.accelerator is not None:
        return None
    wanted = trial_resources(resources)
    counts = Counter[str]()
    for node in nodes:
        if trials_per_node(node, wanted):
            counts[_accelerator_type(node)] += int(node["GPU"])
    if len(counts) < 2:
        return None
    types = ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))
    return (
        f"the cluster's GPUs are of {len(counts)} types ({types}), expected one type for trials that are timed: set "
        "resources.accelerator to one of them, or timed: false"
    )


def no_fit_message(resources: Resources, nodes: Iterable[Mapping[str, float]]) -> str:
    """Describe in one line that no node holds a trial: what it takes, what the largest node has, and what to do."""
    nodes = list(nodes)
    largest = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)), default={})
    wanted_type = "" if resources.accelerator is None else f" of type {resources.accelerator}"
    types = sorted({_accelerator_type(node) for node in nodes if node.get("GPU")})
    present_types = f"; its GPUs are of type {', '.join(types)}" if wanted_type and types else ""
    advice = "lower resources in the configuration, or add a node"
    if resources.gpus_per_trial and not largest.get("GPU"):
        advice = "set resources.gpus_per_trial=0 to train on CPUs, or add a node with a GPU"
    return (
        f"no trial fits: it takes {resources.cpus_per_trial} CPU and {resources.gpus_per_trial:g} GPU{wanted_type} of "
        f"one node, the largest that the cluster has is of {largest.get('CPU', 0):g} and {largest.get('GPU', 0):g}"
        f"{present_types}: {advice}"
    )


def _accelerator_type(node: Mapping[str, float]) -> str:
    names = sorted(name.removeprefix(ACCELERATOR) for name in node if name.startswith(ACCELERATOR))
    return names[0] if names else "unnamed"
