"""Checks of storage, disk space, MLflow, datasets and weights."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from bench.doctor.cluster_report import CheckResult, ClusterReport, DoctorRequest, Node, is_loopback
from bench.utils.text import redact_url
from bench.utils.urls import local_folder

__all__ = ["check_places"]


LOW_BYTES, FULL_BYTES = 5e9, 5e8
"""Free space below which a disk is worth a note, and below which it counts as full."""
SHARE = "give a folder that is mounted on every node, or a URL such as s3://BUCKET/FOLDER"
PREPARE = "run `deelbo-bench prepare CONFIG` there"
MLFLOW_ADVICE = {
    401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, here: they go along",
    403: "start `mlflow server` with {host} among its --allowed-hosts, or give a user with access",
}


def check_places(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Check the storage, free disk space, MLflow, the datasets and the weights, in this order."""
    results = [*_check_storage(report, request), *_check_disk(report, request), *_check_mlflow(report, request)]
    if request.benchmark is not None:
        results += [*_check_data(report, request), *_check_weights(report)]
    return results


def _check_storage(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Distinguish a storage that cannot be written, one that is not shared, and one that is."""
    if request.storage is None:
        return [CheckResult("storage", "none given", "note", "give --storage, a URL or a folder that all nodes share")]
    url, folder = redact_url(request.storage), local_folder(request.storage)
    if folder is not None and not Path(folder).is_absolute():
        return [CheckResult("storage", f"{url} is relative to this machine, not to the nodes", "fail", SHARE)]
    nodes = [node for node in report.used_nodes(request) if "storage" in node]
    used = {node["id"] for node in nodes}

    def problem(node: Node) -> str | None:
        storage = node["storage"]
        if not storage["wrote"]:
            return f"{url} is not writable ({storage['why']})"
        if "unseen" not in storage:
            return f"{url} was written, then gave no answer ({storage['problem']})"
        unseen = used & set(storage["unseen"])
        return f"{url} is writable but not shared: files of other nodes are not seen" if unseen else None

    ok = f"{url} is writable on, and shared by, {report.describe_nodes(nodes, nodes)}" if nodes else None
    return report.check_each("storage", nodes, problem, lambda why: _advise_on_storage(url, why), ok)


def _advise_on_storage(url: str, problem: str) -> str:
    if local_folder(url) is not None:
        is_file = "FileExistsError" in problem or "NotADirectoryError" in problem
        return "a file has that name: give a folder" if is_file else SHARE
    if "ImportError" in problem or "ModuleNotFoundError" in problem:
        return f"install {'deelbo[bench,s3]' if url.startswith(('s3://', 's3a://')) else 'that package'} on every node"
    return "pass the credentials with --env NAME, and check that they allow writing there"


def _check_disk(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Check the free space for temporary files and in the storage."""

    def low(node: Node, limit: float) -> str:
        free = {place: count for place, count in node["free"].items() if count is not None and count < limit}
        return ", ".join(f"{count / 1e9:.1f} GB free for {place}" for place, count in free.items())

    nodes, todo, ok = report.used_nodes(request), "free some space there", f"at least {LOW_BYTES / 1e9:.0f} GB free"
    full = report.check_each("disk", nodes, lambda node: low(node, FULL_BYTES), todo)
    return full or report.check_each("disk", nodes, lambda node: low(node, LOW_BYTES), todo, ok, "note")


def _check_mlflow(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    if request.tracking is None:
        if request.storage is not None and local_folder(request.storage) is None:
            found = f"none: {redact_url(request.storage)} is not a directory, which could hold its database"
            return [CheckResult("MLflow", found, "fail", "give --tracking-uri")]
        return [CheckResult("MLflow", "a database in the storage", "ok")] if request.storage else []
    uri, parts, answer = redact_url(request.tracking), urlsplit(request.tracking), report.driver.get("mlflow")
    if answer is None:
        return [CheckResult("MLflow", f"{uri} was not checked", "note")]
    loopback = is_loopback(parts.hostname)
    if answer["ok"]:  # on loopback too, as only the driver uses it
        version = f" (MLflow {answer['version']})" if answer.get("version") else ""
        place = ", on the loopback of its machine" if loopback else ""
        return [CheckResult("MLflow", f"{uri} accepts requests from the driver{place}{version}", "ok")]
    status = answer["status"]
    found = f"{uri} refuses the driver (status {status})" if status else f"{uri} cannot be reached from the driver"
    if status in MLFLOW_ADVICE:
        todo = MLFLOW_ADVICE[status].format(host=parts.netloc.rpartition("@")[2])
    elif loopback:
        todo = "start the server on the machine where the driver runs, or give another address"
    else:
        todo = "check --tracking-uri, and that the cluster's head can reach the server"
    return [CheckResult("MLflow", f"{found}: {answer['words'] or 'no message'}", "fail", todo)]


def _check_data(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Check the datasets on the nodes that run trials; nodes without deelbo, which another check reports, read none."""
    able = [node for node in report.trial_nodes(request) if node["deelbo"] is not None]
    if not able:
        return [CheckResult("data", "not checked: no node that runs trials has deelbo yet", "note", "see `prepare`")]

    def unread(node: Node, late: bool) -> str | None:
        problem = node.get("unread")
        return f"not read ({problem['problem']})" if problem and problem["late"] is late else None

    def problem(node: Node) -> str | None:
        problems = [_without_advice(why) for why in node["data"].values() if why is not None]
        return "; ".join(problems) or unread(node, late=False)

    todo = "try again: the first read from a network disk is slow"
    results = report.check_each("data", able, lambda node: unread(node, late=True), todo, status="note")
    results += report.check_each("data", able, problem, PREPARE)
    complete = [node for node in able if not node.get("unread") and problem(node) is None]
    if complete:
        datasets = ", ".join(sorted(complete[0]["data"]))
        results.append(CheckResult("data", f"{datasets} on {report.describe_nodes(complete, able)}", "ok"))
    return results


def _without_advice(problem: str) -> str:
    """Return a message of deelbo's without its own advice to run `prepare`."""
    return problem.partition(": run `")[0]


def _check_weights(report: ClusterReport) -> list[CheckResult]:
    """Check the weight files, which the driver alone reads and sends to the workers through Ray."""
    files = report.driver.get("weights") or []
    if not files:
        return [CheckResult("weights", "none needed: the driver pretrains the backbone", "ok")]
    if not any(node["driver"] and node["deelbo"] is not None for node in report.answered):
        return [CheckResult("weights", "not checked: the driver's node has no deelbo yet", "note", "see `prepare`")]
    results = []
    for file in files:
        if file["missing"] is not None:
            place = "on this machine" if file.get("here") else "where the driver runs"
            todo = PREPARE if "version" in file else "put it there, or name another"
            found = f"{file['backbone']}, {place}: {_without_advice(file['missing'])}"
            results.append(CheckResult("weights", found, "fail", todo))
    complete = sorted({file["backbone"] for file in files if file["missing"] is None})
    return results + [CheckResult("weights", f"{', '.join(complete)}, found", "ok")] * bool(complete)
