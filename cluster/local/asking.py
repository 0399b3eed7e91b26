"""What a cluster says of itself over HTTP, and the token that Ray asks for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from cluster.local.state import State

__all__ = ["alive_nodes", "mlflow_answers", "token_mode", "token_of"]

_opener = build_opener(ProxyHandler({}))
"""A proxy of the user's has nothing to do with loopback."""


def token_mode(environment: Mapping[str, str]) -> bool:
    """Whether RAY_AUTH_MODE asks for a token; what is unset is no.

    Raises:
        ValueError: it is set to something else, or there is no token to ask for.
    """
    mode = environment.get("RAY_AUTH_MODE", "").strip().lower()
    if mode not in ("", "disabled", "token"):
        raise ValueError(f"RAY_AUTH_MODE={mode}: expected token, disabled or nothing")
    if mode == "token" and not token_of(environment):
        raise ValueError(
            "RAY_AUTH_MODE=token, but there is no token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or make "
            "~/.ray/auth_token with `ray get-auth-token --generate`"
        )
    return mode == "token"


def token_of(environment: Mapping[str, str]) -> str:
    """The token, from where Ray takes it; empty where there is none."""
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = environment.get("RAY_AUTH_TOKEN_PATH", "").strip()
    file = Path(path) if path else Path.home() / ".ray" / "auth_token"
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def alive_nodes(state: State) -> int:
    """How many nodes the dashboard counts as alive, the head among them; 0 where it does not answer."""
    answer = _get(f"{state.dashboard}/nodes?view=summary", token_of(os.environ) if state.token else "")
    try:
        nodes = answer["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)
    except (KeyError, TypeError, AttributeError):
        return 0


def mlflow_answers(state: State) -> bool:
    """Whether MLflow answers by its API, which its /health does not tell."""
    answer = _get(f"{state.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0")
    return isinstance(answer, dict) and "experiment" in answer


def _get(url: str, token: str = "") -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with _opener.open(Request(url, headers=headers), timeout=5) as answer:  # noqa: S310 - loopback
            return json.loads(answer.read())
    except (OSError, HTTPException, ValueError):
        return None
