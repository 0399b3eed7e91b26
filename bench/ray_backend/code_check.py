"""Let trials run the driver's code: the workers' search path, and the comparison of all nodes with the driver."""

from __future__ import annotations

import site
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.job_config import JobConfig

import bench.utils.code
from bench.exceptions import RunAborted
from bench.probe.cluster import collect_answers, start_on_nodes
from bench.ray_backend.capacity import trials_per_node
from bench.scheduling.callbacks import RunCallback
from bench.trials.spec import TrialSpec
from bench.utils.code import Code, find_code, running_code

MAX_ANSWER_SECONDS = 30.0


def worker_search_path() -> JobConfig:
    """Return a job that adds the driver's code to the workers' search path, unless it is installed, and nothing else.

    By itself Ray puts the driver's current folder before everything else there, with whatever modules lie in it.
    """
    folder = running_code().folder
    paths = sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()
    is_installed = folder in {str(Path(path).resolve()) for path in paths}
    # only a job of Ray's client does not add the current folder
    return JobConfig(_client_job=True, _py_driver_sys_path=[] if is_installed else [folder])


class NodeCodeCheck(RunCallback):
    """Compare the code of all nodes that hold a trial with the driver's; nodes answer while the first trials start.

    A node that does not answer in time is not refused here: each worker compares its code once more.

    Args:
        wanted: resources of one trial.
        plugins, search_path: of the benchmark, as `find_code` takes them.

    Raises:
        RunAborted: when the first trial is about to run, if a node has other code.
    """

    def __init__(
        self,
        wanted: Mapping[str, float],
        plugins: Sequence[tuple[str, str]] = (),
        search_path: Sequence[str] = (),
    ) -> None:
        self._own = running_code(plugins)
        self._hosts = {
            node["NodeID"]: node.get("NodeManagerHostname") or node["NodeManagerAddress"]
            for node in ray.nodes()
            if node["Alive"] and trials_per_node(node["Resources"], wanted)
        }
        cloudpickle.register_pickle_by_value(bench.utils.code)  # the node may have no or another version of it
        try:
            self._tasks = start_on_nodes(find_code, dict.fromkeys(self._hosts, (plugins, search_path)))
        finally:
            cloudpickle.unregister_pickle_by_value(bench.utils.code)

    def on_trial_start(self, spec: TrialSpec) -> None:
        tasks, self._tasks = self._tasks, {}
        for node, answer in collect_answers(tasks, MAX_ANSWER_SECONDS).items():
            problem = None if "problem" in answer else code_problem(self._hosts[node], answer, self._own)
            if problem is not None:
                raise RunAborted(problem)


def code_problem(node: str, found: Mapping[str, Any], own: Code) -> str | None:
    """Compare the fields of a node's `Code` with the code of this process; describe the difference and what to do."""
    theirs = Code(**found)
    if theirs.hash == own.hash:
        return _plugin_problem(node, theirs, own)
    there = f"{theirs.folder} ({theirs.hash})" if theirs.hash else "none"
    return (
        f"node {node} has other code than this command: {there} there, {own.folder} ({own.hash}) here, expected equal "
        "sources of deelbo and bench: install one version on both, or take the code along by `submit --from-source`, "
        "and change none of it during a run"
    )


def _plugin_problem(node: str, theirs: Code, own: Code) -> str | None:
    """Describe the first plug-in whose version or sources on a node differ from those here."""
    for module, here in own.plugins.items():
        there = theirs.plugins.get(module, "none")
        if there != here:
            return (
                f"node {node} has another plug-in {module} than this command: {there} there, {here} here, expected "
                "equal versions and sources: install it on both, or take it along by `submit --from-source`"
            )
    return None
