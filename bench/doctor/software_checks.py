"""Checks of the cluster's access, nodes and software; pure functions of the report."""

from __future__ import annotations

from urllib.parse import urlsplit

from bench.doctor.cluster_report import (
    CheckResult,
    ClusterReport,
    DoctorRequest,
    Node,
    Status,
    is_loopback,
    minor_version,
)
from bench.doctor.gpu_checks import check_gpus
from bench.doctor.storage_checks import check_places
from bench.probe import MIN_PYTHON

__all__ = ["check_cluster"]


def check_cluster(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Run all checks in order; without an inspection of the nodes, those that need none."""
    if report.python is not None and tuple(map(int, report.python.split(".")[:2])) < MIN_PYTHON:
        needed = ".".join(map(str, MIN_PYTHON))
        return [CheckResult("Python", f"{report.python} on the cluster", "fail", f"use a cluster of Python {needed}")]
    results = [_check_access(report), *_check_ray(report)]
    if report.problem is not None:
        todo = "see the cluster's dashboard; on one of its machines, --address auto may say more"
        return [*results, CheckResult("nodes", report.problem, "fail", todo)]
    if report.nodes:
        results += _check_nodes(report)
    if report.answered:
        results += [*_check_python(report), *_check_torch(report, request), *_check_deelbo(report, request)]
        results += [*check_gpus(report, request), *check_places(report, request)]
    return results


def _check_access(report: ClusterReport) -> CheckResult:
    if report.token_mode == "token":  # noqa: S105 - a mode's name
        return CheckResult("access", f"{report.address} wants a token", "ok")
    if report.token_mode is None:
        return CheckResult("access", f"{report.address} does not say if it wants a token", "note")
    host = urlsplit(report.address).hostname if "://" in report.address else report.address.rpartition(":")[0]
    if all(is_loopback(address) for address in report.hosts or {host or ""}):
        return CheckResult("access", f"{report.address} wants no token, and listens on loopback", "ok")
    todo = "start the cluster with RAY_AUTH_MODE=token, or make sure that only you can reach it"
    found = f"{report.address} wants no token: everybody who can reach it can run code there"
    return CheckResult("access", found, "note", todo)


def _check_ray(report: ClusterReport) -> list[CheckResult]:
    """Compare Ray here and on the head; Ray itself refuses nodes of another version than the head's."""
    here, there = report.client["ray"], report.ray
    if there is None:
        return []
    found = f"{here} here, {there} on the cluster"
    if here == there:
        return [CheckResult("Ray", f"{there} here and on the cluster", "ok")]
    if minor_version(here) == minor_version(there):
        return [CheckResult("Ray", found, "note", f"`pip install ray=={there}` here if you see errors")]
    todo = f"`pip install 'ray[default,tune]=={there}'` here, or use another cluster"
    return [CheckResult("Ray", found, "fail", todo)]


def _check_nodes(report: ClusterReport) -> list[CheckResult]:
    todo = "see `ray status` and the node's logs, restart the node or remove it"
    ok = f"all {len(report.nodes)} answer; number of machines: {len(report.hosts)}"
    return report.check_each("nodes", report.nodes, lambda node: node["problem"], todo, ok)


def _check_python(report: ClusterReport) -> list[CheckResult]:
    here, nodes = report.client["python"], report.answered

    def problem(node: Node) -> str | None:
        same = minor_version(node["python"]) == minor_version(here)
        return None if same else f"{here} here, {node['python']}"

    todo = "use one minor version of Python here and on all nodes: Ray moves code between them"
    ok = f"{minor_version(here)} here and on {report.describe_nodes(nodes, nodes)}"
    return report.check_each("Python", nodes, problem, todo, ok)


def _check_torch(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Compare torch on the nodes of trials, which must be one build, and with the version here."""
    here, nodes = str(report.client["torch"]), report.used_nodes(request)
    differ = len({node["packages"].get("torch") for node in report.trial_nodes(request)}) > 1

    def problem(node: Node) -> str | None:
        there = node["packages"].get("torch") or "none"
        same = there == here if differ else there.partition("+")[0] == here.partition("+")[0]
        return None if same else f"{here} here, {there}"

    status: Status = "fail"
    if any(node["packages"].get("torch") is None for node in nodes):
        todo = "it comes with --install" if request.install else f"install torch {here} there, or let --install do it"
        status = "note" if request.install else "fail"
    elif differ:
        todo = "install one torch on all nodes, so that trials are comparable"
    else:
        todo, status = "each record names the version it was made with", "note"
    ok = f"{here} here and on {report.describe_nodes(nodes, nodes)}"
    return report.check_each("torch", nodes, problem, todo, ok, status)


def _check_deelbo(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    here, nodes = report.client["deelbo"], report.used_nodes(request)

    def problem(node: Node) -> str | None:
        missing = sorted(name for name, version in node["packages"].items() if version is None and name != "torch")
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        if node["deelbo"] != here:
            return f"{here} here, {node['deelbo'] or 'none'}"
        return f"{', '.join(missing[:5])}{more} missing" if missing else None

    if request.install:
        return [CheckResult("deelbo", "--install puts it on the nodes when the job starts", "note")]
    todo = f"install deelbo[bench,methods]=={here} there with its dependencies, or let --install or --from-source do it"
    origin = ", brought by --from-source" if request.from_source else ""
    ok = f"{here} here and on {report.describe_nodes(nodes, nodes)}{origin}"
    return report.check_each("deelbo", nodes, problem, todo, ok)
