"""Checks of a cluster: access, nodes, software, GPUs, storage, MLflow and data; pure functions of the report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from bench.config.plugins import plugin_modules
from bench.doctor.cluster_report import (
    THIS_MACHINE,
    CheckResult,
    ClusterReport,
    DoctorRequest,
    Node,
    check_each,
    describe_nodes,
)
from bench.ray_backend.capacity import ACCELERATOR, no_fit_message
from bench.utils.code import describe_module
from bench.utils.text import redact_url
from bench.utils.urls import local_folder

LOW_BYTES, FULL_BYTES = 5e9, 5e8
"""Free space below which a disk is worth a note, and below which it counts as full."""
SHARE = "give a folder that is mounted on every node, or a URL such as s3://BUCKET/FOLDER"
GRANT = "pass credentials that allow writing there with --env NAME; s3:// needs deelbo[bench,s3] on all nodes"
PREPARE = "run `deelbo-bench prepare CONFIG` there"
BRING = f"bring your own data there, as they are here; for others {PREPARE}"
MLFLOW_ADVICE = {
    401: "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, here: they go along",
    403: "start `mlflow server` with {host} among its --allowed-hosts, or give a user with access",
}


def check_cluster(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Run all checks in order; without an inspection of the nodes, those that need none."""
    results = [] if report.address == THIS_MACHINE else [_check_access(report), _check_ray(report)]
    if report.problem is not None:
        todo = "see the cluster's dashboard; on one of its machines, --address auto may say more"
        return [*results, CheckResult("nodes", report.problem, "fail", todo)]
    results += _check_nodes(report) if report.nodes else []
    if not report.answered:
        return results
    results += [*_check_python(report), *_check_torch(report, request), *_check_deelbo(report, request)]
    results += _check_plugins(report, request)
    results += [*_check_gpus(report, request), *_check_storage(report, request), _check_disk(report, request)]
    results += _check_mlflow(report, request)
    return results if request.benchmark is None else [*results, *_check_data(report, request), _check_weights(report)]


def _check_access(report: ClusterReport) -> CheckResult:
    if report.token_mode == "token":  # noqa: S105 - a mode's name
        return CheckResult("access", f"{report.address} wants a token", "ok")
    if report.nodes and all(node["ip"].startswith("127.") for node in report.nodes):
        return CheckResult("access", f"{report.address} wants no token, and listens on loopback", "ok")
    todo = "start the cluster with RAY_AUTH_MODE=token, or make sure that only you can reach it"
    found = f"{report.address} wants no token: everybody who can reach it can run code there"
    return CheckResult("access", found, "note", todo)


def _check_ray(report: ClusterReport) -> CheckResult:
    """Compare Ray here and on the head; Ray itself refuses nodes of another version than the head's."""
    here, there = report.client["ray"], report.ray
    if here == there:
        return CheckResult("Ray", f"{there} here and on the cluster", "ok")
    same_minor = minor_version(here) == minor_version(there)
    todo = f"`pip install 'ray[default,tune]=={there}'` here" + (" if you see errors" if same_minor else "")
    return CheckResult("Ray", f"{here} here, {there} on the cluster", "note" if same_minor else "fail", todo)


def minor_version(version: str | None) -> str:
    """Return ``2.60`` of ``2.60.1``."""
    return ".".join((version or "").split(".")[:2])


def _check_nodes(report: ClusterReport) -> list[CheckResult]:
    todo = "see `ray status` and the node's logs, restart the node or remove it"
    ok = f"all {len(report.nodes)} answer; number of machines: {len({node['ip'] for node in report.nodes})}"
    return check_each("nodes", report.nodes, lambda node: node["problem"], todo, ok)


def _check_python(report: ClusterReport) -> list[CheckResult]:
    here, nodes = report.client["python"], report.answered

    def problem(node: Node) -> str | None:
        same = minor_version(node["python"]) == minor_version(here)
        return None if same else f"{here} here, {node['python']}"

    todo = "use one minor version of Python here and on all nodes: Ray moves code between them"
    ok = f"{minor_version(here)} here and on {describe_nodes(nodes, nodes)}"
    return check_each("Python", nodes, problem, todo, ok)


def _check_torch(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Compare torch where it is installed: nodes of trials need one build; another one than here is worth a note."""
    here = str(report.client["torch"])
    nodes = [node for node in report.used_nodes(request) if node["torch"] is not None]
    differ = len({node["torch"] for node in nodes if request.trials_on(node)}) > 1

    def problem(node: Node) -> str | None:
        there = node["torch"]
        same = there == here if differ else there.partition("+")[0] == here.partition("+")[0]
        return None if same else f"{here} here, {there}"

    if differ:
        return check_each("torch", nodes, problem, "install one torch on all nodes, so that trials are comparable")
    todo, ok = "each record names the version it was made with", f"{here} here and on {describe_nodes(nodes, nodes)}"
    return check_each("torch", nodes, problem, todo, ok if nodes else None, "note")


def _check_deelbo(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Check deelbo, torch, and the packages of the benchmark's methods."""
    if request.install:
        return [CheckResult("deelbo", "--install puts it on the nodes when the job starts", "note")]
    here, nodes = report.client["deelbo"], report.used_nodes(request)
    own = report.client["code"]
    code = next((node["code"] for node in nodes if node["driver"] and node["code"] is not None), own)

    def problem(node: Node) -> str | None:
        if node["deelbo"] != here:
            return f"{here} here, {node['deelbo'] or 'none'}"
        missing = [*(["torch"] if node["torch"] is None else []), *node["missing"]]
        if missing:
            return f"{', '.join(missing)} missing"
        return (
            None if node["code"] == code else f"{here} whose code ({node['code']}) is not that of the driver ({code})"
        )

    todo = f"install deelbo[bench,methods]=={here} there, or let --install or --from-source do it"
    results = check_each("deelbo", nodes, problem, todo, f"{here} here and on {describe_nodes(nodes, nodes)}")
    if code != own and not request.from_source and all(result.status == "ok" for result in results):
        found = f"{here} here too, but its code is not the same ({own} here, {code} on the cluster)"
        return [CheckResult("deelbo", found, "note", "the cluster's runs; --from-source takes this one along")]
    return results


def _check_plugins(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Check that each plug-in of the benchmark is the same as here, and can be imported."""
    plugins = () if request.benchmark is None else plugin_modules(request.benchmark)
    bring = [CheckResult("plug-ins", "--install puts them on the nodes when the job starts", "note")]
    results = bring if request.install and any(distribution for _, distribution in plugins) else []
    here = {module: describe_module(module, name) for module, name in plugins if not (request.install and name)}
    if not here:
        return results
    nodes = report.used_nodes(request)

    def problem(node: Node) -> str | None:
        for module, own in here.items():
            facts = node["plugins"][module]
            if facts["found"] != own:
                return f"{module} {own} here, {facts['found']}"
            if facts["problem"] is not None:
                return f"{module} cannot be used ({facts['problem']})"
        return None

    todo = "install it there with the packages that it needs; --install and --from-source bring the plug-in itself"
    ok = f"{', '.join(f'{module} {own}' for module, own in here.items())} here and on {describe_nodes(nodes, nodes)}"
    return [*results, *check_each("plug-ins", nodes, problem, todo, ok)]


def _check_gpus(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Check the number of trials that fit at once, and the GPUs that they get."""
    nodes = report.trial_nodes(request)
    if nodes:
        return [_check_models(nodes, request), *_check_cuda(nodes, request), _check_room(nodes, request)]
    if report.driver.get("grows"):
        found = "no trial fits the present nodes; the autoscaler may start others, which are not checked"
        todo = "run `doctor` again when they are up, or see the first lines of `logs`"
        return [CheckResult("room", found, "note", todo)]
    found, _, todo = no_fit_message(request.resources, [node["resources"] for node in report.nodes]).rpartition(": ")
    return [CheckResult("room", found, "fail", todo)]


def _check_models(nodes: Sequence[Node], request: DoctorRequest) -> CheckResult:
    """Check that all GPUs that trials get are of one model."""
    counts = Counter(model for node in nodes for model in _gpu_models(node))
    found = ", ".join(f"{count} x {model}" for model, count in counts.most_common()) or "none"
    if len(counts) < 2 or not request.resources.gpus_per_trial:
        return CheckResult("GPUs", found, "ok")
    kinds = sorted(kind for node in nodes for kind in _accelerators(node))
    if kinds and any(kinds[0] not in _accelerators(node) for node in nodes):
        todo = f"pin one type, as by --set resources.accelerator={kinds[0]}"
    else:  # as A100s of 40 and 80 GiB
        todo = "Ray cannot tell these models apart: remove the nodes of all models but one"
    found = f"{found}: seconds cannot be compared"
    if request.benchmark is not None and request.benchmark.timed:
        return CheckResult("GPUs", found, "fail", f"{todo}, or --set timed=false")
    return CheckResult("GPUs", found, "note", todo)


def _accelerators(node: Node) -> list[str]:
    """Return Ray's name of a node's type of GPU, if it has one."""
    return [name.removeprefix(ACCELERATOR) for name in node["resources"] if name.startswith(ACCELERATOR)]


def _gpu_models(node: Node) -> list[str]:
    """Return the models of a node's GPUs: nvidia-smi's names, else Ray's type."""
    count = int(node["resources"].get("GPU", 0))
    return (node["devices"] or (_accelerators(node) or ["GPU"]) * count)[:count]


def _check_cuda(nodes: Sequence[Node], request: DoctorRequest) -> list[CheckResult]:
    """Check that torch, where it is installed, sees the GPUs; otherwise a trial would fail, or run on the CPU."""
    tested = [node for node in nodes if node["cuda"] is not None and node["torch"] is not None]
    if not request.resources.gpus_per_trial or not tested:
        return []
    todo = "install a torch whose CUDA that driver supports, or a newer driver"
    ok = f"torch uses the GPUs of {describe_nodes(tested, nodes)}"
    return check_each("CUDA", tested, lambda node: node["cuda"], todo, ok)


def _check_room(nodes: Sequence[Node], request: DoctorRequest) -> CheckResult:
    resources = request.resources
    fits = sum(request.trials_on(node) for node in nodes)
    found = f"{fits} trial{'s' * (fits != 1)} at once"
    if resources.slots is not None and resources.slots > fits:
        return CheckResult("room", f"{found}; slots = {resources.slots}", "note", "more run when more nodes join")
    return CheckResult("room", found, "ok")


def _check_storage(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Distinguish a storage that cannot be written, one that is not shared, and one that is."""
    if request.storage is None:
        if report.address == THIS_MACHINE:
            return []
        return [CheckResult("storage", "none given", "note", "give --storage, a URL or a folder that all nodes share")]
    url, folder = redact_url(request.storage), local_folder(request.storage)
    if folder is not None and not Path(folder).is_absolute():
        return [CheckResult("storage", f"{url} is relative to this machine, not to the nodes", "fail", SHARE)]
    nodes = report.used_nodes(request)
    used = {node["id"] for node in nodes}

    def problem(node: Node) -> str | None:
        storage = node["storage"]
        if storage["problem"] is not None:
            return f"{url} cannot be used ({storage['problem']})"
        unseen = used & set(storage["unseen"])
        return f"{url} is writable but not shared: files of other nodes are not seen" if unseen else None

    ok = f"{url} is writable on, and shared by, {describe_nodes(nodes, nodes)}"
    return check_each("storage", nodes, problem, SHARE if folder is not None else GRANT, ok)


def _check_disk(report: ClusterReport, request: DoctorRequest) -> CheckResult:
    """Check the free space for temporary files and in the storage, on the node that has least."""
    free = [(size, place, node) for node in report.used_nodes(request) for place, size in node["free"].items()]
    size, place, node = min(free, key=lambda entry: entry[0])
    if size >= LOW_BYTES:
        return CheckResult("disk", f"at least {LOW_BYTES / 1e9:.0f} GB free", "ok")
    found = f"{size / 1e9:.1f} GB free for {place} on {node['host']}"
    return CheckResult("disk", found, "fail" if size < FULL_BYTES else "note", "free some space there")


def _check_mlflow(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    if request.tracking is None:
        if request.storage is not None and local_folder(request.storage) is None:
            found = f"none: {redact_url(request.storage)} is not a directory, which could hold its database"
            return [CheckResult("MLflow", found, "fail", "give --tracking-uri")]
        return [CheckResult("MLflow", "a database in the storage", "ok")] if request.storage else []
    uri, answer = redact_url(request.tracking), report.driver.get("mlflow")
    if answer is None:
        return [CheckResult("MLflow", f"{uri} is not a server: not checked", "note")]
    if answer["problem"] is None:
        return [CheckResult("MLflow", f"{uri} accepts requests from the driver", "ok")]
    status = answer["status"]
    found = f"{uri} refuses the driver (status {status})" if status else f"{uri} cannot be reached from the driver"
    todo = MLFLOW_ADVICE.get(status, "check --tracking-uri, and that the driver's node, the head, can reach the server")
    todo = todo.format(host=urlsplit(request.tracking).netloc.rpartition("@")[2])
    return [CheckResult("MLflow", f"{found}: {answer['problem']}", "fail", todo)]


def _check_data(report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Check the datasets on the nodes that run trials; nodes without deelbo, which another check reports, read none."""
    able = [node for node in report.trial_nodes(request) if node["deelbo"] is not None]
    if not able:
        return [CheckResult("data", "not checked: no node that runs trials has deelbo yet", "note", "see `prepare`")]

    def problem(node: Node) -> str:
        return "; ".join(_without_advice(why) for why in node["data"].values() if why is not None)

    todo = "try again: the first read from a network disk is slow"
    results = check_each("data", able, lambda node: node["unread"], todo, status="note")
    if read := [node for node in able if not node["unread"]]:
        ok = f"{', '.join(sorted(read[0]['data']))} on {describe_nodes(read, able)}"
        results += check_each("data", read, problem, PREPARE if not read[0].get("examples") else BRING, ok)
        most = {name: max(node["examples"][name] or 0 for node in read) for name in read[0].get("examples", {})}
        results += check_each("data", read, lambda node: _find_fewer(node, most), "bring the same data to every node")
    return results


def _find_fewer(node: Node, most: Mapping[str, int]) -> str:
    """Return the datasets of the user's own of which a node has fewer examples than another."""
    found = {name: count for name, count in node.get("examples", {}).items() if count is not None}
    return "; ".join(f"{name} has {n} examples, {most[name]} elsewhere" for name, n in found.items() if n < most[name])


def _without_advice(problem: str) -> str:
    """Return a message of deelbo's without its own advice to run `prepare`."""
    return problem.partition(": run `")[0]


def _check_weights(report: ClusterReport) -> CheckResult:
    """Check the weight files, which the driver alone reads and sends to the workers through Ray."""
    weights = report.driver.get("weights") or {}
    if not weights:
        return CheckResult("weights", "none needed on the driver's node", "ok")
    if not any(node["driver"] and node["deelbo"] is not None for node in report.answered):
        return CheckResult("weights", "not checked: the driver's node has no deelbo yet", "note", "see `prepare`")
    missing = [f"{name}: {_without_advice(why)}" for name, why in weights.items() if why is not None]
    if missing:
        return CheckResult("weights", "; ".join(missing), "fail", f"{PREPARE}, or put the file there")
    return CheckResult("weights", f"{', '.join(weights)}, found", "ok")
