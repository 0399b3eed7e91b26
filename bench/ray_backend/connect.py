"""Join a Ray cluster, or start one on this machine, and count how many trials it can run at once."""

import logging
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from bench.config.benchmark import Benchmark
from bench.config.sections import Resources
from bench.exceptions import ConfigError
from bench.probe.cluster import has_autoscaler
from bench.ray_backend.capacity import accelerator_conflict, no_fit_message, trial_resources, trials_per_node
from bench.ray_backend.code_check import worker_search_path
from bench.ray_backend.environment import configure_ray
from bench.utils.signals import preserve_handlers
from bench.utils.text import redact_url, single_line

MAX_NODE_WAIT_MINUTES = 30
"""A node of a cloud takes minutes to start; an autoscaler asks again and again for one that its cloud refuses."""
CONNECT_SECONDS = 10.0


@contextmanager
def ray_session(resources: Resources, address: str | None) -> Iterator[None]:
    """Join the cluster at ``address``, or start Ray on this machine if None; leave or stop it after the block.

    Nothing happens in a process that has joined Ray already.

    Raises:
        ConfigError: no cluster answers there, or it refuses this process.
    """
    if ray.is_initialized():
        yield
        return
    try:
        _initialize(resources, address)
        yield
    finally:
        with preserve_handlers():
            ray.shutdown()


def _initialize(resources: Resources, address: str | None) -> None:
    configure_ray(address)
    options: dict[str, Any] = {"address": address or "local", "job_config": worker_search_path()}
    if address is None:
        options["include_dashboard"] = False
        if resources.slots:
            options["num_cpus"] = resources.slots * resources.cpus_per_trial
    elif address.startswith("ray://"):
        raise ConfigError(
            f"--address {address}: the driver must run on a machine of the cluster, expected HOST:PORT of its head, or "
            "auto: start `run` there"
        )
    else:
        _check_listens(address)
    try:
        with warnings.catch_warnings(action="ignore"), preserve_handlers():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except ray.exceptions.AuthenticationError as error:
        raise token_refused(address or "local", error) from None
    except (OSError, RuntimeError, ValueError) as error:
        if "AF_UNIX path length" in str(error):
            folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
            raise ConfigError(
                f"the path of the folder for temporary files is too long for Ray's sockets ({folder}): "
                "set $RAY_TMPDIR to a short one, such as /tmp"
            ) from error
        if address is None and isinstance(error, NotADirectoryError | FileNotFoundError | PermissionError):
            raise ConfigError(
                f"Ray has no folder for temporary files ({single_line(error)}): set $TMPDIR or $RAY_TMPDIR to one that "
                "can be written"
            ) from error
        if address is None or not isinstance(error, ConnectionError | RuntimeError | ValueError):
            raise
        raise _no_cluster(address, error) from error
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it reports each lost attempt as an error at the end


def _check_listens(address: str) -> None:
    """Raise ConfigError if nothing listens at HOST:PORT, as Ray would try for minutes and print each attempt."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return  # auto, or refused by Ray in its words
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ConfigError:
    reason = single_line(error)[:120]
    return ConfigError(f"no Ray cluster answers at {address} ({reason}): check --address, and that a head runs")


def count_slots(benchmark: Benchmark, address: str | None, say: Callable[[str], object] = print) -> tuple[int, int]:
    """Count the trials that the cluster runs at once; wait for a node if none holds a trial and one may be started.

    Args:
        benchmark: whose trials they are.
        address: of the cluster; None if it is Ray on this machine, which has no autoscaler.
        say: prints a line for the user.

    Returns:
        how many trials to run at once, and how many would fit; on a cluster with an autoscaler, `resources.slots` fit.

    Raises:
        ConfigError: no trial fits, or GPUs are of several types and none was chosen.
    """
    resources = benchmark.resources
    wanted = trial_resources(resources)
    elastic = address is not None and has_autoscaler()
    num_fits = _count_fits(benchmark)
    if not num_fits:
        message = no_fit_message(resources, _node_resources())
        if not elastic:
            raise ConfigError(message)
        if resources.slots is None:
            raise ConfigError(
                "resources.slots is not given, expected the number of trials to run at once, as the cluster has no "
                "node for one yet: set it to as many as the nodes that its autoscaler may start can hold"
            )
        if not _wait_for_node(wanted, say):
            raise ConfigError(
                f"{message}; or check with `ray status` on the head why its autoscaler started no such node in "
                f"{MAX_NODE_WAIT_MINUTES} min"
            )
        num_fits = _count_fits(benchmark)
    if elastic and resources.slots is None:
        say(f"{num_fits} at once; the autoscaler may start more nodes: set resources.slots to use them")
    if elastic:
        num_fits = max(num_fits, resources.slots or 0)
    return min(num_fits, resources.slots or num_fits), num_fits


def _count_fits(benchmark: Benchmark) -> int:
    """Count the trials that the present nodes hold.

    Raises:
        ConfigError: their GPUs are of several types, and seconds on them could not be compared.
    """
    nodes = _node_resources()
    if (conflict := accelerator_conflict(benchmark, nodes)) is not None:
        raise ConfigError(conflict)
    wanted = trial_resources(benchmark.resources)
    return sum(trials_per_node(node, wanted) for node in nodes)


def _node_resources() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _wait_for_node(wanted: Mapping[str, float], say: Callable[[str], object]) -> bool:
    """Ask the autoscaler for a node that holds a trial, and wait for it. Return whether it came.

    A placement group, unlike `ray.autoscaler.sdk.request_resources`, ends with the driver: the node of a driver that
    was killed is stopped again.
    """
    say(
        "no node of the cluster holds a trial: asking its autoscaler for one, and waiting up to "
        f"{MAX_NODE_WAIT_MINUTES} min"
    )
    group = placement_group([dict(wanted)])
    deadline = time.monotonic() + 60 * MAX_NODE_WAIT_MINUTES
    try:
        while not group.wait(1):
            if time.monotonic() > deadline:
                return False
    finally:
        remove_placement_group(group)
    say("a node that holds a trial is there")
    return True


def token_refused(address: str, error: Exception) -> ConfigError:
    """Describe that the cluster refused this process for want of its token."""
    reason = single_line(getattr(error, "message", error), 120)  # the whole text is a page of advice
    return ConfigError(
        f"--address {redact_url(address)}: the cluster requires its token ({reason}): put it into $RAY_AUTH_TOKEN, or "
        "into ~/.ray/auth_token"
    )
