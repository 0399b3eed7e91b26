"""Looks at a Ray cluster from inside and prints what it finds as one line of JSON: the script that `doctor` sends.

It takes Python 3.9, Ray, `bench.probe.node` and `bench.probe.driver`, which go along, and nothing else, so that a
cluster that lacks everything else can still say so. Its questions lie beside it in ``questions.json``. Each node
answers in a task of its own; whatever fails is a fact like any other, never a traceback.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bench
from bench.probe.driver import grows, mlflow, token_mode
from bench.probe.node import Facts, answer, clean, data_of, unseen
from bench.utils.text import describe_error

__all__ = ["MARK", "QUESTIONS", "look"]


MARK = "DEELBO-FACTS "
"""What the line of facts begins with, in a log that holds Ray's own lines too."""
QUESTIONS = "questions.json"
TRACKING = "DEELBO_TRACKING_URI"
"""The variable that holds MLflow's URI where the questions do not: it may have a password in it."""
ROUND = 30.0
"""Seconds for a node to read what the others wrote, and again to remove its own."""


def main() -> int:
    """Joins the cluster whose job this is, and prints the facts."""
    import ray

    questions = json.loads(Path(QUESTIONS).read_text(encoding="utf-8"))
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        facts = look(questions)
    except Exception as error:
        facts = {"problem": describe_error(error), "driver": {}, "nodes": []}
    print(f"\n{MARK}{json.dumps(facts)}", flush=True)
    return 0


def look(questions: Mapping[str, Any]) -> Facts:
    """Asks every node of the cluster that this process has joined, all at once, and the driver's machine.

    ``questions``: ``packages``, names of distributions; ``datasets``, ``data`` and ``verify`` as
    `deelbo.data.check_task` takes them; ``weights``, ``{"backbone", "version" or "file"}`` each, which only the driver
    reads; ``storage``, a folder or URL; ``tracking``, MLflow's URI; ``cuda``, whether torch is asked if it can use the
    GPUs; ``seconds`` for a node to answer, and again to read its data. What is null is not looked at.
    """
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(bench)  # nodes may not have it, or another version of it
    here = ray.get_runtime_context().get_node_id()
    nodes = [_from_ray(node, here) for node in ray.nodes() if node["Alive"]]
    token = uuid.uuid4().hex[:12]
    names = {node["id"]: f".deelbo-doctor-{token}-{i}" for i, node in enumerate(nodes)}
    everyone = {**questions, "weights": None}
    asked = {one: (dict(questions) if one == here else everyone, name) for one, name in names.items()}
    answers = _everywhere(answer, asked, float(questions["seconds"]))
    for node in nodes:
        node.update(answers[node["id"]])
    _read(nodes, questions)
    wrote = {node["id"]: names[node["id"]] for node in nodes if node.get("storage", {}).get("wrote")}
    url = questions.get("storage")
    missed = _everywhere(unseen, dict.fromkeys(wrote, (url, wrote)), ROUND)
    made = sorted({folder for node in nodes for folder in node.get("storage", {}).get("made", [])}, key=len)
    # one that was too late to answer may have written all the same
    left = [node["id"] for node in nodes if node["id"] in wrote or (url and node["problem"] is not None)]
    _everywhere(clean, {one: (url, names[one], made[::-1]) for one in left}, ROUND)
    for node in nodes:
        if node["id"] in wrote:
            node["storage"].update(missed[node["id"]])
    driver: Facts = {"token_mode": token_mode(), "grows": grows()}
    driver["mlflow"] = mlflow(questions.get("tracking") or os.environ.get(TRACKING))
    driver["weights"] = [file for node in nodes for file in node.pop("weights", [])]
    return {"problem": None, "driver": driver, "nodes": nodes}


def _read(nodes: Sequence[Facts], questions: Mapping[str, Any]) -> None:
    """Asks the nodes that are there for their data: apart, as one that reads for long is not a silent one."""
    there = [node for node in nodes if node["problem"] is None]
    asked = {node["id"]: (dict(questions),) for node in there if questions.get("datasets")}
    found = _everywhere(data_of, asked, float(questions["seconds"]))
    for node in there:
        told = found.get(node["id"], {"data": {}})
        node["data"] = told.get("data", {})
        node["unread"] = None if "data" in told else {"problem": told["problem"], "late": bool(told.get("late"))}


def _from_ray(node: Mapping[str, Any], here: str) -> Facts:
    """What Ray knows of a node without asking it."""
    resources = node["Resources"]
    prefix = "accelerator_type:"
    return {
        "id": node["NodeID"],
        "ip": node["NodeManagerAddress"],
        "host": node.get("NodeManagerHostname") or node["NodeManagerAddress"],
        "head": "node:__internal_head__" in resources,
        "driver": node["NodeID"] == here,
        "cpus": resources.get("CPU", 0.0),
        "gpus": resources.get("GPU", 0.0),
        "accelerators": sorted(name[len(prefix) :] for name in resources if name.startswith(prefix)),
        "problem": None,
    }


def _everywhere(what: Callable[..., Facts], asked: Mapping[str, tuple[Any, ...]], seconds: float) -> dict[str, Facts]:
    """What a function says on each of the nodes, or its problem."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not asked:
        return {}
    remote = ray.remote(num_cpus=0, max_retries=0)(what)
    waiting = {}
    for node, arguments in asked.items():
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        waiting[remote.options(scheduling_strategy=there).remote(*arguments)] = node
    done, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=seconds)
    answers = {}
    for one in done:
        try:
            answers[waiting[one]] = ray.get(one)
        except Exception as error:
            answers[waiting[one]] = {"problem": describe_error(error)}
    for one in late:
        answers[waiting[one]] = {"problem": f"no answer in {seconds:.0f} s", "late": True}
        with contextlib.suppress(Exception):
            ray.cancel(one, force=True)
    return answers


if __name__ == "__main__":
    raise SystemExit(main())
