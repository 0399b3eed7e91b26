"""Environment variables that Ray and Ray Tune are run with."""

import os
import secrets

from deelbo.paths import expand_user

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the command line shows the progress itself
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # records are the log
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # a benchmark is resumed from its records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's handler waits for running trials; `bench.utils.signals` does not
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a lost trial is reported in one line
}


LOCAL_DEFAULTS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on loopback, as on macOS
    "RAY_prestart_worker_first_driver": "0",  # workers of tasks, which actors do not use
}


def configure_ray(address: str | None) -> None:
    """Set what is not set yet. Ray reads some of it when it is imported: call this before.

    Args:
        address: of the Ray cluster; None for one on this machine.
    """
    for name, value in (DEFAULTS if address is not None else DEFAULTS | LOCAL_DEFAULTS).items():
        os.environ.setdefault(name, value)
    if (
        address is None
        and not ({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ))
        and not _has_token_folder()
    ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _has_token_folder() -> bool:
    """Return False if Ray cannot keep its token in the user's home folder, which need not exist."""
    try:
        folder = expand_user("~/.ray")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError):
        return False
    return os.access(folder, os.W_OK) or os.access(folder / "auth_token", os.R_OK)
