"""One storage through all of them, one after the other."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from tests.faults.damage import cut_files, named
from tests.faults.disk import complains_of_room, fill, make_room, small_disk
from tests.faults.nodes import cluster_of_one, kill_node, trials_on
from tests.faults.place import Place
from tests.faults.processes import Run, in_training
from tests.faults.proof import attempts, contents, in_mlflow, same_results, unchanged
from tests.faults.rows import SkippedError
from tests.faults.second import refused_seconds
from tests.faults.signals import back_after

NOBODY = "http://127.0.0.1:9"
"""A port where no MLflow server answers."""


def hit_by_all(times: int, place: Place) -> str:
    """Play four calls of `run` on one storage: killed, interrupted without MLflow, out of room, and damaged."""
    told = []
    for time_ in range(times):
        with ExitStack() as stack:
            try:
                disk = stack.enter_context(small_disk(place.folder / f"disk{time_}"))
            except SkippedError:
                disk = None
            folder = disk or place.folder
            storage, config = folder / f"storage{time_}", place.config()
            _killed(config, storage)
            before = contents(storage)
            _interrupted(config, storage)
            unchanged(before, storage)
            if disk is not None:
                _out_of_room(config, storage, disk)
                unchanged(before, storage)
            told.append(_to_the_end(config, storage, place))
    return "; ".join(told)


def _killed(config: Path, storage: Path) -> None:
    """A second call is refused, a trial's process is killed, and then the driver."""
    with Run(config, storage, "killed") as run:
        run.until(lambda: any(storage.glob("lease-*.json")), "it has the storage")
        refused_seconds(run, Run(config, storage, "refused"))
        run.until_recorded(2)
        run.until_training()
        os.kill(in_training(run.pid)[0], signal.SIGKILL)
        run.until(lambda: "lost, tried again" in run.said, "the trial is tried again")
        run.kill()


def _interrupted(config: Path, storage: Path) -> None:
    with Run(config, storage, "interrupted", "--tracking-uri", NOBODY) as run:
        run.until_training()
        since = time.monotonic()
        os.killpg(run.pid, signal.SIGINT)
        back_after(run, since)


def _out_of_room(config: Path, storage: Path, disk: Path) -> None:
    with Run(config, storage, "full") as run:
        run.until_training()
        fill(disk / "ballast", leave=0)
        complains_of_room(run, disk / "ballast")
    make_room(disk)


def _to_the_end(config: Path, storage: Path, place: Place) -> str:
    short = cut_files(storage, 2, place.random)
    keys = {name.partition("/")[2] for name in short}
    whole = {name: content for name, content in contents(storage).items() if name.partition("/")[2] not in keys}
    with cluster_of_one() as cluster:
        node = cluster.add_node(num_cpus=1)
        with Run(config, storage, "last", "--address", cluster.address) as run:
            run.until(lambda: trials_on(node), "a trial on the node")
            kill_node(cluster, node)
            cluster.add_node(num_cpus=1)
            run.ends_well()
            named(short, storage, run.said)
    unchanged(whole, storage)
    count = same_results(storage, place.reference, place.few)
    points = in_mlflow(storage / "mlflow.db", storage)
    again, vain, lost = attempts(storage)
    return f"{count} records as undisturbed, {vain} attempts in vain at {again} trials ({lost:.1f} s); {points} points"
