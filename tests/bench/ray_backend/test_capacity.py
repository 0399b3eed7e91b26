"""Counting the trials that nodes hold, and refusing nodes unfit for timed trials."""

import json
from typing import Any

import pytest

from bench.config.benchmark import Benchmark
from bench.config.loading import parse_benchmark
from bench.ray_backend.capacity import accelerator_conflict, no_fit_message, trial_resources, trials_per_node
from tests.helpers.raylets import Raylets, start_driver

H100 = {"CPU": 16.0, "GPU": 2.0, "accelerator_type:H100": 1.0}
A100 = {"CPU": 16.0, "GPU": 4.0, "accelerator_type:A100": 1.0}
PLAIN = {"CPU": 16.0}


def benchmark(content: dict[str, Any], timed: bool = True, **resources: Any) -> Benchmark:
    return parse_benchmark(content | {"resources": resources, "timed": timed}, "x")


@pytest.mark.parametrize(
    ("resources", "node", "count"),
    [
        ({"cpus_per_trial": 4}, {"CPU": 1.0}, 0),
        ({"cpus_per_trial": 4}, {"CPU": 9.0}, 2),
        ({"cpus_per_trial": 4, "gpus_per_trial": 1}, H100, 2),
        ({"cpus_per_trial": 12, "gpus_per_trial": 1}, H100, 1),
        ({"gpus_per_trial": 1}, PLAIN, 0),
        ({"gpus_per_trial": 0.1}, H100, 16),
        ({"gpus_per_trial": 0.1}, {"CPU": 99.0, "GPU": 3.0}, 30),
        ({"gpus_per_trial": 1, "accelerator": "H100"}, H100, 2),
        ({"gpus_per_trial": 1, "accelerator": "H100"}, A100, 0),
    ],
)
def test_trials_are_counted_by_node(
    content: dict[str, Any], resources: dict[str, Any], node: dict[str, float], count: int
) -> None:
    """A node holds as many trials as its scarcest resource does; none where it is of another type of accelerator."""
    assert trials_per_node(node, trial_resources(benchmark(content, timed=False, **resources).resources)) == count


def test_what_ray_is_asked_for(content: dict[str, Any]) -> None:
    """A trial without a GPU asks for CPUs alone; one on a chosen type asks for a trifle of that type too."""
    assert trial_resources(benchmark(content).resources) == {"CPU": 1.0}
    pinned = benchmark(content, cpus_per_trial=4, gpus_per_trial=1, accelerator="H100").resources
    assert trial_resources(pinned) == {"CPU": 4.0, "GPU": 1.0, "accelerator_type:H100": 0.001}


def test_several_types_are_refused_by_name(content: dict[str, Any]) -> None:
    """Timed trials on GPUs of two types are refused, in one line with the types, their numbers, and what to set."""
    reason = accelerator_conflict(benchmark(content, gpus_per_trial=1), [H100, A100, A100, PLAIN])
    assert reason is not None
    assert len(reason.splitlines()) == 1
    for word in ("2 types", "8 x A100", "2 x H100", "resources.accelerator", "timed: false"):
        assert word in reason


@pytest.mark.parametrize(
    ("resources", "timed", "nodes"),
    [
        ({"gpus_per_trial": 1}, True, [H100, H100, PLAIN]),
        ({"gpus_per_trial": 1, "accelerator": "H100"}, True, [H100, A100]),
        ({"gpus_per_trial": 1}, False, [H100, A100]),
        ({}, True, [H100, A100]),
        ({"cpus_per_trial": 16, "gpus_per_trial": 1}, True, [H100, A100 | {"CPU": 8.0}]),
    ],
)
def test_one_type_is_enough(
    content: dict[str, Any], resources: dict[str, Any], timed: bool, nodes: list[dict[str, float]]
) -> None:
    """Trials are not refused if only one type of GPU matters to them, or none does."""
    assert accelerator_conflict(benchmark(content, timed=timed, **resources), nodes) is None


def test_a_trial_that_fits_nowhere_is_refused_with_what_there_is(content: dict[str, Any]) -> None:
    """The line names a trial's needs, the largest node, and the types of GPU if one is requested."""
    wanted = benchmark(content, cpus_per_trial=4, gpus_per_trial=1, accelerator="H200").resources
    line = no_fit_message(wanted, [PLAIN, A100, H100])
    assert len(line.splitlines()) == 1
    for word in ("4 CPU and 1 GPU of type H200", "has is of 16 and 4", "type A100, H100", "lower"):
        assert word in line
    assert "the cluster has is of 0 and 0: lower" in no_fit_message(benchmark(content).resources, [])


def test_a_machine_without_gpus_is_told_what_to_set(content: dict[str, Any]) -> None:
    """If no node has a GPU the line says how to train without; where one has, it does not."""
    wanted = benchmark(content, cpus_per_trial=99, gpus_per_trial=1).resources
    assert no_fit_message(wanted, [PLAIN]).endswith(
        "set resources.gpus_per_trial=0 to train on CPUs, or add a node with a GPU"
    )
    assert no_fit_message(wanted, [PLAIN, H100]).endswith("lower resources in the configuration, or add a node")


@pytest.mark.slow
@pytest.mark.cluster
def test_trials_run_on_the_chosen_type_alone() -> None:
    """Timed trials on two types are refused until one is chosen; then all run on the nodes of that type."""
    with Raylets() as cluster:
        for number, name in enumerate(("H100", "A100")):
            cluster.add(cpus=2, gpus=1 + number, resources={f"accelerator_type:{name}": 1})
            cluster.wait(2 + number)
        refused = start_driver(cluster, gpus_per_trial=1)
        _, error = refused.communicate(timeout=300)
        assert refused.returncode != 0
        assert "ConfigError: the cluster's GPUs are of 2 types (2 x A100, 1 x H100)" in error
        out, _ = start_driver(cluster, gpus_per_trial=1, accelerator="A100").communicate(timeout=300)
    result = json.loads(out.splitlines()[-1])
    assert (result["slots"], result["nodes"], result["processes"], result["trials"]) == (2, 1, 2, 16)
