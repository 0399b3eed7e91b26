"""`python -m cluster.local up|down|status`: Ray and MLflow on this machine alone, to try `submit` with."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cluster.local.node import STAY
from cluster.local.running import down, down_command, status, up
from cluster.local.state import State

DEFAULTS = {"DASHBOARD_PORT": 8265, "MLFLOW_PORT": 5000, "RAY_PORT": 6379, "WORKERS": 2, "CPUS": 1}
MOST = 64
"""Workers, and CPUs of each: more on one machine is a slip of the keyboard."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"cluster: {message}: see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done; 1: `status` found something wrong; 2: refused or failed, said in one line; 130: stopped."""
    parser = _Parser(prog="python -m cluster.local", description=__doc__, epilog=_variables())
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("--folder", type=Path, default=Path("deelbo-cluster"), help="what is kept (./deelbo-cluster)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    try:
        return {"up": _up, "down": _down, "status": _status}[options.action](options.folder.absolute())
    except (ValueError, OSError) as error:
        print(f"cluster: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cluster: stopped", file=sys.stderr)
        return 130


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _variables() -> str:
    return "Variables: " + ", ".join(f"{name}={value}" for name, value in DEFAULTS.items())


def _number(name: str) -> int:
    given = os.environ.get(name) or str(DEFAULTS[name])
    if not given.isascii() or not given.isdigit() or len(given) > 5:
        raise ValueError(f"{name}={given}: expected a whole number")
    return int(given)


def _up(folder: Path) -> int:
    workers, cpus = _number("WORKERS"), _number("CPUS")
    for name, value in (("WORKERS", workers), ("CPUS", cpus)):
        if not 1 <= value <= MOST:
            raise ValueError(f"{name}={value}: expected 1 to {MOST}")
    ports = {name: _number(f"{name.upper()}_PORT") for name in ("dashboard", "mlflow", "ray")}
    state = up(folder, ports, workers, cpus)
    print(f"Ray     {state.dashboard}  (dashboard and Job API; workers: {workers}, CPUs of each: {cpus})")
    print(f"MLflow  {state.mlflow}")
    if state.token:
        print("Tokens  are asked for: RAY_AUTH_MODE=token, and the token where Ray looks for it, in each shell")
    else:
        print("Tokens  are not asked for (RAY_AUTH_MODE=disabled): whoever can reach loopback can run code as you")
    print(f"Kept    {folder}: logs, MLflow's database and artifacts\n")
    print(_commands(state))
    return 0


def _commands(state: State) -> str:
    own = Path(sys.executable).with_name("deelbo-bench")
    bench = "deelbo-bench" if shutil.which("deelbo-bench") else os.path.relpath(own)
    where = f"--address {state.dashboard}"
    joined = " ".join(f"{name}={value}" for name, value in STAY.items())
    return f"""Next:
  {bench} submit quickstart {where} --storage {state.folder / "storage"} --tracking-uri {state.mlflow}
  {bench} status {where}
  {down_command(state.folder)}

A driver of your own, from this machine, joins by
  {joined} {bench} run ... --address 127.0.0.1:{state.ports["ray"]}"""


def _down(folder: Path) -> int:
    count, remarks = down(folder)
    if count:
        print(f"ended {count} processes; kept: {folder}")
    else:
        print(f"no cluster of {folder} is up")
    for remark in remarks:
        print(remark)
    return 0


def _status(folder: Path) -> int:
    state, wrong = status(folder)
    if state is None:
        raise ValueError(f"no cluster of {folder} is up: `make cluster` starts one")
    ended = {name for name, _ in wrong}
    for part in state.parts:
        if part.name not in ended:
            print(f"{part.name:8} runs, process {part.pid}")
    for name, words in wrong:
        print(f"{name:8} {words}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
