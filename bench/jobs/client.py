"""A Ray cluster as a laptop sees it: through its Job API, by HTTP. Addresses, tokens, and jobs that are ours."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.exceptions import ConfigError
from bench.jobs.http import ADDRESS, address_of, client_of, no_dashboard, refusal, token_mode
from bench.utils.text import redact_url

__all__ = ["PREFIX", "Cluster", "Job", "entrypoint", "without_noise"]


PREFIX = "deelbo-"
MARK = "deelbo."
"""How the names and the metadata of jobs that are ours begin."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
START = Path(__file__).with_name("entrypoint.sh")
NOISE = ("job_manager.py:", "Running entrypoint for job ")
POLL = 0.3
REMOVING = 5.0


@dataclass(frozen=True)
class Job:
    """A benchmark's job on a cluster.

    Attributes:
        name: its submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, as Ray has it.
        exit_code: of its entry point, once that has ended by itself.
        started, ended: in seconds since 1970; None where it has not.
        message: Ray's words on how it ended.
        facts: what was said of it when it was submitted: benchmark, storage, config, ...
    """

    name: str
    status: str
    exit_code: int | None
    started: float | None
    ended: float | None
    message: str
    facts: dict[str, str]

    @property
    def alive(self) -> bool:
        return self.status not in ENDED

    @property
    def code(self) -> int:
        """The exit code of `run`: 0 done or not ended yet, 1 trials failed, 2 refused or broken, 130 stopped."""
        if self.status == "STOPPED":
            return 130
        if self.status != "FAILED":
            return 0
        return self.exit_code if self.exit_code is not None and 0 < self.exit_code < 256 else 2


class Cluster:
    """A cluster that answers.

    Attributes:
        address: of its Job API, without credentials.
        option: what a command needs to reach it from here: nothing where its address is in the environment.
        ray_version: of its head.
        token_mode: "token" where callers need one, "disabled" where they do not.
    """

    def __init__(self, client: Any, address: str, ray_version: str, token_mode: str) -> None:
        self.client, self.address = client, address
        self.option = "" if os.environ.get(ADDRESS, "").rstrip("/") == address else f" --address {address}"
        self.ray_version, self.token_mode = ray_version, token_mode

    @classmethod
    def connect(cls, address: str | None) -> Cluster:
        """The cluster at ``http://HOST:8265``, by default at $RAY_API_SERVER_ADDRESS.

        Raises:
            ConfigError: nothing there answers as a Ray cluster, or it takes no or another token; in one line.
        """
        address = address_of(address)
        name, mode = redact_url(address), token_mode(address)
        try:
            client = client_of(address, mode)
            version = str(client._do_request("GET", "/api/version").json()["ray_version"])
        except ConfigError:
            raise
        except (ValueError, KeyError, TypeError):
            raise no_dashboard(address) from None
        except Exception as error:
            raise refusal(error, name) from None
        return cls(client, name, version, mode)

    def jobs(self) -> list[Job]:
        """Those of ours, the newest first."""
        found = [_job(details) for details in self._call("list_jobs")]
        mine = [job for job in found if job is not None]
        return sorted(mine, key=lambda job: job.started or 0.0, reverse=True)

    def job(self, name: str) -> Job:
        """One by its name."""
        job = _job(self._call("get_job_info", name))
        if job is None:
            raise ConfigError(f"{name} is no job of deelbo-bench: `status` lists those that are")
        return job

    def submit(
        self, name: str, command: Sequence[str], folder: Path, runtime: Mapping[str, Any], facts: Mapping[str, str]
    ) -> bool:
        """Starts ``python COMMAND`` as a job whose working folder has the files of ``folder``; False where one of that
        name exists. ``runtime``: the rest of its runtime environment."""
        shutil.copy(START, folder)
        try:
            self.client.submit_job(
                submission_id=name,
                entrypoint=entrypoint(command),
                runtime_env={"working_dir": str(folder), **runtime},
                metadata={f"{MARK}{key}": value for key, value in facts.items()},
            )
        except Exception as error:
            if f"submission_id {name} already exists" in str(error):
                return False
            raise refusal(error, self.address) from None
        return True

    def log(self, name: str) -> str:
        """All that a job has printed so far."""
        return str(self._call("get_job_logs", name))

    def lines(self, name: str) -> list[str]:
        """The same, line by line, without Ray's own."""
        return list(without_noise(self.log(name)))

    def stop(self, name: str) -> None:
        """Asks a job to stop, as SIGTERM does."""
        self._call("stop_job", name)

    def run_to_end(
        self, command: Sequence[str], files: Mapping[str, str | bytes], env: Mapping[str, str], seconds: float
    ) -> tuple[int | None, str]:
        """Runs ``python COMMAND`` as a job whose working folder has ``files``; its exit code and all it printed.

        The exit code is None where it did not end in ``seconds``; it is stopped then.
        """
        with TemporaryDirectory(prefix="deelbo-job-") as folder:
            for path, content in files.items():
                place = Path(folder, path)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content.encode() if isinstance(content, str) else content)
            name = f"{PREFIX}check-{os.urandom(4).hex()}"
            self.submit(name, command, Path(folder), {"env_vars": dict(env)}, {"role": "check"})
        try:
            until = time.monotonic() + seconds
            while (details := self._call("get_job_info", name)).status.value not in ENDED:
                if time.monotonic() > until:
                    return None, self.log(name)
                time.sleep(POLL)
            code = details.driver_exit_code
            log = "\n".join(self.lines(name)) + ("" if code is not None else f"\n{details.message}")
            return code if code is not None else 1, log
        finally:
            self._remove(name)

    def _remove(self, name: str) -> None:
        """Stops a job and takes it out of the cluster's list, as far as that is to be had in a few seconds."""
        with suppress(Exception):  # it has ended
            self.client.stop_job(name)
        until = time.monotonic() + REMOVING
        while time.monotonic() < until:
            with suppress(Exception):  # Ray deletes none that has not ended yet
                self.client.delete_job(name)
                return
            time.sleep(POLL)

    def _call(self, what: str, *arguments: Any) -> Any:
        try:
            return getattr(self.client, what)(*arguments)
        except Exception as error:
            raise refusal(error, self.address) from None


def entrypoint(command: Sequence[str]) -> str:
    """The shell command that runs ``python COMMAND`` by the interpreter of the cluster's Ray; see entrypoint.sh, in
    the job's folder."""
    return shlex.join(["exec", "sh", START.name, *command])


def _job(details: Any) -> Job | None:
    """What Ray knows of a job, where it is a benchmark of ours."""
    facts = {
        key.removeprefix(MARK): str(value) for key, value in (details.metadata or {}).items() if key.startswith(MARK)
    }
    name = details.submission_id
    if name is None or "benchmark" not in facts:
        return None
    return Job(
        name=name,
        status=details.status.value,
        exit_code=details.driver_exit_code,
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        message=str(details.message or ""),
        facts=facts,
    )


def without_noise(log: str) -> Iterator[str]:
    """The lines of a log but Ray's own on how it began."""
    for line in log.splitlines():
        if not any(words in line for words in NOISE):
            yield line
