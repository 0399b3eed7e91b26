"""The checks of `doctor` on given reports, without any cluster."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cli.doctor import raise_first_failure
from bench.config.benchmark import Benchmark
from bench.config.loading import parse_benchmark
from bench.doctor.cluster_report import CheckResult, ClusterReport, DoctorRequest
from bench.doctor.software_checks import check_cluster
from bench.exceptions import ConfigError

HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.15.0", "deelbo": "0.1.0"}
PACKAGES = {"ray": HERE["ray"], "torch": HERE["torch"], "pandas": "2.2.0"}
SERVER = "http://mlflow:5000"
ENOUGH_BYTES = 9e10
LOST_WEIGHTS = {"backbone": "resnet50", "version": "IMAGENET1K_V1", "missing": "the weights are not at /x: run `...`"}


def node(number: int = 0, **changed: Any) -> dict[str, Any]:
    """Make a node that has everything; the first is the head, on which the driver runs."""
    facts = {
        "id": f"{number:06d}abcdef",
        "ip": f"10.0.0.{number}",
        "host": f"host{number}",
        "head": number == 0,
        "driver": number == 0,
        "cpus": 4.0,
        "gpus": 0.0,
        "accelerators": [],
        "problem": None,
        "python": HERE["python"],
        "deelbo": HERE["deelbo"],
        "packages": PACKAGES,
        "devices": [],
        "cuda": None,
        "data": {"CIFAR-10": None},
        "free": {"temporary files": ENOUGH_BYTES, "the storage": ENOUGH_BYTES},
        "storage": {"wrote": True, "why": None, "unseen": []},
    }
    return facts | changed


def gpu_node(number: int, name: str, kind: str | None, count: int = 1, **changed: Any) -> dict[str, Any]:
    """Make a node with GPUs that nvidia-smi and Ray know; without ``kind`` Ray has no name for their type."""
    devices = [{"name": name, "mib": "81559", "driver": "570.86"}] * count
    return node(number, gpus=float(count), accelerators=[kind] if kind else [], devices=devices, **changed)


def report_of(*nodes: dict[str, Any], **changed: Any) -> ClusterReport:
    """Make the report of a cluster of these nodes, or of three equal ones, that fits this machine."""
    mlflow = {"ok": True, "status": 200, "words": "", "version": "3.17.0"}
    facts: dict[str, Any] = {
        "address": "http://head:8265",
        "token_mode": "token",
        "ray": HERE["ray"],
        "client": HERE,
        "driver": {"mlflow": mlflow, "weights": [], "grows": False},
        "nodes": list(nodes or (node(i) for i in range(3))),
    }
    return ClusterReport(**(facts | changed))


@pytest.fixture
def request_of(content: dict[str, Any]) -> Any:
    """Makes a request for the tiny benchmark with other resources."""

    def make(timed: bool = True, install: bool = False, **resources: Any) -> DoctorRequest:
        benchmark = parse_benchmark(content | {"resources": resources, "timed": timed}, "tiny.yaml")
        return DoctorRequest(benchmark, install=install)

    return make


@pytest.fixture
def tiny_request(tiny: Benchmark) -> DoctorRequest:
    """The tiny benchmark with a storage and a server."""
    return DoctorRequest(tiny, "/shared/runs", SERVER)


def results_of(check: str, report: ClusterReport, request: DoctorRequest) -> list[CheckResult]:
    """Return the results of one check."""
    return [result for result in check_cluster(report, request) if result.check == check]


def result_of(check: str, report: ClusterReport, request: DoctorRequest) -> CheckResult:
    """Return the only result of a check."""
    (result,) = results_of(check, report, request)
    return result


def assert_failed(result: CheckResult, *parts: str) -> None:
    """Assert that a result is a failure with these parts and with advice."""
    assert result.status == "fail"
    assert result.todo
    for part in parts:
        assert part in result.describe()


def test_cluster_that_fits_passes_every_check(tiny_request: DoctorRequest) -> None:
    """On a cluster with everything, all checks are ok, in a fixed order and without advice."""
    results = check_cluster(report_of(), tiny_request)
    assert {(result.status, result.todo) for result in results} == {("ok", "")}
    names = "access Ray nodes Python torch deelbo GPUs room storage disk MLflow data weights"
    assert [result.check for result in results] == names.split()
    raise_first_failure(results)


@pytest.mark.parametrize(
    ("mode", "address", "ip", "status"),
    [
        ("token", "http://head:8265", "10.0.0.1", "ok"),
        ("disabled", "http://head:8265", "10.0.0.1", "note"),
        ("disabled", "http://127.0.0.1:8265", "10.0.0.1", "note"),
        ("disabled", "http://127.0.0.1:8265", "127.0.0.1", "ok"),
        (None, "http://head:8265", "10.0.0.1", "note"),
    ],
)
def test_access(mode: str, address: str, ip: str, status: str, tiny_request: DoctorRequest) -> None:
    """A cluster that needs no token is worth a note, unless all its nodes are on loopback."""
    report = report_of(node(ip=ip), token_mode=mode, address=address)
    assert result_of("access", report, tiny_request).status == status


@pytest.mark.parametrize(("there", "status"), [("2.60.0", "ok"), ("2.60.3", "note"), ("2.50.0", "fail")])
def test_versions_of_ray(there: str, status: str, tiny_request: DoctorRequest) -> None:
    """Another patch version is a note, another minor version a failure; both name the one to install."""
    result = result_of("Ray", report_of(ray=there), tiny_request)
    assert result.status == status
    assert status == "ok" or f"=={there}" in result.todo


def test_cluster_of_another_ray_is_not_inspected(tiny_request: DoctorRequest) -> None:
    """Without facts about nodes, the checks that need none are done."""
    results = check_cluster(ClusterReport("http://head:8265", "token", "2.9.0", HERE), tiny_request)
    assert [result.check for result in results] == ["access", "Ray"]
    assert_failed(results[1], "2.60.0 here, 2.9.0 on the cluster")


@pytest.mark.parametrize(("python", "first"), [("3.10.14", "Python"), ("3.11.9", "access")])
def test_unsupported_python_is_the_first_result(python: str, first: str, tiny_request: DoctorRequest) -> None:
    """A Python that this package does not support fails before everything else, and alone."""
    report = ClusterReport("http://head:8265", "token", "2.60.0", HERE, problem="Python is too old", python=python)
    results = check_cluster(report, tiny_request)
    assert results[0].check == first
    if first == "Python":
        assert_failed(results[0], "3.10.14 on the cluster: use a cluster of Python 3.11")
        assert len(results) == 1


@pytest.mark.parametrize(
    ("versions", "failed"),
    [(["3.11.9"], None), (["3.12.1"], "3.12.1 on host0"), (["3.11.7", "3.10.2"], "3.10.2 on 1 of 2 nodes (host1)")],
)
def test_versions_of_python(versions: list[str], failed: str | None, tiny_request: DoctorRequest) -> None:
    """A node with another minor version than this machine's fails, and is named; a patch version does not matter."""
    report = report_of(*(node(i, python=version) for i, version in enumerate(versions)))
    result = result_of("Python", report, tiny_request)
    if failed is None:
        assert result.status == "ok"
    else:
        assert_failed(result, f"3.11.7 here, {failed}")


@pytest.mark.parametrize(
    ("head_cpus", "versions", "status", "found"),
    [
        (4.0, ["2.15.0", "2.14.1+cu126"], "fail", "2.14.1+cu126 on 1 of 2 nodes (host1)"),
        (4.0, ["2.14.1+cu126"], "note", "2.15.0 here, 2.14.1+cu126 on host0"),
        (4.0, ["2.15.0+cu126"], "ok", "2.15.0"),
        (0.0, ["2.15.0", "2.15.0+cu126"], "ok", "2.15.0"),
        (4.0, ["2.15.0", None], "fail", "none on 1 of 2 nodes (host1)"),
    ],
)
def test_versions_of_torch(
    head_cpus: float, versions: list[str | None], status: str, found: str, tiny_request: DoctorRequest
) -> None:
    """Nodes that run trials need one torch; if all differ from this machine's version, that is a note."""
    nodes = [node(i, packages=PACKAGES | {"torch": version}) for i, version in enumerate(versions)]
    result = result_of("torch", report_of(nodes[0] | {"cpus": head_cpus}, *nodes[1:]), tiny_request)
    assert result.status == status
    assert found in result.found


def test_missing_and_other_versions_of_deelbo(tiny_request: DoctorRequest, tiny: Benchmark) -> None:
    """A node without deelbo, with another version, or without a dependency fails, unless the job installs it."""
    nodes = node(0), node(1, deelbo=None), node(2, deelbo="0.0.9"), node(3, packages=PACKAGES | {"pandas": None})
    report = report_of(*nodes)
    results = results_of("deelbo", report, tiny_request)
    assert_failed(results[0], "0.1.0 here, none on 1 of 4 nodes (host1)", "--from-source")
    assert_failed(results[1], "0.1.0 here, 0.0.9 on 1 of 4 nodes (host2)")
    assert_failed(results[2], "pandas missing on 1 of 4 nodes (host3)")
    assert result_of("deelbo", report, DoctorRequest(tiny, install=True)).status == "note"
    assert "--from-source" in result_of("deelbo", report_of(), DoctorRequest(tiny, from_source=True)).found


def test_missing_gpus(request_of: Any) -> None:
    """Trials that take a GPU fail on a cluster without, unless an autoscaler may start nodes."""
    request = request_of(gpus_per_trial=1)
    assert_failed(result_of("GPUs", report_of(), request), "none, and each trial takes 1")
    assert results_of("room", report_of(), request) == []
    elastic = report_of(node(), driver={"grows": True})
    assert "not up yet" in result_of("GPUs", elastic, request).found
    assert "fail" not in {result.status for result in check_cluster(elastic, request)}


@pytest.mark.parametrize(("num_nodes", "slots", "status"), [(1, 2, "note"), (1, None, "fail"), (2, 2, "fail")])
def test_cluster_that_may_grow(num_nodes: int, slots: int | None, status: str, request_of: Any) -> None:
    """If Ray does not say whether nodes may join, a head alone counts as elastic when slots are given."""
    report = report_of(*(node(i) for i in range(num_nodes)), driver={"grows": None})
    assert result_of("GPUs", report, request_of(gpus_per_trial=1, slots=slots)).status == status


def test_gpus_unknown_to_ray(request_of: Any) -> None:
    """A GPU that nvidia-smi lists and Ray does not is distinguished from a missing one."""
    device = [{"name": "NVIDIA H100", "mib": "81559", "driver": "570.86"}]
    result = result_of("GPUs", report_of(node(devices=device)), request_of(gpus_per_trial=1))
    assert_failed(result, "NVIDIA H100 (80 GiB)", "--num-gpus")


def test_gpus_of_two_models(request_of: Any) -> None:
    """Timed trials on two models fail unless one is pinned; for other trials that is a note."""
    mixed = report_of(gpu_node(0, "NVIDIA H100", "H100", 2), gpu_node(1, "NVIDIA A100", "A100"))
    result = result_of("GPUs", mixed, request_of(gpus_per_trial=1))
    assert_failed(result, "2 x NVIDIA H100 (80 GiB), 1 x NVIDIA A100", "resources.accelerator=H100")
    assert result_of("GPUs", mixed, request_of(timed=False, gpus_per_trial=1)).status == "note"
    pinned = request_of(gpus_per_trial=1, accelerator="H100")
    assert result_of("GPUs", mixed, pinned).found.startswith("2 x NVIDIA H100")
    assert "2 trials at once" in result_of("room", mixed, pinned).found
    assert_failed(result_of("GPUs", mixed, request_of(gpus_per_trial=1, accelerator="L4")), "accelerator = L4")


@pytest.mark.parametrize("kind", ["A100", None])
@pytest.mark.parametrize("timed", [True, False])
def test_models_that_ray_cannot_distinguish(kind: str | None, timed: bool, request_of: Any) -> None:
    """Two models of one type, or of none, cannot be selected by a type, and none is advised."""
    mixed = report_of(gpu_node(0, "A100-SXM4-40GB", kind), gpu_node(1, "A100-SXM4-80GB", kind))
    result = result_of("GPUs", mixed, request_of(timed=timed, gpus_per_trial=1))
    assert result.status == ("fail" if timed else "note")
    assert "resources.accelerator" not in result.todo
    assert "cannot tell these models apart" in result.todo
    assert ("--set timed=false" in result.todo) is timed


def test_type_is_pinned_beside_a_model_without_type(request_of: Any) -> None:
    """A model that Ray has a name for can be selected, although it has none for the other."""
    mixed = report_of(gpu_node(0, "NVIDIA X", None), gpu_node(1, "NVIDIA H100", "H100"))
    assert_failed(result_of("GPUs", mixed, request_of(gpus_per_trial=1)), "resources.accelerator=H100")


def test_unused_gpus_are_a_note(request_of: Any) -> None:
    """GPUs that trials do not take are worth a note."""
    report = report_of(gpu_node(0, "NVIDIA H100", "H100"))
    assert "trials take none" in result_of("GPUs", report, request_of()).found


@pytest.mark.parametrize(
    ("cuda", "torch", "install", "status"),
    [
        ("torch is built for CUDA 13", "2.15.0", False, "fail"),
        ("torch cannot be imported", None, True, "note"),
        ("torch cannot be imported", None, False, "fail"),
        ("torch is built for CPUs alone", "2.15.0", True, "fail"),
        ("", "2.15.0", False, "ok"),
    ],
)
def test_torch_that_sees_no_gpu(cuda: str, torch: str | None, install: bool, status: str, request_of: Any) -> None:
    """A torch that cannot use its node's GPU fails; one that --install will bring is a note."""
    lacking = gpu_node(1, "NVIDIA H100", "H100", cuda=cuda, packages=PACKAGES | {"torch": torch})
    report = report_of(gpu_node(0, "NVIDIA H100", "H100", cuda=""), lacking)
    result = result_of("CUDA", report, request_of(gpus_per_trial=1, install=install))
    assert result.status == status
    assert status == "ok" or "1 of 2 nodes (host1)" in result.found


def test_room_for_trials(request_of: Any) -> None:
    """Trials are counted node by node; none is a failure, fewer than requested a note."""
    report = report_of(node(0, cpus=3.0), node(1, cpus=3.0))
    assert "2 trials at once" in result_of("room", report, request_of(cpus_per_trial=2)).found
    assert result_of("room", report, request_of(cpus_per_trial=2, slots=3)).status == "note"
    assert_failed(result_of("room", report, request_of(cpus_per_trial=4)), "0 trials at once")


@pytest.mark.parametrize(
    ("why", "todo"),
    [
        ("PermissionError: [Errno 13] Permission denied: '/shared'", "mounted on every node"),
        ("NotADirectoryError: [Errno 20] Not a directory: '/shared'", "a file has that name"),
    ],
)
def test_storage_that_cannot_be_written(why: str, todo: str, tiny_request: DoctorRequest) -> None:
    """A storage that one node cannot write fails with that node's error."""
    report = report_of(node(0), node(1, storage={"wrote": False, "why": why}))
    assert_failed(result_of("storage", report, tiny_request), f"({why}) on 1 of 2 nodes (host1)", todo)


def test_storage_that_is_not_shared(tiny_request: DoctorRequest) -> None:
    """A folder that each node has for itself is writable but not shared; a node that misses files is named."""
    ids = [node(i)["id"] for i in range(3)]
    apart = [node(i, storage={"wrote": True, "unseen": [other for other in ids if other != ids[i]]}) for i in range(3)]
    assert_failed(result_of("storage", report_of(*apart), tiny_request), "writable but not shared", "on all 3 nodes")
    some = [node(i, storage={"wrote": True, "unseen": [ids[2]] if i == 1 else []}) for i in range(3)]
    assert_failed(result_of("storage", report_of(*some), tiny_request), "not seen on 1 of 3 nodes (host1)")


def test_unused_node_needs_nothing(tiny_request: DoctorRequest) -> None:
    """A node on which neither a trial nor the driver runs needs no storage, data or deelbo."""
    idle = node(2, cpus=0.0, deelbo=None, data={"CIFAR-10": "missing"}, storage={"wrote": False, "why": "no"})
    assert {result.status for result in check_cluster(report_of(node(0), node(1), idle), tiny_request)} == {"ok"}


def test_storage_that_is_missing_or_relative(tiny: Benchmark) -> None:
    """A relative path means another folder on each node, and fails; no storage is a note."""
    assert_failed(result_of("storage", report_of(), DoctorRequest(tiny, "runs/x", SERVER)), "runs/x is relative")
    assert result_of("storage", report_of(), DoctorRequest(tiny)).status == "note"


@pytest.mark.parametrize(("free", "status"), [(6e9, "ok"), (4e9, "note"), (4e8, "fail")])
def test_free_disk_space(free: float, status: str, tiny_request: DoctorRequest) -> None:
    """Less than 5 GB on a node is a note, less than 0.5 GB a failure."""
    result = result_of("disk", report_of(node(0), node(1, free={"temporary files": free})), tiny_request)
    assert result.status == status
    assert status == "ok" or f"{free / 1e9} GB free for temporary files on 1 of 2 nodes (host1)" in result.found


@pytest.mark.parametrize(
    ("uri", "status", "message", "todo"),
    [
        (SERVER, 403, "Invalid Host header", "mlflow:5000 among its --allowed-hosts"),
        (SERVER, 401, "You are not authenticated", "MLFLOW_TRACKING_PASSWORD"),
        (SERVER, None, "[Errno 111] Connection refused", "check --tracking-uri"),
        ("http://127.0.0.1:5000", None, "[Errno 111]", "on the machine where the driver runs"),
        ("http://127.0.0.1:5000", 403, "Invalid Host header", "--allowed-hosts"),
    ],
)
def test_mlflow_that_refuses(uri: str, status: int | None, message: str, todo: str, tiny: Benchmark) -> None:
    """An MLflow server that accepts nothing fails with its message and advice for it."""
    refused = report_of(driver={"mlflow": {"ok": False, "status": status, "words": message}})
    assert_failed(result_of("MLflow", refused, DoctorRequest(tiny, "/shared/runs", uri)), message, todo)


def test_mlflow_on_loopback_is_sufficient(tiny: Benchmark) -> None:
    """Only the driver uses MLflow, so a loopback address is fine if the server answers there."""
    result = result_of("MLflow", report_of(), DoctorRequest(tiny, "/shared/runs", "http://127.0.0.1:5000"))
    assert (result.status, result.todo) == ("ok", "")
    assert "accepts requests from the driver, on the loopback of its machine" in result.found
    assert "loopback" not in result_of("MLflow", report_of(), DoctorRequest(tiny, "/shared/runs", SERVER)).found


def test_mlflow_database_needs_a_directory(tiny: Benchmark) -> None:
    """Without --tracking-uri MLflow's database is in the storage, which must be a directory."""
    assert result_of("MLflow", report_of(), DoctorRequest(tiny, "/shared/runs")).status == "ok"
    assert_failed(result_of("MLflow", report_of(), DoctorRequest(tiny, "s3://bucket/runs")), "give --tracking-uri")


def test_results_contain_no_passwords(tiny: Benchmark) -> None:
    """No result contains the password of a URI."""
    request = DoctorRequest(tiny, "s3://key:hush@bucket/runs", "http://me:hush@mlflow:5000")
    refused = report_of(driver={"mlflow": {"ok": False, "status": 401, "words": ""}})
    assert "hush" not in " ".join(result.describe() for result in check_cluster(refused, request))


def test_missing_data(tiny_request: DoctorRequest) -> None:
    """Nodes that lack a dataset share one row, with the error and one piece of advice; other nodes are ok."""
    lack = {"CIFAR-10": "CIFAR-10 was not found: /data has no folder cifar-10-batches-py: run `deelbo-bench prepare"}
    missing, complete = results_of("data", report_of(node(0), node(1, data=lack), node(2, data=lack)), tiny_request)
    assert_failed(missing, "on 2 of 3 nodes (host1, host2)", "run `deelbo-bench prepare CONFIG` there")
    assert missing.describe().count("run `") == 1
    assert (complete.status, complete.found) == ("ok", "CIFAR-10 on 1 of 3 nodes (host0)")


@pytest.mark.parametrize(("late", "status"), [(True, "note"), (False, "fail")])
def test_data_that_take_long_to_read(late: bool, status: str, tiny_request: DoctorRequest) -> None:
    """A node that is still reading its data is a note, one that failed to read is a failure; both have answered."""
    slow = node(1, data={}, unread={"problem": "no answer in 90 s", "late": late})
    report = report_of(node(0), slow, node(2))
    assert result_of("nodes", report, tiny_request).status == "ok"
    reading, complete = results_of("data", report, tiny_request)
    assert (reading.status, complete.status) == (status, "ok")
    assert reading.found == "not read (no answer in 90 s) on 1 of 3 nodes (host1)"
    assert reading.todo
    assert "CIFAR-10 on 2 of 3 nodes (host0, host2)" in complete.found


@pytest.mark.parametrize(("here", "place"), [(False, "where the driver runs"), (True, "on this machine")])
def test_missing_weights(here: bool, place: str, tiny_request: DoctorRequest) -> None:
    """Weights that the driver, or this machine, lacks are a failure; other nodes need none."""
    result = result_of("weights", report_of(driver={"weights": [LOST_WEIGHTS | {"here": here}]}), tiny_request)
    assert_failed(result, f"resnet50, {place}: the weights are not at /x", "prepare CONFIG")


def test_checks_that_need_deelbo(tiny: Benchmark) -> None:
    """If --install brings deelbo later, data and weights are not checked, which is a note."""
    lost = LOST_WEIGHTS | {"missing": "No module named 'deelbo'"}
    bare = node(deelbo=None, data={"CIFAR-10": "No module named 'deelbo'"})
    results = check_cluster(report_of(bare, driver={"weights": [lost]}), DoctorRequest(tiny, "/shared", install=True))
    assert {result.check for result in results if result.status == "note"} == {"deelbo", "data", "weights"}
    assert "fail" not in {result.status for result in results}


def test_node_that_does_not_answer(tiny_request: DoctorRequest) -> None:
    """A silent node fails by its name, and the others are checked."""
    silent = node(1) | {"problem": "no answer in 90 s"}
    for key in ("python", "packages", "devices", "storage"):
        del silent[key]
    results = check_cluster(report_of(node(0), silent, node(2)), tiny_request)
    (nodes,) = (result for result in results if result.check == "nodes")
    assert_failed(nodes, "no answer in 90 s on 1 of 3 nodes (host1)")
    assert {result.check for result in results} >= {"torch", "storage", "data"}


def test_inspection_that_fails(tiny_request: DoctorRequest) -> None:
    """If the job on the cluster printed no results, the way it ended is the failure."""
    report = ClusterReport("http://head:8265", "token", "2.60.0", HERE, problem="a small job ended with 2")
    assert_failed(check_cluster(report, tiny_request)[-1], "a small job ended with 2")


def test_many_different_nodes_need_few_rows(tiny_request: DoctorRequest) -> None:
    """However many nodes have different problems, a check has at most three rows of one line each."""
    nodes = [
        node(
            i,
            data={"CIFAR-10": f"damaged at {i}"},
            storage={"wrote": False, "why": f"error {i}"},
            packages=PACKAGES | {"torch": f"2.{i}.0"},
        )
        for i in range(100)
    ]
    results = check_cluster(report_of(*nodes), tiny_request)
    for check in {result.check for result in results}:
        rows = [result for result in results if result.check == check]
        assert len(rows) <= 3
        assert all(len(result.describe()) < 500 for result in rows)
    assert "97 other problems" in results_of("data", report_of(*nodes), tiny_request)[-1].found


def test_nodes_of_one_host_are_distinguished(tiny_request: DoctorRequest) -> None:
    """Nodes whose hosts have the same name get a part of their id."""
    twins = report_of(node(0, host="box"), node(1, host="box", python="3.12.0"))
    assert "1 of 2 nodes (box/000001)" in result_of("Python", twins, tiny_request).found


def test_first_failure_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    """The first failure is raised as one line; notes and other failures are printed."""
    results = [
        CheckResult("Ray", "2.60.0 here and there", "ok"),
        CheckResult("access", "no token", "note", "start it with one"),
        CheckResult("GPUs", "none,\nand each trial takes 1", "fail", "start nodes with GPUs"),
        CheckResult("data", "not there", "fail", "prepare"),
    ]
    with pytest.raises(ConfigError, match=r"^GPUs: none, and each trial takes 1: start nodes with GPUs$"):
        raise_first_failure(results)
    assert capsys.readouterr().out.splitlines() == [
        "note  access: no token: start it with one",
        "fail  data: not there: prepare",
    ]
