"""The part of the command line that is about clusters: `submit`, `status`, `logs`, `stop` and `doctor`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from bench.cli.arguments import add_command

if TYPE_CHECKING:
    from bench.cli.arguments import Subparsers

__all__ = ["add_parser"]


DASHBOARD = "http://HOST:8265 of the cluster (default: $RAY_API_SERVER_ADDRESS)"


def add_parser(subparsers: Subparsers) -> None:
    """Add the commands to the command line."""
    tracking = os.environ.get("DEELBO_TRACKING_URI")

    def command(name: str, call: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        return add_command(subparsers, name, call, text)

    submit = command("submit", _submit, "run a benchmark as a job of a Ray cluster, and follow it")
    submit.add_argument("config", help="a preset's name, or a YAML file")
    submit.add_argument("--address", help=DASHBOARD)
    submit.add_argument("--storage", help="URL, or folder that all nodes share, for the records")
    submit.add_argument("--only", metavar="KEY=VALUE,...", help="a part of it, as for `run`")
    submit.add_argument("--detach", action="store_true", help="do not follow the job")
    submit.add_argument(
        "--unchecked", action="store_true", help="without looking at the cluster as `doctor` does first"
    )

    doctor = command("doctor", _doctor, "look whether a benchmark can run, before a GPU is paid for")
    doctor.add_argument("config", nargs="?", help="a preset's name, or a YAML file (default: the cluster alone)")
    doctor.add_argument("--address", help=f"{DASHBOARD}; or auto or HOST:PORT of Ray itself, on one of its machines")
    doctor.add_argument("--storage", help="URL, or folder that all nodes share")
    doctor.add_argument("--json", action="store_true", help="what was found, as JSON")

    for part in (submit, doctor):
        part.add_argument("--tracking-uri", default=tracking, help="MLflow server (default: $DEELBO_TRACKING_URI)")
        part.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="change the configuration, as for `run`"
        )
        part.add_argument(
            "--env",
            action="append",
            default=[],
            metavar="NAME",
            help="a variable of this terminal that the job gets, e.g. AWS_SECRET_ACCESS_KEY; may be given often",
        )
        code = part.add_mutually_exclusive_group()
        code.add_argument("--from-source", action="store_true", help="take the code of this checkout along")
        code.add_argument(
            "--install",
            nargs="?",
            const="",
            metavar="REQUIREMENT",
            help="have pip install it on the nodes first (default: this version of deelbo[bench,methods])",
        )

    status = command("status", _status, "list the benchmarks on a cluster, or tell of one; exits as its `run` did")
    logs = command("logs", _logs, "show what a benchmark's job has printed")
    stop = command("stop", _stop, "stop a benchmark's job; what it has is kept, and the same `submit` continues")
    for part in (status, logs, stop):
        anything = part is not stop  # on a cluster that is shared the newest may be somebody else's
        part.add_argument(
            "job",
            nargs="?" if anything else None,
            help=f"its name, or its benchmark's{' (default: the newest)' if anything else ''}",
        )
        part.add_argument("--address", help=DASHBOARD)
    logs.add_argument("-f", "--follow", action="store_true", help="until it ends; exits as its `run` did")


def _submit(options: argparse.Namespace) -> int:
    from bench.cli.submit import Asked, submit

    asked = Asked(
        storage=options.storage,
        tracking=options.tracking_uri and options.tracking_uri.rstrip("/"),
        only=options.only,
        env=options.env,
        from_source=options.from_source,
        install=options.install,
        detach=options.detach,
        unchecked=options.unchecked,
    )
    return submit(options.config, options.address, options.set, asked)


def _doctor(options: argparse.Namespace) -> int:
    from bench.cli.doctor import doctor

    return doctor(
        options.config,
        options.address or os.environ.get("RAY_API_SERVER_ADDRESS"),
        options.storage,
        options.tracking_uri,
        options.set,
        options.env,
        options.from_source,
        options.json,
        options.install is not None,
    )


def _status(options: argparse.Namespace) -> int:
    from bench.cli.jobs import status

    return status(options.job, options.address)


def _logs(options: argparse.Namespace) -> int:
    from bench.cli.jobs import logs

    return logs(options.job, options.address, options.follow)


def _stop(options: argparse.Namespace) -> int:
    from bench.cli.jobs import stop

    return stop(options.job, options.address)
