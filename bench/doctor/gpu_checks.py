"""Checks of the GPUs: their number, their models, torch's access to them, and the room for trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.doctor.cluster_report import CheckResult, ClusterReport, DoctorRequest, Node

__all__ = ["check_gpus"]


WORKERS_MISSING = "the workers are not up yet"
RETRY = "run `doctor` again when they are, or see the first lines of `logs`"


def check_gpus(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Check the GPUs, and the number of trials that fit at once."""
    result = _check_gpus(report, request)
    if result.status != "ok" and not report.trial_nodes(request):
        return [result]  # for which there is no room either
    return [result, *_check_cuda(report, request), _check_room(report, request)]


def _check_gpus(report: ClusterReport, request: DoctorRequest) -> CheckResult:
    with_gpus = [node for node in report.nodes if node["gpus"]]
    usable = [node for node in with_gpus if request.trials_on(node)]
    found = _describe_gpus(with_gpus) or "none"
    if not request.resources.gpus_per_trial:
        if not with_gpus or request.benchmark is None:
            return CheckResult("GPUs", found, "ok")
        return CheckResult("GPUs", f"{found}, and trials take none", "note", "set resources.gpus_per_trial to 1")
    if not usable:
        return _check_unusable_gpus(report, request, with_gpus)
    found = _describe_gpus(usable)
    if len({model for node in usable for model in _gpu_models(node)}) < 2:
        return CheckResult("GPUs", found, "ok")
    types = Counter[str]()
    for node in usable:
        types[(node["accelerators"] or [""])[0]] += int(node["gpus"])
    named = [kind for kind, _ in types.most_common() if kind]
    if named and len(types) > 1:
        todo = f"pin one type: --set resources.accelerator={named[0]}"
    else:  # as A100s of 40 and 80 GiB
        todo = "Ray cannot tell these models apart: remove the nodes of all models but one"
    if request.benchmark is not None and request.benchmark.timed:
        found = f"{found}: seconds cannot be compared"
        return CheckResult("GPUs", found, "fail", f"{todo}, or --set timed=false")
    return CheckResult("GPUs", found, "note", f"{todo}, if all results should come from one model")


def _check_unusable_gpus(report: ClusterReport, request: DoctorRequest, with_gpus: Sequence[Node]) -> CheckResult:
    """Say why no node fits a trial that takes a GPU."""
    resources, found = request.resources, _describe_gpus(with_gpus)
    if report.may_grow(request):
        return CheckResult("GPUs", f"{WORKERS_MISSING}: not checked", "note", RETRY)
    uncounted = [node for node in report.answered if node["devices"] and not node["gpus"]]
    if uncounted:
        found = f"{_describe_gpus(uncounted)} on {report.describe_nodes(uncounted, report.nodes)}, unknown to Ray"
        return CheckResult("GPUs", found, "fail", "start those nodes with `ray start --num-gpus N`")
    if not with_gpus:
        todo = "start nodes with GPUs, or set resources.gpus_per_trial to 0"
        return CheckResult("GPUs", f"none, and each trial takes {resources.gpus_per_trial:g}", "fail", todo)
    if resources.accelerator is not None:
        found = f"{found}, and resources.accelerator = {resources.accelerator}"
        return CheckResult("GPUs", found, "fail", "name a type that is there, or remove the setting")
    found = f"{found}, but no node has {resources.cpus_per_trial} CPUs beside one"
    return CheckResult("GPUs", found, "fail", "lower resources.cpus_per_trial, or start nodes with more CPUs")


def _gpu_models(node: Node) -> list[str]:
    """Return the models of a node's GPUs: nvidia-smi's names, else Ray's type."""
    count = max(int(node["gpus"]), 1)
    models = []
    for gpu in node.get("devices") or []:
        memory = f" ({int(gpu['mib']) / 1024:.0f} GiB)" if gpu["mib"].isdigit() else ""  # [N/A] if shared with the CPU
        models.append(gpu["name"] + memory)
    return (models or [(node["accelerators"] or ["GPU"])[0]] * count)[:count]


def _describe_gpus(nodes: Sequence[Node]) -> str:
    """Count the GPUs by model, with their drivers; "" without nodes."""
    counts = Counter(model for node in nodes for model in _gpu_models(node))
    drivers = sorted({gpu["driver"] for node in nodes for gpu in node.get("devices") or []})
    models = ", ".join(f"{count} x {model}" for model, count in counts.most_common(4))
    more = f" and {len(counts) - 4} more models" if len(counts) > 4 else ""
    return f"{models}{more}{', driver ' + ', '.join(drivers[:3]) if drivers else ''}"


def _check_cuda(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Check that torch sees the GPUs; otherwise a trial would fail, or run on the CPU."""
    nodes = [node for node in report.trial_nodes(request) if node.get("cuda") is not None]
    if not request.resources.gpus_per_trial or not nodes:
        return []
    later = [node for node in nodes if request.install and node["packages"].get("torch") is None]
    now = [node for node in nodes if node not in later]
    todo = "install a torch whose CUDA that driver supports, or a newer driver"
    ok = f"torch uses the GPUs of {report.describe_nodes(nodes, nodes)}" if not later else None
    note = f"not checked on {report.describe_nodes(later, nodes)}: torch comes with --install"
    results = [CheckResult("CUDA", note, "note")] * bool(later)
    return results + report.check_each("CUDA", now, lambda node: node["cuda"], todo, ok)


def _check_room(report: ClusterReport, request: DoctorRequest) -> CheckResult:
    resources = request.resources
    each = f"{resources.cpus_per_trial} CPU"
    each += f" and {resources.gpus_per_trial:g} GPU" if resources.gpus_per_trial else ""
    each += f" of type {resources.accelerator}" if resources.accelerator else ""
    fits = sum(request.trials_on(node) for node in report.nodes)
    found = f"{fits} trial{'s' * (fits != 1)} at once, each with {each}"
    if not fits and report.may_grow(request):
        return CheckResult("room", f"{found}: {WORKERS_MISSING}", "note", RETRY)
    if not fits:
        return CheckResult("room", found, "fail", "lower resources in the configuration, or start larger nodes")
    if resources.slots is not None and resources.slots > fits:
        return CheckResult("room", f"{found}; slots = {resources.slots}", "note", "more run when more nodes join")
    return CheckResult("room", found, "ok")
