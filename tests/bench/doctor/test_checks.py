"""The checks of `doctor` on given reports, without any cluster."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cli.doctor import raise_first_failure
from bench.config.benchmark import Benchmark
from bench.config.loading import parse_benchmark
from bench.doctor.checks import check_cluster
from bench.doctor.cluster_report import CheckResult, ClusterReport, DoctorRequest
from bench.exceptions import ConfigError
from bench.utils.code import describe_module

HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.15.0", "deelbo": "0.1.0", "code": "abc"}
SERVER = "http://mlflow:5000"
ENOUGH_BYTES = 9e10
LOST_WEIGHTS = {"resnet50 IMAGENET1K_V1": "the weights are not at /x: run `...`"}


def node(number: int = 0, **changed: Any) -> dict[str, Any]:
    """Make a node that has everything; the first is the head, on which the driver runs."""
    facts = {
        "id": f"{number:06d}abcdef",
        "ip": f"10.0.0.{number}",
        "host": f"host{number}",
        "driver": number == 0,
        "resources": {"CPU": 4.0},
        "problem": None,
        "python": HERE["python"],
        "deelbo": HERE["deelbo"],
        "code": HERE["code"],
        "torch": HERE["torch"],
        "missing": [],
        "devices": [],
        "cuda": None,
        "data": {"CIFAR-10": None},
        "unread": None,
        "free": {"temporary files": ENOUGH_BYTES, "the storage": ENOUGH_BYTES},
        "storage": {"problem": None, "unseen": []},
    }
    return facts | changed


def gpu_node(number: int, name: str, kind: str | None, count: int = 1, **changed: Any) -> dict[str, Any]:
    """Make a node with GPUs that nvidia-smi and Ray know; without ``kind`` Ray has no name for their type."""
    resources = {"CPU": 4.0, "GPU": float(count)} | ({f"accelerator_type:{kind}": 1.0} if kind else {})
    return node(number, resources=resources, devices=[name] * count, **changed)


def report_of(*nodes: dict[str, Any], **changed: Any) -> ClusterReport:
    """Make the report of a cluster of these nodes, or of three equal ones, that fits this machine."""
    facts: dict[str, Any] = {
        "address": "http://head:8265",
        "token_mode": "token",
        "ray": HERE["ray"],
        "client": HERE,
        "driver": {"mlflow": {"status": 200, "problem": None}, "weights": {}, "grows": False},
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
    ("mode", "ip", "status"),
    [("token", "10.0.0.1", "ok"), ("disabled", "10.0.0.1", "note"), ("disabled", "127.0.0.1", "ok")],
)
def test_access(mode: str, ip: str, status: str, tiny_request: DoctorRequest) -> None:
    """A cluster that needs no token is worth a note, unless all its nodes are on loopback."""
    assert result_of("access", report_of(node(ip=ip), token_mode=mode), tiny_request).status == status


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
    ],
)
def test_versions_of_torch(
    head_cpus: float, versions: list[str], status: str, found: str, tiny_request: DoctorRequest
) -> None:
    """Nodes that run trials need one torch; if all differ from this machine's version, that is a note."""
    nodes = [node(i, torch=version) for i, version in enumerate(versions)]
    result = result_of("torch", report_of(nodes[0] | {"resources": {"CPU": head_cpus}}, *nodes[1:]), tiny_request)
    assert result.status == status
    assert found in result.found


def test_missing_and_other_versions_of_deelbo(tiny_request: DoctorRequest, tiny: Benchmark) -> None:
    """A node without deelbo, with another version, or without a package fails, unless the job installs it."""
    report = report_of(node(0), node(1, deelbo=None), node(2, deelbo="0.0.9"), node(3, torch=None, missing=["optuna"]))
    results = results_of("deelbo", report, tiny_request)
    assert_failed(results[0], "0.1.0 here, none on 1 of 4 nodes (host1)", "--from-source")
    assert_failed(results[1], "0.1.0 here, 0.0.9 on 1 of 4 nodes (host2)")
    assert_failed(results[2], "torch, optuna missing on 1 of 4 nodes (host3)")
    assert result_of("deelbo", report, DoctorRequest(tiny, install=True)).status == "note"


def test_nodes_with_other_code_of_the_same_version(tiny_request: DoctorRequest, tiny: Benchmark) -> None:
    """A node whose code is not the driver's fails; a cluster whose code is not this machine's is a note."""
    result = result_of("deelbo", report_of(node(0), node(1, code="def"), node(2)), tiny_request)
    assert_failed(result, "0.1.0 whose code (def) is not that of the driver (abc) on 1 of 3 nodes (host1)")
    equal = report_of(*(node(i, code="def") for i in range(2)))
    result = result_of("deelbo", equal, tiny_request)
    assert (result.status, result.todo) == ("note", "the cluster's runs; --from-source takes this one along")
    assert "(abc here, def on the cluster)" in result.found
    assert result_of("deelbo", equal, DoctorRequest(tiny, from_source=True)).status == "ok"


def test_missing_gpus(request_of: Any) -> None:
    """Trials that take a GPU fail on a cluster without, unless an autoscaler may start nodes."""
    request = request_of(gpus_per_trial=1)
    assert_failed(result_of("room", report_of(), request), "1 CPU and 1 GPU of one node", "add a node with a GPU")
    assert results_of("GPUs", report_of(), request) == []
    elastic = report_of(node(), driver={"grows": True})
    assert "the autoscaler may start others" in result_of("room", elastic, request).found
    assert "fail" not in {result.status for result in check_cluster(elastic, request)}


def test_gpus_of_two_models(request_of: Any) -> None:
    """Timed trials on two models fail unless one is pinned; for other trials that is a note."""
    mixed = report_of(gpu_node(0, "NVIDIA H100", "H100", 2), gpu_node(1, "NVIDIA L4", "L4"))
    result = result_of("GPUs", mixed, request_of(gpus_per_trial=1))
    assert_failed(result, "2 x NVIDIA H100, 1 x NVIDIA L4", "resources.accelerator=H100", "--set timed=false")
    assert result_of("GPUs", mixed, request_of(timed=False, gpus_per_trial=1)).status == "note"
    pinned = request_of(gpus_per_trial=1, accelerator="H100")
    assert result_of("GPUs", mixed, pinned) == CheckResult("GPUs", "2 x NVIDIA H100", "ok")
    assert result_of("room", mixed, pinned).found == "2 trials at once"
    assert_failed(result_of("room", mixed, request_of(gpus_per_trial=1, accelerator="A100")), "1 GPU of type A100")


@pytest.mark.parametrize("kind", ["A100", None])
def test_models_that_ray_cannot_distinguish(kind: str | None, request_of: Any) -> None:
    """Two models of one type, or of none, cannot be selected by a type, and none is advised."""
    mixed = report_of(gpu_node(0, "A100-SXM4-40GB", kind), gpu_node(1, "A100-SXM4-80GB", kind))
    result = result_of("GPUs", mixed, request_of(gpus_per_trial=1))
    assert_failed(result, "cannot tell these models apart")
    assert "resources.accelerator" not in result.todo


def test_type_is_pinned_beside_a_model_without_type(request_of: Any) -> None:
    """A model that Ray has a name for can be selected, although it has none for the other."""
    mixed = report_of(gpu_node(0, "NVIDIA X", None), gpu_node(1, "NVIDIA H100", "H100"))
    assert_failed(result_of("GPUs", mixed, request_of(gpus_per_trial=1)), "resources.accelerator=H100")


def test_unused_gpus(request_of: Any) -> None:
    """GPUs that trials do not take may be of several models."""
    mixed = report_of(gpu_node(0, "NVIDIA H100", "H100"), gpu_node(1, "NVIDIA L4", "L4"))
    assert result_of("GPUs", mixed, request_of()).status == "ok"


def test_torch_that_sees_no_gpu(request_of: Any) -> None:
    """A torch that cannot use its node's GPU fails with its error; a node without torch is another check's."""
    nodes = [gpu_node(i, "NVIDIA H100", "H100", cuda="torch failed" if i else "") for i in range(2)]
    request = request_of(gpus_per_trial=1)
    assert_failed(result_of("CUDA", report_of(*nodes), request), "torch failed on 1 of 2 nodes (host1)")
    nodes[1]["torch"] = None
    assert result_of("CUDA", report_of(*nodes), request).found == "torch uses the GPUs of 1 of 2 nodes (host0)"


def test_room_for_trials(request_of: Any) -> None:
    """Trials are counted node by node; none is a failure, fewer than requested a note."""
    report = report_of(*(node(i, resources={"CPU": 3.0}) for i in range(2)))
    assert result_of("room", report, request_of(cpus_per_trial=2)).found == "2 trials at once"
    assert result_of("room", report, request_of(cpus_per_trial=2, slots=3)).status == "note"
    assert_failed(result_of("room", report, request_of(cpus_per_trial=4)), "it takes 4 CPU")


@pytest.mark.parametrize(
    ("storage", "todo"), [("/shared/runs", "mounted on every node"), ("s3://lab/runs", "credentials")]
)
def test_storage_that_cannot_be_written(storage: str, todo: str, tiny: Benchmark) -> None:
    """A storage that one node cannot write fails with that node's error."""
    report = report_of(node(0), node(1, storage={"problem": "denied"}))
    result = result_of("storage", report, DoctorRequest(tiny, storage, SERVER))
    assert_failed(result, f"{storage} cannot be used (denied) on 1 of 2 nodes (host1)", todo)


def test_storage_that_is_not_shared(tiny_request: DoctorRequest) -> None:
    """A folder that each node has for itself is writable but not shared; a node that misses files is named."""
    ids = [node(i)["id"] for i in range(3)]
    apart = [node(i, storage={"problem": None, "unseen": ids[:i] + ids[i + 1 :]}) for i in range(3)]
    assert_failed(result_of("storage", report_of(*apart), tiny_request), "writable but not shared", "on all 3 nodes")
    some = [node(i, storage={"problem": None, "unseen": [ids[2]] if i == 1 else []}) for i in range(3)]
    assert_failed(result_of("storage", report_of(*some), tiny_request), "not seen on 1 of 3 nodes (host1)")


def test_unused_node_needs_nothing(tiny_request: DoctorRequest) -> None:
    """A node on which neither a trial nor the driver runs needs no storage, data or deelbo."""
    idle = node(2, resources={}, deelbo=None, data={"CIFAR-10": "missing"}, storage={"problem": "denied"})
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
    assert status == "ok" or f"{free / 1e9} GB free for temporary files on host1" in result.found


@pytest.mark.parametrize(
    ("status", "message", "todo"),
    [
        (403, "Invalid Host header", "mlflow:5000 among its --allowed-hosts"),
        (401, "You are not authenticated", "MLFLOW_TRACKING_PASSWORD"),
        (None, "[Errno 111] Connection refused", "check --tracking-uri"),
    ],
)
def test_mlflow_that_refuses(status: int | None, message: str, todo: str, tiny_request: DoctorRequest) -> None:
    """An MLflow server that accepts nothing fails with its message and advice for it."""
    refused = report_of(driver={"mlflow": {"status": status, "problem": message}})
    assert_failed(result_of("MLflow", refused, tiny_request), message, todo)


def test_mlflow_database_needs_a_directory(tiny: Benchmark) -> None:
    """Without --tracking-uri MLflow's database is in the storage, which must be a directory."""
    assert result_of("MLflow", report_of(), DoctorRequest(tiny, "/shared/runs")).status == "ok"
    assert_failed(result_of("MLflow", report_of(), DoctorRequest(tiny, "s3://bucket/runs")), "give --tracking-uri")


def test_results_contain_no_passwords(tiny: Benchmark) -> None:
    """No result contains the password of a URI."""
    request = DoctorRequest(tiny, "s3://key:hush@bucket/runs", "http://me:hush@mlflow:5000")
    refused = report_of(driver={"mlflow": {"status": 401, "problem": "no message"}})
    assert "hush" not in " ".join(result.describe() for result in check_cluster(refused, request))


def test_missing_data(tiny_request: DoctorRequest) -> None:
    """Nodes that lack a dataset share one row, with the error and one piece of advice."""
    lack = {"CIFAR-10": "CIFAR-10 was not found: /data has no folder cifar-10-batches-py: run `deelbo-bench prepare"}
    missing = result_of("data", report_of(node(0), node(1, data=lack), node(2, data=lack)), tiny_request)
    assert_failed(missing, "on 2 of 3 nodes (host1, host2)", "run `deelbo-bench prepare CONFIG` there")
    assert missing.describe().count("run `") == 1


def test_own_images_that_differ_between_nodes(tiny_request: DoctorRequest) -> None:
    """A node with fewer of the user's own images than another is named; one that has none says what to bring."""
    own = {"data": {"photos": None}, "examples": {"photos": 90}}
    lack = {"data": {"photos": "photos: there is no /photos: correct the path"}, "examples": {"photos": None}}
    report = report_of(node(0, **own), node(1, **own | {"examples": {"photos": 88}}), node(2, **lack))
    missing, fewer = results_of("data", report, tiny_request)
    assert_failed(missing, "photos: there is no /photos", "on 1 of 3 nodes (host2)", "bring your own data there")
    assert_failed(fewer, "photos has 88 examples, 90 elsewhere on 1 of 3 nodes (host1)", "bring the same data")
    assert result_of("data", report_of(node(0, **own), node(1, **own)), tiny_request).status == "ok"


def test_data_that_take_long_to_read(tiny_request: DoctorRequest) -> None:
    """A node that is still reading its data is a note, and has answered."""
    report = report_of(node(0), node(1, unread="not read (no answer in 90 s)"), node(2))
    assert result_of("nodes", report, tiny_request).status == "ok"
    reading, complete = results_of("data", report, tiny_request)
    assert (reading.status, complete.status) == ("note", "ok")
    assert reading.found == "not read (no answer in 90 s) on 1 of 3 nodes (host1)"
    assert complete.found == "CIFAR-10 on 2 of 3 nodes (host0, host2)"


def test_missing_weights(tiny_request: DoctorRequest) -> None:
    """Weights that the driver lacks are a failure; other nodes need none."""
    result = result_of("weights", report_of(driver={"weights": LOST_WEIGHTS}), tiny_request)
    assert_failed(result, "resnet50 IMAGENET1K_V1: the weights are not at /x", "prepare CONFIG")


def test_checks_that_need_deelbo(tiny: Benchmark) -> None:
    """If --install brings deelbo later, data and weights are not checked, which is a note."""
    bare = node(deelbo=None, data={"CIFAR-10": "No module named 'deelbo'"})
    report = report_of(bare, driver={"weights": LOST_WEIGHTS})
    results = check_cluster(report, DoctorRequest(tiny, "/shared", install=True))
    assert {result.check for result in results if result.status == "note"} == {"deelbo", "data", "weights"}
    assert "fail" not in {result.status for result in results}


def test_node_that_does_not_answer(tiny_request: DoctorRequest) -> None:
    """A silent node fails by its name, and the others are checked."""
    silent = node(1) | {"problem": "no answer in 90 s"}
    for key in ("python", "torch", "devices", "storage"):
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
            storage={"problem": f"error {i}"},
            torch=f"2.{i}.0",
        )
        for i in range(100)
    ]
    results = check_cluster(report_of(*nodes), tiny_request)
    for check in {result.check for result in results}:
        rows = [result for result in results if result.check == check]
        assert len(rows) <= 3
        assert all(len(result.describe()) < 500 for result in rows)
    assert "97 other problems" in results_of("data", report_of(*nodes), tiny_request)[-1].found


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


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        ({}, "ok", "here and on all 2 nodes"),
        ({"found": "none"}, "fail", "here, none on 1 of 2 nodes (host1)"),
        ({"found": "2.0 (abc)"}, "fail", "here, 2.0 (abc) on 1 of 2 nodes (host1)"),
        (
            {"problem": "ModuleNotFoundError: x"},
            "fail",
            "my_data cannot be used (ModuleNotFoundError: x)",
        ),
    ],
)
def test_plugins(facts: dict[str, Any], status: str, words: str, content: dict[str, Any], plugins: Path) -> None:
    """A node that lacks a plug-in or what it imports, or has another version or other sources, is named."""
    request = DoctorRequest(parse_benchmark(content | {"dataset": "rows"}, "x"))
    own = {"found": describe_module("my_data", "my-data"), "problem": None}
    nodes = [node(0, plugins={"my_data": own}), node(1, plugins={"my_data": own | facts})]
    result = result_of("plug-ins", report_of(*nodes), request)
    assert (result.status, words in result.found) == (status, True)
    installed = result_of("plug-ins", report_of(*nodes), replace(request, install=True))
    assert (installed.status, "--install" in installed.found) == ("note", True)
    assert results_of("plug-ins", report_of(), DoctorRequest(parse_benchmark(content, "x"))) == []
