"""A Ray cluster as a laptop sees it: its Job API over HTTP, and the jobs that this package submitted."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.exceptions import ConfigError
from bench.jobs import http
from bench.utils.text import redact_url

JOB_PREFIX = "deelbo-"
METADATA_PREFIX = "deelbo."
TERMINAL_STATUSES = ("SUCCEEDED", "FAILED", "STOPPED")
ENTRYPOINT_SCRIPT = Path(__file__).with_name("entrypoint.sh")
RAY_LINES = ("job_manager.py:", "Running entrypoint for job ")
"""Parts of the lines that Ray itself writes into a job's log."""
POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Job:
    """A benchmark's job on a cluster.

    Attributes:
        status: Ray's status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: of its entry point; None while it runs or if it was killed.
        started, ended: Unix times, if known.
        message: Ray's message about how it ended.
        metadata: of its submission: benchmark, storage, config, ...
    """

    name: str
    status: str
    exit_code: int | None
    started: float | None
    ended: float | None
    message: str
    metadata: dict[str, str]

    @property
    def active(self) -> bool:
        return self.status not in TERMINAL_STATUSES

    @property
    def run_code(self) -> int:
        """Exit code of `run`: 0 done or still active, 1 trials failed, 2 refused or killed, 130 stopped."""
        if self.status == "STOPPED":
            return 130
        if self.status != "FAILED":
            return 0
        return self.exit_code if self.exit_code is not None and 0 < self.exit_code < 256 else 2


class Cluster:
    """A connection to a cluster's Job API.

    Attributes:
        address: URL of the dashboard, without credentials.
        option: the --address option that a command needs on this machine; empty if the environment has the address.
        token_mode: "token" if requests need a token, else "disabled".
    """

    def __init__(self, client: Any, address: str, ray_version: str, token_mode: str) -> None:
        self.client, self.address = client, address
        in_environment = os.environ.get(http.ADDRESS_VARIABLE, "").rstrip("/") == address
        self.option = "" if in_environment else f" --address {shlex.quote(address)}"
        self.ray_version, self.token_mode = ray_version, token_mode

    @classmethod
    def connect(cls, address: str | None) -> Cluster:
        """Connect to ``http://HOST:8265``, by default to $RAY_API_SERVER_ADDRESS.

        Raises:
            ConfigError: the server does not answer as a Ray cluster, or refuses the token.
        """
        address = http.resolve_address(address)
        shown, token_mode = redact_url(address), http.read_token_mode(address)
        try:
            client = http.make_client(address, token_mode)
            version = str(client._do_request("GET", "/api/version").json()["ray_version"])
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError):
            raise http.not_a_dashboard(address) from None
        except Exception as error:
            raise http.translate_error(error, shown) from None
        return cls(client, shown, version, token_mode)

    def list_jobs(self) -> list[Job]:
        """Return the jobs of this package, the newest first."""
        jobs = [job for details in self._call("list_jobs") if (job := _parse_job(details)) is not None]
        return sorted(jobs, key=lambda job: job.started or 0.0, reverse=True)

    def find_job(self, name: str) -> Job:
        """Return the job of that name; raise ConfigError if this package did not submit it."""
        job = _parse_job(self._call("get_job_info", name))
        if job is None:
            raise ConfigError(f"{name} is not a job of deelbo-bench: `status` lists its jobs")
        return job

    def submit(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> bool:
        """Start ``python COMMAND`` as a job whose working directory is a copy of ``folder``.

        ``runtime_env`` is Ray's runtime environment beside the working directory. Returns False if the name is taken.
        """
        shutil.copy(ENTRYPOINT_SCRIPT, folder)
        try:
            self.client.submit_job(
                submission_id=name,
                entrypoint=entrypoint(command),
                runtime_env={"working_dir": str(folder), **runtime_env},
                metadata={f"{METADATA_PREFIX}{key}": value for key, value in metadata.items()},
            )
        except Exception as error:
            if f"submission_id {name} already exists" in str(error):
                return False
            raise http.translate_error(error, self.address) from None
        return True

    def read_lines(self, name: str) -> list[str]:
        """Return the lines of a job's output so far, without those that Ray adds."""
        return without_ray_lines(str(self._call("get_job_logs", name)))

    def stop(self, name: str) -> None:
        """Ask a job to stop, as by SIGTERM."""
        self._call("stop_job", name)

    def run_to_end(
        self, command: Sequence[str], files: Mapping[str, str | bytes], env: Mapping[str, str], max_seconds: float
    ) -> tuple[int | None, str]:
        """Run ``python COMMAND`` as a short job with ``files`` in its working directory, and delete it from Ray's list.

        Returns:
            Its exit code, None if it was stopped after ``max_seconds``; and its output.
        """
        with TemporaryDirectory(prefix="deelbo-job-") as folder:
            for path, content in files.items():
                file = Path(folder, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.encode() if isinstance(content, str) else content)
            name = f"{JOB_PREFIX}check-{os.urandom(4).hex()}"
            self.submit(name, command, Path(folder), {"env_vars": dict(env)}, {"role": "check"})
        try:
            deadline = time.monotonic() + max_seconds
            while (details := self._call("get_job_info", name)).status.value not in TERMINAL_STATUSES:
                if time.monotonic() > deadline:
                    return None, "\n".join(self.read_lines(name))
                time.sleep(POLL_SECONDS)
            log = "\n".join(self.read_lines(name))
            if details.driver_exit_code is None:
                return 1, f"{log}\n{details.message}"
            return details.driver_exit_code, log
        finally:
            for call in (self.client.stop_job, self.client.delete_job):
                with suppress(Exception):  # it has ended; or not yet, and stays in Ray's list
                    call(name)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.client, method)(*arguments)
        except Exception as error:
            raise http.translate_error(error, self.address) from None


def entrypoint(command: Sequence[str]) -> str:
    """Return the shell command that runs ``python COMMAND`` with the interpreter of the cluster's Ray."""
    return shlex.join(["exec", "sh", ENTRYPOINT_SCRIPT.name, *command])


def _parse_job(details: Any) -> Job | None:
    """Convert Ray's description of a job; None if it is not a benchmark of this package."""
    metadata = {
        key.removeprefix(METADATA_PREFIX): str(value)
        for key, value in (details.metadata or {}).items()
        if key.startswith(METADATA_PREFIX)
    }
    if details.submission_id is None or "benchmark" not in metadata:
        return None
    return Job(
        name=details.submission_id,
        status=details.status.value,
        exit_code=details.driver_exit_code,
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        message=str(details.message or ""),
        metadata=metadata,
    )


def without_ray_lines(log: str) -> list[str]:
    """Return the lines of a log except those that Ray adds at its beginning."""
    return [line for line in log.splitlines() if not any(part in line for part in RAY_LINES)]
