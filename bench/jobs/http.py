"""Connect to a Ray cluster's Job API: addresses, tokens, time-outs, and readable errors."""

import logging
import os
import re
from typing import Any
from urllib.parse import urlsplit

from bench.exceptions import ConfigError, UnreachableError
from bench.utils.text import connection_problem, redact_url, single_line
from deelbo.paths import expand_user

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
TIMEOUT_SECONDS = 30.0
UPLOAD_TIMEOUT_SECONDS = 900.0
"""For a job's working directory: 100 MiB at a megabit per second."""


def resolve_address(address: str | None) -> str:
    """Return ``address``, or $RAY_API_SERVER_ADDRESS; raise ConfigError if it is not an http(s) URL of a host."""
    address = address or os.environ.get(ADDRESS_VARIABLE) or ""
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is not a number, half an IPv6 address
        valid = False
    if not valid:
        problem = f"--address {redact_url(address)!r}" if address else "no --address"
        raise ConfigError(
            f"{problem}: expected the cluster's dashboard, http://HOST:8265, here or in ${ADDRESS_VARIABLE}"
        )
    return address.rstrip("/")


def read_token_mode(address: str) -> str:
    """Ask a cluster whether requests need a token.

    Raises:
        UnreachableError: no answer, or a gateway's error.
        ConfigError: the answer is not that of a Ray dashboard.
    """
    import requests

    shown = redact_url(address)
    try:
        response = requests.get(f"{address}/api/authentication_mode", timeout=TIMEOUT_SECONDS)
    except requests.RequestException as error:
        if isinstance(error, requests.ConnectionError | requests.Timeout) and "BadStatusLine" not in str(error):
            problem = connection_problem(error)
            raise UnreachableError(f"no Ray cluster answers at {shown} ({problem}): check --address") from None
        raise not_a_dashboard(address) from None  # not HTTP, as on Ray's own port
    if response.status_code >= 500:  # a gateway in front of the dashboard
        raise UnreachableError(
            f"the Ray cluster at {shown} does not answer (status {response.status_code}): check that it runs"
        )
    try:
        return str(response.json()["authentication_mode"]) if response.ok else "disabled"  # older Ray: no such path
    except (ValueError, KeyError, TypeError):
        raise not_a_dashboard(address) from None


def not_a_dashboard(address: str) -> ConfigError:
    """Return the error for a server that answers, but not as Ray's dashboard."""
    return ConfigError(
        f"the server at {redact_url(address)} is not a Ray dashboard: check --address: the port is 8265 by default, "
        "and no path follows it"
    )


def make_client(address: str, token_mode: str) -> Any:
    """Make Ray's client for the Job API, with time-outs: by itself it waits without limit.

    Raises:
        ConfigError: ``token_mode`` is "token" and no token is found on this machine.
    """
    _configure_token(token_mode, redact_url(address))
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{module}").setLevel(logging.ERROR)  # they log each package and connection

    class Client(JobSubmissionClient):
        _server_ray_version = None

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            seconds = UPLOAD_TIMEOUT_SECONDS if options.get("data") is not None else TIMEOUT_SECONDS
            return super()._do_request(method, endpoint, **({"timeout": seconds} | options))

        def _check_connection_and_version(self, *arguments: Any, **named: Any) -> None:
            """Do nothing: `Cluster.connect` checks both, with better messages."""

    # the client prefers Ray's environment variables to its argument
    variables = {name: os.environ.pop(name) for name in (ADDRESS_VARIABLE, "RAY_ADDRESS") if name in os.environ}
    try:
        return Client(address)
    finally:
        os.environ |= variables


def _configure_token(token_mode: str, address: str) -> None:
    """Make Ray's client send a token if and only if the cluster needs one; Ray reads the variable at import."""
    if token_mode == "disabled":  # noqa: S105 - a mode's name
        os.environ["RAY_AUTH_MODE"] = token_mode
        return
    file = expand_user(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    if not os.environ.get("RAY_AUTH_TOKEN") and not (file.is_file() and file.stat().st_size):
        raise ConfigError(
            f"the cluster at {address} wants a token, and none was found: put it into $RAY_AUTH_TOKEN, or into {file}"
        )
    os.environ["RAY_AUTH_MODE"] = "token"


def translate_error(error: Exception, address: str) -> ConfigError:
    """Turn an exception of Ray's client into one line that says what to do."""
    import requests

    message = str(error)
    if status := re.search(r"status code 5\d\d", message):  # a node's agent is away, or a gateway failed
        return UnreachableError(f"the cluster at {address} does not answer ({status[0]}): see its dashboard")
    if isinstance(error, requests.RequestException | ConnectionError | TimeoutError):
        return UnreachableError(
            f"the cluster at {address} cannot be reached ({connection_problem(error)}): check that it runs"
        )
    if type(error).__name__ == "AuthenticationError" or re.search(r"status code 40[13]", message):
        return ConfigError(
            f"the cluster at {address} refuses the token ({single_line(message.splitlines()[0], 120)}): put its own "
            "into $RAY_AUTH_TOKEN, or into ~/.ray/auth_token"
        )
    if re.search(r"Job \S+ does not exist", message):
        return ConfigError(f"the cluster at {address} has no such job: `status` lists its jobs")
    return ConfigError(f"the cluster at {address} refused the request ({single_line(message, 300)}): see its dashboard")
