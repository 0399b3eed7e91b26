"""Joins a Ray cluster, or starts one of this machine; and how many trials it can run at once."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import ray

from bench.config.benchmark import Benchmark
from bench.exceptions import ConfigError
from bench.ray_backend.autoscaler import Growth, growth, wait_for
from bench.ray_backend.capacity import one_accelerator, refusal, trial_resources, trials_per_node
from bench.utils.signals import preserve_handlers
from bench.utils.text import redact_url, single_line

__all__ = ["connect", "token_refused"]


QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # progress is ours to show
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our records are the log
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # and what a benchmark continues from
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's would wait for the trials that run; `bench.utils.signals` does not
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # whoever watches is told of a lost trial in one line
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
HEAD = "node:__internal_head__"
"""A resource that the head has, and no other node."""


def connect(benchmark: Benchmark, address: str | None, say: Callable[[str], object] = print) -> tuple[int, int]:
    """Joins or starts Ray, unless this process has; how many trials to run at once, and how many would fit.

    A cluster that has no node for a trial yet, and an autoscaler that may start one, is asked for it, and waited for.

    Raises:
        ConfigError: no cluster answers, no trial fits it, or its GPUs are of several types and none was chosen.
    """
    wanted = benchmark.resources
    if not ray.is_initialized():
        here: dict[str, Any] = {"address": "local", "include_dashboard": False}
        if wanted.slots:
            here["num_cpus"] = wanted.slots * wanted.cpus_per_trial
        joined: dict[str, Any] = here if address is None else {"address": address}
        if address is not None and address.startswith("ray://"):
            raise ConfigError(
                f"--address {address}: the driver must run on a machine of the cluster, expected HOST:PORT of its "
                "head, or auto: start `run` there"
            )
        try:
            with warnings.catch_warnings(action="ignore"), preserve_handlers():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **joined)
        except ray.exceptions.AuthenticationError as error:
            raise token_refused(address or "local", error) from None
        except (ConnectionError, RuntimeError, ValueError) as error:
            if address is None:
                raise
            raise ConfigError(
                f"no Ray cluster answers at {address} ({single_line(error)[:120]}): check --address, and that a "
                "head runs"
            ) from error
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it reports each lost attempt as an error at the end
    return _room(benchmark, None if address is None else growth(), say)


def _room(benchmark: Benchmark, more: Growth | None, say: Callable[[str], object]) -> tuple[int, int]:
    """How many trials to run at once, and how many would fit, with what the cluster may grow by."""
    resources = benchmark.resources
    wanted = trial_resources(resources)
    here = _nodes()
    reason = one_accelerator(benchmark, here + ([] if more is None else more.resources))
    if reason is not None:
        raise ConfigError(reason)
    now = sum(trials_per_node(node, wanted) for node in here)
    later = None if more is None else more.holds(wanted)
    if now < 1:
        if more is None or later == 0:
            raise ConfigError(refusal(resources, here, [] if more is None else more.resources))
        if later is None and resources.slots is None:
            raise ConfigError(
                "resources.slots is not given, expected the number of trials to run at once, as the cluster has no "
                "node for one yet, and how many its autoscaler may start is not to be seen from here: set it"
            )
        trouble = wait_for(wanted, say)
        if trouble is not None:
            raise ConfigError(
                f"{refusal(resources, here)}, or see `ray status` on the head, why its autoscaler starts no such node "
                f"({trouble})"
            )
        reason = one_accelerator(benchmark, _nodes())
        if reason is not None:
            raise ConfigError(reason)
    if later is None and more is not None and resources.slots is None:
        say(f"{now} at once; more nodes may come, and how many is not to be seen from here: give resources.slots")
    if later is not None:  # some of those nodes may be here already, the head is none of them
        later += sum(trials_per_node(node, wanted) for node in here if HEAD in node)
    fits = max(now, (resources.slots or 0) if later is None and more is not None else later or 0)
    return min(fits, resources.slots or fits), fits


def _nodes() -> list[dict[str, float]]:
    """The resources of each node that is there."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def token_refused(address: str, error: Exception) -> ConfigError:
    """What it means that Ray does not let this process join."""
    words = single_line(getattr(error, "message", error), 120)  # its text is a page of advice
    return ConfigError(
        f"--address {redact_url(address)}: the cluster wants its token ({words}): put it into "
        "$RAY_AUTH_TOKEN, or into ~/.ray/auth_token"
    )
