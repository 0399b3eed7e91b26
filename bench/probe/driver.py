"""Facts that the driver's machine knows: MLflow, by its API, and the cluster as a whole."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.probe.node import Facts
from bench.utils.text import connection_problem, describe_error, redact_url, single_line

__all__ = ["check_mlflow", "has_autoscaler", "token_mode"]


TIMEOUT_SECONDS = 20.0
UNMANAGED_PREFIX = "node_"
"""Start of the type that Ray gives to nodes that no autoscaler started."""
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
OTHER_SERVER = "the answer is not MLflow's"


def token_mode() -> str | None:
    """Return "token" or "disabled", as this process has joined; None if this Ray does not say."""
    try:
        from ray import _raylet

        mode = _raylet.get_authentication_mode()  # type: ignore[attr-defined]
        return "token" if mode == _raylet.AuthenticationMode.TOKEN else "disabled"  # type: ignore[attr-defined]
    except Exception:
        return None


def has_autoscaler() -> bool | None:
    """Return True if an autoscaler may start nodes: its nodes have types with names; None if Ray does not say."""
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
        return any(not name.startswith(UNMANAGED_PREFIX) for name in types)
    except Exception:
        return None


def check_mlflow(uri: str | None) -> Facts | None:
    """Check that MLflow accepts requests from this machine; None without a URI."""
    if not uri:
        return None
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https"):
            return _check_server(uri.rstrip("/"))
        if parts.scheme == "sqlite":
            folder = Path(uri.partition("///")[2]).absolute().parent
            ok = folder.is_dir() and os.access(folder, os.W_OK)
            return {"ok": ok, "status": None, "words": "" if ok else f"{folder} is not a writable directory"}
        port = parts.port or DATABASE_PORTS.get(parts.scheme.partition("+")[0], 0)
        socket.create_connection((parts.hostname or "", port), TIMEOUT_SECONDS).close()
        return {"ok": True, "status": None, "words": ""}
    except Exception as error:
        problem = connection_problem(error) if "Max retries" in str(error) else describe_error(error)
        return {"ok": False, "status": None, "words": problem}


def _check_server(root: str) -> Facts:
    """Send a request to MLflow's API as its client does: /health answers even where the API refuses with 403."""
    import requests

    options: dict[str, Any] = {"timeout": TIMEOUT_SECONDS}
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        options["verify"] = False
    elif certificate := os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"):
        options["verify"] = certificate
    if "@" not in urlsplit(root).netloc:  # `requests` itself reads the user of a URL
        if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
            options["auth"] = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
        elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            options["headers"] = {"Authorization": f"Bearer {token}"}
    url = f"{root}/api/2.0/mlflow/experiments/search"
    response = requests.post(url, json={"max_results": 1}, **options)  # noqa: S113 - in the options
    facts: Facts = {"ok": response.ok, "status": response.status_code, "words": ""}
    if not response.ok:
        facts["words"] = single_line(redact_url(response.text[:1000]))
    elif not response.text.lstrip().startswith("{"):  # a JSON object
        facts.update(ok=False, words=OTHER_SERVER)
    with contextlib.suppress(requests.RequestException):
        version = requests.get(f"{root}/version", **options)  # noqa: S113
        if version.ok:
            facts["version"] = single_line(version.text, 40)
    return facts
