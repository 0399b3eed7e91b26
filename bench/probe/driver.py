"""What is seen from where the driver runs: MLflow, by its API, and what Ray says of the cluster as a whole.

It takes Python 3.9 and nothing of this package but what lies beside it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import ssl
from collections.abc import Mapping
from typing import Optional
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from bench.probe.node import Facts
from bench.utils.text import describe_error, redact_url, single_line

__all__ = ["grows", "mlflow", "report", "token_mode"]


ANSWER = 20.0
"""Seconds that a server has to answer."""
UNMANAGED = "node_"
"""How Ray names a node's type where nobody started it but people."""
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def token_mode() -> Optional[str]:  # noqa: UP045
    """ "token" or "disabled", as this process has joined; None where its Ray does not say."""
    try:
        from ray import _raylet

        mode = _raylet.get_authentication_mode()  # type: ignore[attr-defined]
        return "token" if mode == _raylet.AuthenticationMode.TOKEN else "disabled"  # type: ignore[attr-defined]
    except Exception:
        return None


def grows() -> Optional[bool]:  # noqa: UP045
    """Whether an autoscaler may start nodes: those it knows are then of a type with a name of its own."""
    try:
        import ray
        from ray.autoscaler.v2.sdk import get_cluster_status
        from ray.autoscaler.v2.utils import is_autoscaler_v2

        if is_autoscaler_v2():
            status = get_cluster_status(ray.get_runtime_context().gcs_address)
            names = [node.ray_node_type_name or UNMANAGED for node in [*status.active_nodes, *status.idle_nodes]]
        else:
            names = list(report().get("active_nodes", {}))
        return any(not name.startswith(UNMANAGED) for name in names)
    except Exception:
        return None


def report() -> Facts:
    """What Ray's first autoscaler says of itself; nothing where there is none, or none yet."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    said_last: Facts = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}")
    return said_last.get("autoscaler_report") or {}


def mlflow(uri: Optional[str]) -> Optional[Facts]:  # noqa: UP045
    """Whether MLflow takes requests from here: by its API, as /health passes where the API answers 403."""
    if not uri:
        return None
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https"):
            return _server(uri)
        if parts.scheme == "sqlite":
            folder = os.path.dirname(os.path.abspath(uri.partition("///")[2]))
            able = os.path.isdir(folder) and os.access(folder, os.W_OK)
            return {"ok": able, "status": None, "words": "" if able else f"{folder} is no folder that can be written"}
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0], 0)
        socket.create_connection((parts.hostname or "", port), ANSWER).close()
        return {"ok": True, "status": None, "words": ""}
    except URLError as error:
        return {"ok": False, "status": None, "words": single_line(redact_url(str(error.reason)))}
    except Exception as error:
        return {"ok": False, "status": None, "words": describe_error(error)}


def _server(uri: str) -> Facts:
    root, headers = _credentials(uri.rstrip("/"))
    search = f"{root}/api/2.0/mlflow/experiments/search"
    facts: Facts = {"ok": True, "status": 200, "words": ""}
    try:
        answer = json.loads(_fetch(search, headers, json.dumps({"max_results": 1}).encode()))
        if not isinstance(answer, dict):
            facts.update(ok=False, words="the answer is not MLflow's")
    except HTTPError as error:
        facts.update(
            ok=False, status=error.code, words=single_line(redact_url(error.read(1000).decode(errors="replace")))
        )
    except ValueError:
        facts.update(ok=False, words="the answer is not MLflow's")
    with contextlib.suppress(Exception):
        facts["version"] = single_line(_fetch(f"{root}/version", headers).decode(), 40)
    return facts


def _fetch(url: str, headers: Mapping[str, str], content: Optional[bytes] = None) -> bytes:  # noqa: UP045
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    asked = Request(url, content, {"Content-Type": "application/json", **headers})  # noqa: S310 - http or https
    with urlopen(asked, timeout=ANSWER, context=context if url.startswith("https") else None) as answer:  # noqa: S310
        return bytes(answer.read(1_000_000))


def _credentials(uri: str) -> tuple[str, dict[str, str]]:
    """The URI without user and password, and the header for them: those in it, else MLflow's from the environment."""
    parts = urlsplit(uri)
    root = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
    if user is not None:
        return root, {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return root, {"Authorization": f"Bearer {token}"} if token else {}
