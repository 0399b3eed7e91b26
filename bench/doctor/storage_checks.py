"""Whether what a benchmark reads and writes is where it will look: storage, disks, MLflow, data and weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from bench.doctor.cluster_report import Asked, Facts, Finding, Node, complaints, is_loopback, where
from bench.utils.text import redact_url
from bench.utils.urls import local_folder

__all__ = ["judge_places"]


TIGHT, FULL = 5e9, 5e8
"""Bytes free below which a disk is worth a note, and below which nothing can be kept."""
SHARE = "give a folder that is mounted on every node, or a URL such as s3://BUCKET/FOLDER"


def judge_places(facts: Facts, asked: Asked) -> list[Finding]:
    """The storage, free disk, MLflow, the datasets and the weights, in that order."""
    findings = [*_storage(facts, asked), *_disk(facts, asked), *_mlflow(facts, asked)]
    return findings + ([] if asked.benchmark is None else [*_data(facts, asked), *_weights(facts)])


def _storage(facts: Facts, asked: Asked) -> list[Finding]:
    """Not writable, writable but not shared, or shared."""
    if asked.storage is None:
        return [Finding("storage", "none given", "note", "give --storage, a URL or a folder that all nodes share")]
    url, folder = redact_url(asked.storage), local_folder(asked.storage)
    if folder is not None and not os.path.isabs(folder):
        return [Finding("storage", f"{url} is a path from here, where no node is", "fail", SHARE)]
    nodes = [node for node in facts.concerned(asked) if "storage" in node]
    barred = [node for node in nodes if not node["storage"]["wrote"]]
    if barred:
        findings = []
        for why, some in complaints(barred, lambda node: node["storage"]["why"]).items():
            found = f"{url} is not writable on {where(facts, some, nodes)}: {why}"
            findings.append(Finding("storage", found, "fail", _opening(url, why)))
        return findings
    lost = [node for node in nodes if "unseen" not in node["storage"]]
    if lost:
        found = f"{url} was written, then {where(facts, lost, nodes)} gave no answer: {lost[0]['storage']['problem']}"
        return [Finding("storage", found, "fail", "see whether the disk hangs there")]
    mine = {node["id"] for node in nodes}
    alone = [node for node in nodes if mine & set(node["storage"]["unseen"])]
    if alone:
        return [Finding("storage", f"{url} is writable but not shared: {_split(facts, nodes, alone)}", "fail", SHARE)]
    seen = f"shared by {where(facts, nodes, nodes)}" if len(nodes) > 1 else "writable on the one node"
    return [Finding("storage", f"{url} is {seen}", "ok")] if nodes else []


def _opening(url: str, why: str) -> str:
    """What to do where nothing can be written."""
    if local_folder(url) is not None:
        is_file = why.startswith(("FileExistsError", "NotADirectoryError"))
        return "there is a file of that name: give a folder" if is_file else SHARE
    if why.startswith(("ImportError", "ModuleNotFoundError")):
        s3 = url.startswith(("s3://", "s3a://"))
        return f"install {'deelbo[bench,s3]' if s3 else 'that package'} on every node"
    return "take the credentials along with --env NAME, and see that they may write there"


def _split(facts: Facts, nodes: Sequence[Node], alone: Sequence[Node]) -> str:
    """Who does not see whose files; where it is the driver's that nobody else sees, so."""
    drivers = [node for node in nodes if node["driver"]]
    others = [node for node in nodes if not node["driver"]]
    if drivers and others and all(drivers[0]["id"] in node["storage"]["unseen"] for node in others):
        return f"no other node sees what the driver on {facts.name(drivers[0])} writes"
    return f"what others write is not all seen on {where(facts, alone, nodes)}"


def _disk(facts: Facts, asked: Asked) -> list[Finding]:
    """The least there is of each kind of place."""
    nodes = facts.concerned(asked)
    findings, enough = [], []
    for place in ("temporary files", "the storage"):
        free = {node["id"]: node["free"][place] for node in nodes if node["free"].get(place) is not None}
        if not free:
            continue
        least = min(free.values())
        tight = [node for node in nodes if free.get(node["id"], TIGHT) < TIGHT]
        if tight:
            found = f"{_bytes(least)} free for {place} on {where(facts, tight, nodes)}"
            findings.append(Finding("disk", found, "fail" if least < FULL else "note", "make room there"))
        enough.append(f"{_bytes(least)} for {place}")
    if enough and not findings:
        findings.append(Finding("disk", f"free: at least {', '.join(enough)}", "ok"))
    return findings


def _bytes(count: float) -> str:
    return (
        f"{count / 1e9:,.0f} GB"
        if count >= 1e10
        else f"{count / 1e9:.1f} GB"
        if count >= 1e9
        else f"{count / 1e6:.0f} MB"
    )


def _mlflow(facts: Facts, asked: Asked) -> list[Finding]:
    if asked.tracking is None:
        if asked.storage is not None and local_folder(asked.storage) is None:
            found = f"no place: {redact_url(asked.storage)} is no folder that could hold its database"
            return [Finding("MLflow", found, "fail", "give --tracking-uri")]
        return [Finding("MLflow", "a database in the storage", "ok")] if asked.storage else []
    uri, parts, seen = redact_url(asked.tracking), urlsplit(asked.tracking), facts.driver.get("mlflow")
    if seen is None:
        return [Finding("MLflow", f"{uri} was not looked at", "note")]
    if seen["ok"]:
        version = f" (MLflow {seen['version']})" if seen.get("version") else ""
        own = ", on the loopback of its machine" if is_loopback(parts.hostname) else ""  # nobody else talks to it
        return [Finding("MLflow", f"{uri} takes requests from the driver{own}{version}", "ok")]
    name = parts.netloc.rpartition("@")[2]
    todo = {
        401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, here: they go along",
        403: f"start `mlflow server` with {name} among its --allowed-hosts, or give a user who may",
    }
    status = f" (status {seen['status']})" if seen["status"] else ""
    found = f"{uri} refuses the driver{status}" if status else f"{uri} cannot be used from the driver"
    what = todo.get(seen["status"], "check --tracking-uri, and that the server can be reached from the cluster's head")
    if is_loopback(parts.hostname) and seen["status"] not in todo:
        what = "start the server on the machine where the driver runs, whose loopback that is, or give another address"
    return [Finding("MLflow", f"{found}: {seen['words'] or 'no words'}", "fail", what)]


def _data(facts: Facts, asked: Asked) -> list[Finding]:
    """Images are read where trials run; a node without deelbo was not asked, and is told of already."""
    able = [node for node in facts.for_trials(asked) if node["deelbo"] is not None]
    nodes = [node for node in able if not node.get("unread")]
    unread = [_unread(facts, able)] if len(nodes) < len(able) else []
    if not able:
        return [Finding("data", "not looked at: no node runs trials and has deelbo yet", "note", "see `prepare`")]
    findings, whole = unread, []
    for dataset in sorted({dataset for node in nodes for dataset in node["data"]}):
        missing = [node for node in nodes if node["data"].get(dataset) is not None]
        for why, some in complaints(missing, _lack_of(dataset)).items():
            found = f"{why.partition(': run `')[0]}: so on {where(facts, some, nodes)}"
            findings.append(Finding("data", found, "fail", "run `deelbo-bench prepare CONFIG` there"))
        if not missing:
            whole.append(dataset)
    if whole:
        findings.append(Finding("data", f"{', '.join(whole)} on {where(facts, nodes, nodes)}", "ok"))
    return findings


def _unread(facts: Facts, able: Sequence[Node]) -> Finding:
    """Nodes that are there, and whose data could not be read in time, or at all."""
    some = [node for node in able if node.get("unread")]
    found = f"not read on {where(facts, some, able)}: {some[0]['unread']['problem']}"
    if all(node["unread"]["late"] for node in some):
        return Finding("data", found, "note", "ask again: a disk of the network is slow the first time it is read")
    return Finding("data", found, "fail", "run `deelbo-bench prepare CONFIG` there, and see what it says")


def _lack_of(dataset: str) -> Callable[[Node], str]:
    return lambda node: str(node["data"][dataset])


def _weights(facts: Facts) -> list[Finding]:
    """Files of weights are read by the driver alone, and travel to the workers through Ray."""
    asked = facts.driver.get("weights") or []
    findings = []
    if asked and not any(node["driver"] and node["deelbo"] is not None for node in facts.answered):
        return [Finding("weights", "not looked at: where the driver runs deelbo is not yet", "note", "see `prepare`")]
    for one in asked:
        if one["missing"] is not None:
            place = "" if one.get("here") else ", where the driver runs"
            found = f"{one['backbone']}{place}: {one['missing'].partition(': run `')[0]}"
            what = "run `deelbo-bench prepare CONFIG` there" if "version" in one else "put it there, or name another"
            findings.append(Finding("weights", found, "fail", what))
    there = sorted({one["backbone"] for one in asked if one["missing"] is None})
    if there:
        findings.append(Finding("weights", f"{', '.join(there)}, where the driver runs", "ok"))
    return findings or [Finding("weights", "none to be read: the backbone is pretrained by the driver", "ok")]
