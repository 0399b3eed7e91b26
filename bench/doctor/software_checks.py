"""Whether what `doctor` found will do: pure functions of the facts. First the cluster and its software."""

from __future__ import annotations

from urllib.parse import urlsplit

from bench.doctor.cluster_report import Asked, Facts, Finding, complaints, grouped, is_loopback, minor, spread, where
from bench.doctor.gpu_checks import judge_gpus
from bench.doctor.storage_checks import judge_places

__all__ = ["judge"]


def judge(facts: Facts, asked: Asked) -> list[Finding]:
    """Every check in order; where the cluster cannot be looked at, only those that need no look."""
    findings = [_token(facts)]
    findings += _ray(facts)
    if facts.problem is not None:
        trouble = "see the cluster's dashboard; on one of its machines, --address auto may say more"
        return [*findings, Finding("nodes", facts.problem, "fail", trouble)]
    if not facts.nodes:
        return findings
    findings += _nodes(facts)
    if facts.answered:
        findings += [_python(facts), _torch(facts, asked), _deelbo(facts, asked)]
        findings += judge_gpus(facts, asked)
        findings += judge_places(facts, asked)
    return findings


def _token(facts: Facts) -> Finding:
    if facts.token_mode == "token":  # noqa: S105 - a mode's name
        return Finding("access", f"{facts.address} wants a token", "ok")
    if facts.token_mode is None:
        return Finding("access", f"{facts.address} does not say whether it wants a token", "note")
    host = urlsplit(facts.address).hostname if "://" in facts.address else facts.address.rpartition(":")[0]
    alone = is_loopback(host) if not facts.nodes else all(is_loopback(ip) for ip in facts.hosts)
    if alone:
        return Finding("access", f"{facts.address} wants no token, and listens on loopback", "ok")
    return Finding(
        "access",
        f"{facts.address} wants no token: whoever reaches it can run code there",
        "note",
        "start the cluster with RAY_AUTH_MODE=token, or see that only you reach it",
    )


def _ray(facts: Facts) -> list[Finding]:
    """Here against the head; nodes of other versions than the head's are not let in by Ray."""
    here, there = facts.client["ray"], facts.ray
    if there is None:
        versions = [node["packages"].get("ray") for node in facts.answered if node["driver"]]
        there = versions[0] if versions else None
    if there is None:
        return []
    if here == there:
        return [Finding("Ray", f"{there} here and there", "ok")]
    found = f"{here} here, {there} on the cluster"
    if minor(here) == minor(there):
        return [Finding("Ray", found, "note", f"`pip install ray=={there}` here where something is odd")]
    return [Finding("Ray", found, "fail", f"`pip install 'ray[default,tune]=={there}'` here, or another cluster")]


def _nodes(facts: Facts) -> list[Finding]:
    silent = [node for node in facts.nodes if node["problem"] is not None]
    if not silent:
        hosts = f" on {len(facts.hosts)} machines" if len(facts.hosts) > 1 else ""
        return [Finding("nodes", f"all {len(facts.nodes)} answer{hosts}" if hosts else _few(facts), "ok")]
    findings = []
    for problem, some in complaints(silent, lambda node: node["problem"]).items():
        found = f"{where(facts, some, facts.nodes)}: {problem}"
        findings.append(Finding("nodes", found, "fail", "see `ray status` and its logs, restart it or take it out"))
    return findings


def _few(facts: Facts) -> str:
    return "the one node answers" if len(facts.nodes) == 1 else f"all {len(facts.nodes)} answer, on one machine"


def _python(facts: Facts) -> Finding:
    here, nodes = facts.client["python"], facts.answered
    found = spread(facts, nodes, lambda node: node["python"])
    versions = {minor(node["python"]) for node in nodes}
    if len(versions) > 1:
        return Finding("Python", found, "fail", "start all nodes with one Python: Ray moves code between them")
    if versions != {minor(here)}:
        (there,) = versions
        return Finding("Python", f"{here} here, {found}", "fail", f"use Python {there} here, or another cluster")
    return Finding("Python", f"{here} here, {found}", "ok")


def _torch(facts: Facts, asked: Asked) -> Finding:
    here, nodes = facts.client["torch"], facts.concerned(asked)
    found = spread(facts, nodes, lambda node: node["packages"].get("torch"))
    without = [node for node in nodes if node["packages"].get("torch") is None]
    if without and asked.install:
        return Finding("torch", found, "note", "it comes with --install")
    if without:
        return Finding("torch", found, "fail", f"install torch {here} there, or let --install do it")
    versions = {node["packages"]["torch"] for node in facts.for_trials(asked)}
    if len(versions) > 1:
        return Finding("torch", found, "fail", "install one torch on all nodes: trials on two are no fair race")
    others = {node["packages"]["torch"].partition("+")[0] for node in nodes} - {str(here).partition("+")[0]}
    if others:
        return Finding("torch", f"{here} here, {found}", "note", "records name the version they were made with")
    return Finding("torch", found, "ok")


def _deelbo(facts: Facts, asked: Asked) -> Finding:
    here, nodes = facts.client["deelbo"], facts.concerned(asked)
    found = spread(facts, nodes, lambda node: node["deelbo"])
    if asked.install:
        return Finding("deelbo", found, "note", "--install puts it there when the job starts")
    lacking = grouped(nodes, lambda node: tuple(sorted(k for k, v in node["packages"].items() if v is None)))
    missing = sorted({package for packages in lacking for package in packages if package not in ("torch", "ray")})
    if any(node["deelbo"] != here for node in nodes):
        what = f"install deelbo[bench,methods]=={here} there, or let --install or --from-source bring it"
        return Finding("deelbo", f"{here} here, {found}", "fail", what)
    if missing:
        some = [node for packages, those in lacking.items() if set(packages) & set(missing) for node in those]
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        what = f"install deelbo[bench,methods]=={here} there with all it needs, or let --install do it"
        return Finding("deelbo", f"{names} missing on {where(facts, some, nodes)}", "fail", what)
    return Finding("deelbo", f"{found}{', brought by --from-source' if asked.from_source else ''}", "ok")
