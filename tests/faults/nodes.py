"""A node of a Ray cluster is killed, with all that runs on it, and another one joins."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults.place import Place
from tests.faults.processes import GONE, Run, alive, descendants, in_training, is_idle, until
from tests.faults.proof import attempts, in_mlflow, same_results


def kill_nodes(times: int, place: Place) -> str:
    """A node dies once a trial runs on it. Another call of `run`, in a new storage, where one was too short for all."""
    killed, moved, lost, counts = 0, list[float](), 0.0, list[int]()
    database = place.database("mlflow")
    with cluster_of_one() as cluster:
        while killed < times:
            node = cluster.add_node(num_cpus=1)
            storage = place.folder / f"storage{len(counts)}"
            config = place.config(seeds=place.many)
            with Run(config, storage, "run", "--tracking-uri", database, "--address", cluster.address) as run:
                here = 0
                while killed < times and _works(run, node):
                    time.sleep(place.random.uniform(0, place.account["trial"]))
                    if not trials_on(node):  # just between two
                        continue
                    since = time.monotonic()
                    kill_node(cluster, node)
                    node, here, killed = cluster.add_node(num_cpus=1), here + 1, killed + 1
                    if _works(run, node):
                        moved.append(time.monotonic() - since)
                run.ends_well()
                told = run.said.count("lost, tried again")
            counts.append(same_results(storage, place.reference, place.many))
            in_mlflow(place.folder / "mlflow.db", storage)
            _, vain, seconds = attempts(storage)
            assert vain == told, f"{told} lines on lost trials, {vain} attempts in vain"
            assert 1 <= vain <= here, f"{here} nodes killed, {vain} attempts in vain"
            lost += seconds
            if killed < times:
                kill_node(cluster, node)
    return (
        f"exit code 0; each lost trial ran elsewhere, {lost:.1f} s booked as lost; a new node worked at most "
        f"{max(moved, default=0.0):.1f} s after the kill; {sum(counts)} records equal the undisturbed run's"
    )


def _works(run: Run, node: Any) -> bool:
    """Waits for a trial on the node; False where the run ended without one."""
    until(lambda: trials_on(node) or not run.runs(), "a trial runs on the node")
    return bool(trials_on(node)) or run.runs()


def trials_on(node: Any) -> list[int]:
    return in_training(_raylet(node))


def _raylet(node: Any) -> int:
    (info,) = node.all_processes["raylet"]
    return int(info.process.pid)


def kill_node(cluster: Any, node: Any) -> None:
    """SIGKILL to its raylet; the processes of its trials must be gone soon after."""
    started = descendants(_raylet(node))
    cluster.remove_node(node, allow_graceful=False)
    until(lambda: all(map(is_idle, alive(started))), "the dead node's processes are gone", GONE)


@contextmanager
def cluster_of_one() -> Iterator[Any]:
    """A cluster of one node with one CPU, its head, which is never killed."""
    import logging

    from ray._private.utils import get_ray_address_file
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    cluster = Cluster(shutdown_at_exit=False)
    cluster.add_node(num_cpus=1, include_dashboard=False)
    _forget(get_ray_address_file(None), cluster.address)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def _forget(file: str, address: str) -> None:
    """Takes back what the cluster wrote for whoever says address="auto": it is nobody else's."""
    from pathlib import Path

    path = Path(file)
    if path.exists() and path.read_text() == address:
        path.unlink()
