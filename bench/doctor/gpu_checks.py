"""Whether the cluster has the GPUs that trials take, of one model, and room for as many trials as were asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.doctor.cluster_report import Asked, Facts, Finding, Node, complaints, where

__all__ = ["judge_gpus"]


def judge_gpus(facts: Facts, asked: Asked) -> list[Finding]:
    """GPUs, whether torch can use them, and the trials that fit at once."""
    gpus = _gpus(facts, asked)
    if any(finding.verdict != "ok" and not facts.for_trials(asked) for finding in gpus):
        return gpus  # for which there is no room then either
    return [*gpus, *_cuda(facts, asked), _room(facts, asked)]


def _gpus(facts: Facts, asked: Asked) -> list[Finding]:
    have = [node for node in facts.nodes if node["gpus"]]
    uncounted = [node for node in facts.answered if node["devices"] and not node["gpus"]]
    if not asked.gpus:
        if not have or asked.benchmark is None:
            return [Finding("GPUs", _models(have) if have else "none, and none asked for", "ok")]
        return [Finding("GPUs", f"{_models(have)}, and trials take none", "note", "set resources.gpus_per_trial to 1")]
    usable = [node for node in have if asked.trials_on(node)]
    if not usable:
        if facts.may_grow(asked):
            return [Finding("GPUs", "the workers are not up yet: not looked at", "note", _AGAIN)]
        if uncounted:
            found = f"{_models(uncounted)} on {where(facts, uncounted, facts.nodes)}, which Ray does not count"
            return [Finding("GPUs", found, "fail", "start those nodes with `ray start --num-gpus N`")]
        if have and asked.accelerator is not None:
            found = f"{_models(have)}, and resources.accelerator = {asked.accelerator}"
            return [Finding("GPUs", found, "fail", "name a type that is there, or take it out")]
        if have:
            found = f"{_models(have)}, on no node with {asked.cpus:g} CPUs beside it"
            return [Finding("GPUs", found, "fail", "lower resources.cpus_per_trial, or start nodes with more CPUs")]
        what = "start nodes with GPUs, or set resources.gpus_per_trial to 0"
        return [Finding("GPUs", f"none, and each trial takes {asked.gpus:g}", "fail", what)]
    models = {model for node in usable for model in _of(node)}
    if len(models) < 2:
        return [Finding("GPUs", _models(usable), "ok")]
    timed = asked.benchmark is not None and asked.benchmark.timed
    what = _one_model(usable)
    if timed:
        return [Finding("GPUs", f"{_models(usable)}: seconds do not compare", "fail", f"{what}, or --set timed=false")]
    return [Finding("GPUs", _models(usable), "note", f"{what}, if results shall be of one model")]


def _one_model(usable: Sequence[Node]) -> str:
    """How trials get GPUs of one model: by Ray's types, as long as these tell them apart, which A100s of 40 and of
    80 GiB they do not."""
    types = Counter[str]()
    for node in usable:
        types[(node["accelerators"] or [""])[0]] += int(node["gpus"])
    named = [kind for kind, _ in types.most_common() if kind]
    if len(types) > 1 and named:
        return f"pin one: --set resources.accelerator={named[0]}"
    kind = f"they are one type to Ray, {named[0]}" if named else "Ray has no name for their types"
    return f"{kind}: take the nodes of one model out"


_AGAIN = "ask again once they are, or see the first lines of `logs`"


def _of(node: Node) -> list[str]:
    """A node's GPUs by name: nvidia-smi's, else Ray's type of them."""
    named = [f"{device['name']} ({_gib(device['mib'])})" for device in node.get("devices") or []]
    kinds = node["accelerators"] or ["GPU"]
    return (named or [kinds[0]] * max(int(node["gpus"]), 1))[: max(int(node["gpus"]), 1)]


def _gib(mib: str) -> str:
    return f"{int(mib) / 1024:.0f} GiB" if mib.isdigit() else mib


def _models(nodes: Sequence[Node]) -> str:
    counts = Counter(model for node in nodes for model in _of(node))
    drivers = sorted({device["driver"] for node in nodes for device in node.get("devices") or []})
    listed = ", ".join(f"{count} x {model}" for model, count in counts.most_common(4))
    listed += f" and {len(counts) - 4} more models" if len(counts) > 4 else ""
    return listed + (f", driver {', '.join(drivers[:3])}" if drivers else "")


def _cuda(facts: Facts, asked: Asked) -> list[Finding]:
    """Where torch does not see the GPUs a trial would fail, or run on the CPU."""
    nodes = [node for node in facts.for_trials(asked) if node.get("cuda") is not None] if asked.gpus else []
    broken = [node for node in nodes if node["cuda"]]
    if not nodes:
        return []
    if not broken:
        return [Finding("CUDA", f"torch uses the GPUs of {where(facts, nodes, nodes)}", "ok")]
    what = "install a torch whose CUDA that driver takes, or a newer driver"
    findings = []
    for why, some in complaints(broken, lambda node: node["cuda"]).items():
        found = f"torch sees no GPU on {where(facts, some, nodes)}: {why}"
        if asked.install and all(node["packages"].get("torch") is None for node in some):
            findings.append(Finding("CUDA", found, "note", "torch comes with --install"))
        else:
            findings.append(Finding("CUDA", found, "fail", what))
    return findings


def _room(facts: Facts, asked: Asked) -> Finding:
    takes = f"{asked.cpus:g} CPU" + (f" and {asked.gpus:g} GPU" if asked.gpus else "")
    takes += f" of type {asked.accelerator}" if asked.accelerator else ""
    fits = sum(asked.trials_on(node) for node in facts.nodes)
    found = f"{fits} trial{'s' * (fits != 1)} at once, each with {takes}"
    if not fits and facts.may_grow(asked):
        return Finding("room", f"{found}: the workers are not up yet", "note", _AGAIN)
    if not fits:
        return Finding("room", found, "fail", "lower resources in the configuration, or start larger nodes")
    if asked.slots is not None and asked.slots > fits:
        return Finding("room", f"{found}; {asked.slots} are asked for", "note", "more run once more nodes are there")
    return Finding("room", found, "ok")
