"""Facts about a Ray cluster: those of its nodes, each of which answers in a Ray task, and of the driver's machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bench
from bench.probe.node import Facts, collect_node_info, missing_markers, read_datasets, remove_marker
from bench.utils.text import connection_problem, describe_error, redact_url, single_line
from bench.utils.urls import TRACKING_URI_VARIABLE

MAX_STORAGE_SECONDS = 30.0
"""Time for a node to read what the others wrote, and again to remove its own file."""
MLFLOW_SECONDS = 20.0
UNMANAGED_PREFIX = "node_"
"""Start of the type that Ray gives to nodes that no autoscaler started."""
OTHER_SERVER = "the answer is not MLflow's"


def inspect_own_cluster(request: Mapping[str, Any]) -> Facts:
    """Join the cluster that runs this job, and inspect it; a failure is part of the result."""
    import ray

    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        return inspect_cluster(request)
    except Exception as error:
        return {"problem": describe_error(error), "nodes": []}


def inspect_cluster(request: Mapping[str, Any]) -> Facts:
    """Inspect the cluster that this process has joined: all nodes at once, and the driver's machine.

    Args:
        request: ``modules``, packages to look for; ``plugins``, each a module, its distribution and the names of the
            packages that it needs, and ``search_path``, folders in which modules are, too; ``datasets``, ``data`` and
            ``verify`` as `deelbo.data.check_task` takes them; ``sources``, the fields of a `deelbo.data.Source` by
            dataset; ``weights``, files or pairs of a backbone and a version that the driver reads; ``storage``, a
            folder or URL; ``tracking``, MLflow's URI; ``cuda``, true to test the GPUs with torch; ``seconds`` for a
            node to answer, and again to read its data. None means: not checked.
    """
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(bench)  # the nodes may have no or another version of this package
    driver_id = ray.get_runtime_context().get_node_id()
    nodes = [_describe_node(node, driver_id) for node in ray.nodes() if node["Alive"]]
    token = uuid.uuid4().hex[:12]
    markers = {node["id"]: f".deelbo-doctor-{token}-{i}" for i, node in enumerate(nodes)}
    arguments = {node: ({**request, "weights": None}, marker) for node, marker in markers.items()}
    arguments[driver_id] = (dict(request), markers[driver_id])
    answers = run_on_nodes(collect_node_info, arguments, float(request["seconds"]))
    for node in nodes:
        node.update(answers[node["id"]])
    _read_datasets(nodes, request)
    if request.get("storage"):
        _compare_storages(nodes, request["storage"], markers)
    driver = {
        "grows": has_autoscaler(),
        "mlflow": check_mlflow(request.get("tracking") or os.environ.get(TRACKING_URI_VARIABLE)),
        "weights": next((node.pop("weights") for node in nodes if node["driver"] and node["problem"] is None), {}),
    }
    return {"problem": None, "driver": driver, "nodes": nodes}


def _compare_storages(nodes: Sequence[Facts], url: str, markers: Mapping[str, str]) -> None:
    """Add to each node the nodes whose files it does not find in the storage; then remove the files."""
    storages = {node["id"]: node["storage"] for node in nodes if node["problem"] is None}
    written = {node: markers[node] for node, storage in storages.items() if storage["problem"] is None}
    answers = run_on_nodes(missing_markers, dict.fromkeys(written, (url, written)), MAX_STORAGE_SECONDS)
    for node, answer in answers.items():
        storages[node].update(answer)
    # also from a node that answered too late: it may have written nevertheless
    run_on_nodes(remove_marker, {node: (url, marker) for node, marker in markers.items()}, MAX_STORAGE_SECONDS)


def _read_datasets(nodes: Sequence[Facts], request: Mapping[str, Any]) -> None:
    """Let the nodes that answered read their data: separately, as reading may take long."""
    datasets, answered = request.get("datasets") or [], [node for node in nodes if node["problem"] is None]
    arguments = {node["id"]: (dict(request),) for node in answered if datasets}
    answers = run_on_nodes(read_datasets, arguments, float(request["seconds"]))
    for node in answered:
        answer = answers.get(node["id"], {})
        node["unread"] = answer.get("late") and f"not read ({answer['problem']})"
        node["data"] = answer.get("data") or dict.fromkeys(datasets, answer.get("problem"))
        node["examples"] = answer.get("examples") or {}


def _describe_node(node: Mapping[str, Any], driver_id: str) -> Facts:
    """Return what Ray itself knows about a node."""
    return {
        "id": node["NodeID"],
        "ip": node["NodeManagerAddress"],
        "host": node.get("NodeManagerHostname") or node["NodeManagerAddress"],
        "driver": node["NodeID"] == driver_id,
        "resources": node["Resources"],
        "problem": None,
    }


def run_on_nodes(
    function: Callable[..., Facts], arguments: Mapping[str, tuple[Any, ...]], max_seconds: float
) -> dict[str, Facts]:
    """Run a function on each of the nodes, with arguments by node; return its results, or the problems."""
    return collect_answers(start_on_nodes(function, arguments), max_seconds)


def start_on_nodes(function: Callable[..., Facts], arguments: Mapping[str, tuple[Any, ...]]) -> dict[Any, str]:
    """Start a function on each of the nodes, with arguments by node; return the nodes by Ray's tasks."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    nodes = {}
    for node, values in arguments.items():
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        nodes[remote.options(scheduling_strategy=strategy).remote(*values)] = node
    return nodes


def collect_answers(nodes: Mapping[Any, str], max_seconds: float) -> dict[str, Facts]:
    """Wait for the tasks of `start_on_nodes`; return their results by node, or the problems."""
    import ray

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


def has_autoscaler() -> bool:
    """Return True if Ray says that an autoscaler may start nodes: its nodes have types with names."""
    try:
        import ray
        from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
        from ray.autoscaler.v2.sdk import get_cluster_status
        from ray.autoscaler.v2.utils import is_autoscaler_v2
        from ray.experimental.internal_kv import _internal_kv_get

        if is_autoscaler_v2():
            status = get_cluster_status(ray.get_runtime_context().gcs_address)
            types = [node.ray_node_type_name or UNMANAGED_PREFIX for node in [*status.active_nodes, *status.idle_nodes]]
        else:
            report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}").get("autoscaler_report") or {}
            types = list(report.get("active_nodes", {}))
            if report and not types:  # without an autoscaler the report names at least the head
                return True
        return any(not name.startswith(UNMANAGED_PREFIX) for name in types)
    except Exception:
        return False


def check_mlflow(uri: str | None) -> Facts | None:
    """Send a request to MLflow's API as its client does: /health answers even where the API refuses with 403.

    Returns:
        The status, if there is one, and the problem or None; None without the URI of a server.
    """
    import requests

    if not uri or not uri.startswith(("http://", "https://")):
        return None
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    try:
        response = requests.post(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search",
            json={"max_results": 1},
            timeout=MLFLOW_SECONDS,
            verify=not insecure and (os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True),
            auth=(user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None,  # else the user of the URI
            headers={"Authorization": f"Bearer {token}"} if token and not user else None,
        )
    except Exception as error:
        return {"status": None, "problem": connection_problem(error)}
    problem = None
    if not response.ok:
        problem = single_line(redact_url(response.text[:1000])) or "no message"
    elif not response.text.lstrip().startswith("{"):  # a JSON object
        problem = OTHER_SERVER
    return {"status": response.status_code, "problem": problem}
