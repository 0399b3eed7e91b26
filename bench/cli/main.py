"""The command line: parse the arguments, call the command, turn its errors into one line and an exit code."""

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from bench.cli import (
    doctor,
    export,
    finetune,
    jobs,
    mlflow,
    plan,
    predict,
    prepare,
    replay,
    report,
    run,
    speed,
    submit,
    swag,
)
from bench.utils.signals import ignore_signals, interrupt_on_signals
from bench.utils.text import describe_denied, single_line

COMMANDS = (finetune, predict, run, plan, prepare, swag, report, export, mlflow, replay, submit, doctor, jobs, speed)
"""In the order of `--help`."""
MAX_MESSAGE_CHARS = 1000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SystemExit(_report_error(f"{message}: see {self.prog} --help"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 if done, 1 if some trials failed, 2 for bad input (in one line), 130 if interrupted."""
    _replace_unprintable()
    options = build_parser().parse_args(arguments)
    try:
        with interrupt_on_signals():
            return int(options.call(options))
    except (ValueError, ImportError, OSError) as error:
        if options.traceback:
            raise
        message = describe_denied(error) or single_line(error, MAX_MESSAGE_CHARS)
        return _report_error(message or type(error).__name__)
    except KeyboardInterrupt:
        return 130
    finally:
        if arguments is None:  # the process ends
            ignore_signals()


def _replace_unprintable() -> None:
    """Let the terminal show an escape for each letter that its encoding lacks, which would otherwise be an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="deelbo-bench", description="Compare MAP + grid search with the DE ELBo.")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def _report_error(message: str) -> int:
    print(f"deelbo-bench: {single_line(message, MAX_MESSAGE_CHARS)}", file=sys.stderr)
    return 2
