"""Ask every node of a Ray cluster for its facts; each node answers in a Ray task of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bench
from bench.probe.driver import check_mlflow, has_autoscaler, token_mode
from bench.probe.node import Facts, collect_node_info, missing_markers, read_datasets, remove_marker
from bench.utils.text import describe_error
from bench.utils.urls import TRACKING_URI_VARIABLE

__all__ = ["inspect_cluster", "inspect_own_cluster"]


MAX_STORAGE_SECONDS = 30.0
"""Time for a node to read what the others wrote, and again to remove its own file."""
ACCELERATOR_PREFIX = "accelerator_type:"


def inspect_own_cluster(request: Mapping[str, Any]) -> Facts:
    """Join the cluster that runs this job, and inspect it; a failure is part of the result."""
    import ray

    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        return inspect_cluster(request)
    except Exception as error:
        return {"problem": describe_error(error), "python": platform.python_version(), "driver": {}, "nodes": []}


def inspect_cluster(request: Mapping[str, Any]) -> Facts:
    """Inspect the cluster that this process has joined: all nodes at once, and the driver's machine.

    Args:
        request: ``packages`` and ``modules`` to look for; ``datasets``, ``data`` and ``verify`` as
            `deelbo.data.check_task` takes them; ``weights``, a list of ``{"backbone", "version" or "file"}`` that the
            driver reads; ``storage``, a folder or URL; ``tracking``, MLflow's URI; ``cuda``, true to test the GPUs
            with torch; ``seconds`` for a node to answer, and again to read its data. None means: not checked.
    """
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(bench)  # the nodes may have no or another version of this package
    driver_id = ray.get_runtime_context().get_node_id()
    nodes = [_describe_node(node, driver_id) for node in ray.nodes() if node["Alive"]]
    token = uuid.uuid4().hex[:12]
    markers = {node["id"]: f".deelbo-doctor-{token}-{i}" for i, node in enumerate(nodes)}
    of_driver, of_others = dict(request), {**request, "weights": None}
    arguments = {node: (of_driver if node == driver_id else of_others, name) for node, name in markers.items()}
    answers = _run_on_nodes(collect_node_info, arguments, float(request["seconds"]))
    for node in nodes:
        node.update(answers[node["id"]])
    _read_datasets(nodes, request)
    if request.get("storage"):
        _compare_storages(nodes, request["storage"], markers)
    driver = {
        "token_mode": token_mode(),
        "grows": has_autoscaler(),
        "mlflow": check_mlflow(request.get("tracking") or os.environ.get(TRACKING_URI_VARIABLE)),
        "weights": [file for node in nodes for file in node.pop("weights", [])],
    }
    return {"problem": None, "python": platform.python_version(), "driver": driver, "nodes": nodes}


def _compare_storages(nodes: Sequence[Facts], url: str, markers: Mapping[str, str]) -> None:
    """Add to each node the nodes whose files it does not find in the storage; then remove the files."""
    written = {node["id"]: markers[node["id"]] for node in nodes if node.get("storage", {}).get("wrote")}
    missing = _run_on_nodes(missing_markers, dict.fromkeys(written, (url, written)), MAX_STORAGE_SECONDS)
    # a node that answered too late may have written nevertheless
    to_clean = [node["id"] for node in nodes if node["id"] in written or node["problem"] is not None]
    _run_on_nodes(remove_marker, {node: (url, markers[node]) for node in to_clean}, MAX_STORAGE_SECONDS)
    for node in nodes:
        if node["id"] in written:
            node["storage"].update(missing[node["id"]])


def _read_datasets(nodes: Sequence[Facts], request: Mapping[str, Any]) -> None:
    """Let the nodes that answered read their data: separately, as reading may take long."""
    answered = [node for node in nodes if node["problem"] is None]
    arguments = {node["id"]: (dict(request),) for node in answered if request.get("datasets")}
    answers = _run_on_nodes(read_datasets, arguments, float(request["seconds"]))
    for node in answered:
        answer = answers.get(node["id"], {"data": {}})
        node["data"] = answer.get("data", {})
        node["unread"] = None if "data" in answer else {"problem": answer["problem"], "late": bool(answer.get("late"))}


def _describe_node(node: Mapping[str, Any], driver_id: str) -> Facts:
    """Return what Ray itself knows about a node."""
    resources = node["Resources"]
    return {
        "id": node["NodeID"],
        "ip": node["NodeManagerAddress"],
        "host": node.get("NodeManagerHostname") or node["NodeManagerAddress"],
        "head": "node:__internal_head__" in resources,
        "driver": node["NodeID"] == driver_id,
        "cpus": resources.get("CPU", 0.0),
        "gpus": resources.get("GPU", 0.0),
        "accelerators": sorted(
            name.removeprefix(ACCELERATOR_PREFIX) for name in resources if name.startswith(ACCELERATOR_PREFIX)
        ),
        "problem": None,
    }


def _run_on_nodes(
    function: Callable[..., Facts], arguments: Mapping[str, tuple[Any, ...]], max_seconds: float
) -> dict[str, Facts]:
    """Run a function on each of the nodes, with arguments by node; return its results, or the problems."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    nodes = {}
    for node, values in arguments.items():
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        nodes[remote.options(scheduling_strategy=strategy).remote(*values)] = node
    done, late = ray.wait(list(nodes), num_returns=len(nodes), timeout=max_seconds) if nodes else ([], [])
    answers = {}
    for task in done:
        try:
            answers[nodes[task]] = ray.get(task)
        except Exception as error:
            answers[nodes[task]] = {"problem": describe_error(error)}
    for task in late:
        answers[nodes[task]] = {"problem": f"no answer in {max_seconds:.0f} s", "late": True}
        with contextlib.suppress(Exception):
            ray.cancel(task, force=True)
    return answers
