"""How a Ray cluster's Job API is reached: addresses, tokens, patience, and what its refusals mean."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.exceptions import ConfigError, UnreachableError
from bench.utils.text import redact_url, single_line

__all__ = ["ADDRESS", "address_of", "client_of", "no_dashboard", "refusal", "token_mode"]


ADDRESS = "RAY_API_SERVER_ADDRESS"
TIMEOUT = 30.0
UPLOAD = 900.0
"""Seconds for a job's folder: 100 MiB at a megabit a second."""


def address_of(given: str | None) -> str:
    """The address given, or $RAY_API_SERVER_ADDRESS; raises ConfigError where it is none of a dashboard."""
    address = given or os.environ.get(ADDRESS) or ""
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is none, half an IPv6 address
        good = False
    if not good:
        came = f"--address {redact_url(address)!r}" if address else "no --address"
        raise ConfigError(f"{came}: expected the cluster's dashboard, http://HOST:8265, here or in ${ADDRESS}")
    return address.rstrip("/")


def token_mode(address: str) -> str:
    """Whether callers need a token: "token" or "disabled"; raises UnreachableError where no cluster answers."""
    import requests

    try:
        answer = requests.get(f"{address}/api/authentication_mode", timeout=TIMEOUT)
    except requests.ReadTimeout:
        words = (
            f"the Ray cluster at {redact_url(address)} gave no answer in {TIMEOUT:.0f} s: ask again, or check --address"
        )
        raise UnreachableError(words) from None
    except requests.ConnectionError as error:
        if "BadStatusLine" in str(error):  # something that does not talk HTTP, such as Ray's own port
            raise no_dashboard(address) from None
        words = f"no Ray cluster answers at {redact_url(address)} ({_cause(error)}): check --address"
        raise UnreachableError(words) from None
    except (requests.RequestException, ValueError):
        raise no_dashboard(address) from None
    if answer.status_code >= 500:  # of what stands before the dashboard
        raise UnreachableError(
            f"the Ray cluster at {redact_url(address)} does not answer (status {answer.status_code}): see that it runs"
        )
    try:
        return str(answer.json()["authentication_mode"]) if answer.ok else "disabled"  # older Rays have none
    except (ValueError, KeyError, TypeError):
        raise no_dashboard(address) from None


def no_dashboard(address: str) -> ConfigError:
    """Somebody answers, but not as Ray."""
    return ConfigError(
        f"what answers at {redact_url(address)} is no Ray dashboard: check --address, its port (8265 by "
        "default) and that "
        "nothing follows it"
    )


def client_of(address: str, mode: str) -> Any:
    """Ray's client, which by itself would wait for ever for a cluster that went away.

    It sends the token that is found here where ``mode`` wants one.

    Raises:
        ConfigError: there is none.
    """
    _give_token(mode, redact_url(address))
    from ray.job_submission import JobSubmissionClient

    for talker in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{talker}").setLevel(logging.ERROR)  # a line for each package and connection

    class Client(JobSubmissionClient):
        _server_ray_version = None

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            seconds = UPLOAD if options.get("data") is not None else TIMEOUT
            return super()._do_request(method, endpoint, **({"timeout": seconds} | options))

        def _check_connection_and_version(self, *arguments: Any, **named: Any) -> None:
            """Nothing: `Cluster.connect` looks itself, and the first look would come before it."""

    # Ray's variables win over what its client is given
    given = {name: os.environ.pop(name) for name in (ADDRESS, "RAY_ADDRESS") if name in os.environ}
    try:
        return Client(address)
    finally:
        os.environ |= given


def _give_token(mode: str, address: str) -> None:
    """Has Ray's client send a token where the cluster wants one, and only there. It looks at the environment when it is
    imported."""
    if mode == "disabled":
        os.environ["RAY_AUTH_MODE"] = mode
        return
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not os.environ.get("RAY_AUTH_TOKEN") and not (file.is_file() and file.stat().st_size):
        raise ConfigError(
            f"the cluster at {address} wants a token, and there is none: put it into $RAY_AUTH_TOKEN, or into {file}"
        )
    os.environ["RAY_AUTH_MODE"] = "token"


def refusal(error: Exception, address: str) -> ConfigError:
    """What a cluster's refusal means to whoever asked."""
    import requests

    words = str(error)
    if re.search(r"status code 5\d\d", words):  # of the head, where a node's agent is away, or of what stands before it
        return UnreachableError(f"the cluster at {address} does not answer ({_failure(words)}): see its dashboard")
    if isinstance(error, requests.RequestException | ConnectionError | TimeoutError):
        return UnreachableError(f"the cluster at {address} cannot be reached ({_cause(error)}): see that it runs")
    if type(error).__name__ == "AuthenticationError" or "status code 401" in words or "status code 403" in words:
        return ConfigError(
            f"the cluster at {address} refuses the token ({single_line(words.splitlines()[0], 120)}): put its own into "
            "$RAY_AUTH_TOKEN, or into ~/.ray/auth_token"
        )
    if re.search(r"Job \S+ does not exist", words):
        return ConfigError(f"the cluster at {address} knows no such job: `status` lists those it has")
    return ConfigError(f"the cluster at {address} refused ({single_line(words, 300)}): see its dashboard")


def _failure(words: str) -> str:
    """The status of a 5xx, and the end of a traceback of Ray's where it has one; not the page of what stands before."""
    said = re.search(r"status code 5\d\d", words)
    status, rest = (said[0], words[said.end() :]) if said else ("an error of its own", words)
    lines = [line.strip(" .:") for line in rest.splitlines() if re.search("[A-Za-z]", line)]
    return single_line(f"{status}: {lines[-1]}", 200) if lines and "<" not in lines[-1] else status


def _cause(error: Exception) -> str:
    """The end of a chain of errors, which alone says what happened."""
    words = single_line(error, 400)
    for start in ("[Errno", "NameResolutionError", "timed out", "SSLError", "Max retries"):
        if (found := words.rfind(start)) >= 0:
            return words[found:].rstrip("'\")")[:120]
    return words[:120] or type(error).__name__
