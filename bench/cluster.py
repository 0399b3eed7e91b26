"""Joins a Ray cluster, or starts one of this machine; and how many trials it can run at once."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # progress is ours to show
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our records are the log
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # and what a benchmark continues from
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's would wait for the trials that run; `bench.stopping` does not
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # whoever watches is told of a lost trial in one line
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402 - reads the environment when imported

from bench.benchmark import Benchmark  # noqa: E402
from bench.config import ConfigError  # noqa: E402
from bench.said import one_line  # noqa: E402
from bench.stopping import same_handlers  # noqa: E402

__all__ = ["connect"]


def connect(benchmark: Benchmark, address: str | None) -> tuple[int, int]:
    """Joins or starts Ray, unless this process has; how many trials to run at once, and how many would fit.

    Raises:
        ConfigError: no cluster answers, or no trial fits it.
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
            with warnings.catch_warnings(action="ignore"), same_handlers():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **joined)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if address is None:
                raise
            raise ConfigError(
                f"no Ray cluster answers at {address} ({one_line(error)[:120]}): check --address, and that a head runs"
            ) from error
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it reports each lost attempt as an error at the end
    there = ray.cluster_resources()
    fits = int(there.get("CPU", 0) // wanted.cpus_per_trial)
    if wanted.gpus_per_trial:
        fits = min(fits, int(there.get("GPU", 0) / wanted.gpus_per_trial))
    if fits < 1:
        raise ConfigError(
            f"no trial fits: it takes {wanted.cpus_per_trial} CPU and {wanted.gpus_per_trial:g} GPU, the cluster has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}: lower resources in the configuration"
        )
    return min(fits, wanted.slots or fits), fits
