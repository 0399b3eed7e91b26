"""What `doctor` says of given facts, without any cluster."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cli.doctor import raise_first_failure
from bench.config.benchmark import Benchmark
from bench.config.loading import parse_benchmark
from bench.doctor.cluster_report import Asked, Facts, Finding
from bench.doctor.software_checks import judge
from bench.exceptions import ConfigError

HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.15.0", "deelbo": "0.1.0"}
HTTP = "http://mlflow:5000"
PRESENT = 9e10


def node(number: int = 0, **given: Any) -> dict[str, Any]:
    """A node that has all that is needed; the first is the head, on which the driver runs."""
    found = {
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
        "packages": {"ray": HERE["ray"], "torch": HERE["torch"], "pandas": "2.2.0"},
        "devices": [],
        "cuda": None,
        "data": {"CIFAR-10": None},
        "free": {"temporary files": PRESENT, "the storage": PRESENT},
        "storage": {"wrote": True, "why": None, "made": [], "unseen": []},
    }
    return found | given


def gpus(number: int, name: str, kind: str | None, count: int = 1, **given: Any) -> dict[str, Any]:
    """A node with GPUs that nvidia-smi and Ray both know; the latter by no name of their type where it is None."""
    devices = [{"name": name, "mib": "81559", "driver": "570.86"}] * count
    return node(number, gpus=float(count), accelerators=[kind] if kind else [], devices=devices, **given)


def facts(*nodes: dict[str, Any], **given: Any) -> Facts:
    """A cluster of these nodes, or of three alike, as it is seen from a laptop that fits."""
    there = nodes or tuple(node(i) for i in range(3))
    seen = {"mlflow": {"ok": True, "status": 200, "words": "", "version": "3.17.0"}, "weights": [], "grows": False}
    known: dict[str, Any] = {"address": "http://head:8265", "token_mode": "token", "ray": HERE["ray"], "client": HERE}
    return Facts(**(known | {"driver": seen, "nodes": list(there)} | given))


@pytest.fixture
def benchmark_of(content: dict[str, Any]) -> Any:
    """Makes the tiny benchmark with other resources."""

    def make(timed: bool = True, **resources: Any) -> Benchmark:
        return parse_benchmark(content | {"resources": resources, "timed": timed}, "tiny.yaml")

    return make


@pytest.fixture
def asked(tiny: Benchmark) -> Asked:
    """The tiny benchmark with a storage and a server."""
    return Asked(tiny, "/shared/runs", HTTP)


def of(check: str, found: Facts, asked: Asked) -> list[Finding]:
    """What is said of one check."""
    return [finding for finding in judge(found, asked) if finding.check == check]


def one(check: str, found: Facts, asked: Asked) -> Finding:
    """The only thing that is said of it."""
    (finding,) = of(check, found, asked)
    return finding


def assert_failed(finding: Finding, *words: str) -> None:
    """It fails in these words, and says what to do."""
    assert finding.verdict == "fail"
    assert finding.todo
    for word in words:
        assert word in finding.describe()


def test_a_cluster_that_fits_passes_every_check(asked: Asked) -> None:
    """Where everything is the same here and there, every finding is ok and none asks for anything."""
    findings = judge(facts(), asked)
    assert {finding.verdict for finding in findings} == {"ok"}
    assert {finding.todo for finding in findings} == {""}
    checks = [finding.check for finding in findings]
    expected = [
        "access",
        "Ray",
        "nodes",
        "Python",
        "torch",
        "deelbo",
        "GPUs",
        "room",
        "storage",
        "disk",
        "MLflow",
        "data",
        "weights",
    ]
    assert checks == expected
    raise_first_failure(findings)


@pytest.mark.parametrize(
    ("mode", "address", "verdict"),
    [
        ("token", "http://head:8265", "ok"),
        ("disabled", "http://head:8265", "note"),
        ("disabled", "http://10.1.2.3:8265", "note"),
        (None, "http://head:8265", "note"),
    ],
)
def test_a_cluster_without_tokens_is_worth_a_note(mode: str, address: str, verdict: str, asked: Asked) -> None:
    """Whoever reaches a cluster without tokens may run code on it, and that is said."""
    assert one("access", facts(token_mode=mode, address=address), asked).verdict == verdict


def test_no_token_is_asked_for_on_loopback(asked: Asked) -> None:
    """A cluster all of whose nodes are on loopback needs no token."""
    assert one("access", facts(node(ip="127.0.0.1"), **{"token_mode": "disabled"}), asked).verdict == "ok"


@pytest.mark.parametrize(("there", "verdict"), [("2.60.0", "ok"), ("2.60.3", "note"), ("2.50.0", "fail")])
def test_ray_here_and_there(there: str, verdict: str, asked: Asked) -> None:
    """Another patch of Ray is a note, another version a failure that names the one to install."""
    finding = one("Ray", facts(ray=there), asked)
    assert finding.verdict == verdict
    assert verdict == "ok" or f"=={there}" in finding.todo


def test_a_cluster_of_another_ray_is_told_of_without_a_look(asked: Asked) -> None:
    """Where no node was looked at, what is known is judged all the same."""
    findings = judge(Facts("http://head:8265", "token", "2.9.0", HERE), asked)
    assert [finding.check for finding in findings] == ["access", "Ray"]
    assert_failed(findings[1], "2.60.0 here, 2.9.0 on the cluster")


def test_another_python_on_the_cluster(asked: Asked) -> None:
    """A cluster of another minor version of Python fails, one of another patch does not."""
    assert_failed(one("Python", facts(node(python="3.12.1")), asked), "3.11.7 here, 3.12.1", "use Python 3.12 here")
    assert one("Python", facts(node(python="3.11.9")), asked).verdict == "ok"


def test_two_pythons_on_the_cluster(asked: Asked) -> None:
    """Nodes of several Pythons fail, and the odd one is named."""
    finding = one("Python", facts(node(0), node(1), node(2, python="3.10.2")), asked)
    assert_failed(finding, "3.10.2 on 1 of 3 nodes (host2)")


def test_torch_must_be_one_on_the_nodes(asked: Asked) -> None:
    """Two torches on the nodes fail; one that differs from the one here is a note."""
    other = {"ray": "2.60.0", "torch": "2.14.1+cu126"}
    assert_failed(one("torch", facts(node(0), node(1, packages=other)), asked), "2.14.1+cu126 on 1 of 2 nodes (host1)")
    assert one("torch", facts(node(packages=other)), asked).verdict == "note"
    built = {"ray": "2.60.0", "torch": "2.15.0+cu126"}
    assert one("torch", facts(node(packages=built)), asked).verdict == "ok"


def test_a_head_without_trials_may_have_a_torch_of_its_own(asked: Asked) -> None:
    """Only nodes on which trials run must agree to the build: a head without CPUs for them need not."""
    head = node(0, cpus=0.0)
    built = {"ray": "2.60.0", "torch": "2.15.0+cu126"}
    assert one("torch", facts(head, node(1, packages=built)), asked).verdict == "ok"


def test_deelbo_is_missing_or_another(asked: Asked, tiny: Benchmark) -> None:
    """A node without deelbo, or with another, fails unless the job brings it along."""
    without = facts(node(0), node(1, deelbo=None), node(2, deelbo="0.0.9"))
    finding = one("deelbo", without, asked)
    assert_failed(finding, "none on 1 of 3 nodes (host1)", "0.0.9 on 1 of 3 nodes (host2)", "--from-source")
    assert one("deelbo", without, Asked(tiny, install=True)).verdict == "note"
    assert "--from-source" in one("deelbo", facts(), Asked(tiny, from_source=True)).found


def test_deelbo_lacks_what_it_needs(asked: Asked, tiny: Benchmark) -> None:
    """A package that deelbo needs and a node lacks is named, with the node."""
    lacking = {"ray": "2.60.0", "torch": "2.15.0", "pandas": None}
    there = facts(node(0), node(1, packages=lacking))
    assert_failed(one("deelbo", there, asked), "pandas missing on 1 of 2 nodes (host1)")
    assert one("deelbo", there, Asked(tiny, install=True)).verdict == "note"


def test_no_gpu_where_one_is_asked_for(benchmark_of: Any) -> None:
    """Trials that take a GPU on a cluster without fail, unless an autoscaler may still bring nodes."""
    wanted = Asked(benchmark_of(gpus_per_trial=1))
    assert_failed(one("GPUs", facts(), wanted), "none, and each trial takes 1")
    assert of("room", facts(), wanted) == []
    growing = facts(node(), driver={"grows": True})
    assert "not up yet" in one("GPUs", growing, wanted).found
    assert "fail" not in {finding.verdict for finding in judge(growing, wanted)}


def test_workers_may_come_where_nobody_knows(benchmark_of: Any) -> None:
    """Where Ray does not say whether the cluster grows, a head alone with slots asked for is let pass."""
    unknown: dict[str, Any] = {"driver": {"grows": None}}
    assert one("GPUs", facts(node(), **unknown), Asked(benchmark_of(gpus_per_trial=1, slots=2))).verdict == "note"
    assert one("GPUs", facts(node(), **unknown), Asked(benchmark_of(gpus_per_trial=1))).verdict == "fail"
    two = facts(node(0), node(1), **unknown)
    assert one("GPUs", two, Asked(benchmark_of(gpus_per_trial=1, slots=2))).verdict == "fail"


def test_gpus_that_ray_does_not_count(benchmark_of: Any) -> None:
    """A GPU that nvidia-smi lists and Ray does not is told from one that is not there."""
    device = [{"name": "NVIDIA H100", "mib": "81559", "driver": "570.86"}]
    finding = one("GPUs", facts(node(devices=device)), Asked(benchmark_of(gpus_per_trial=1)))
    assert_failed(finding, "NVIDIA H100 (80 GiB)", "--num-gpus")


def test_gpus_of_two_models(benchmark_of: Any) -> None:
    """Timed trials on two models of GPU fail unless one is pinned; without timing they are a note."""
    mixed = facts(gpus(0, "NVIDIA H100", "H100", 2), gpus(1, "NVIDIA A100", "A100"))
    finding = one("GPUs", mixed, Asked(benchmark_of(gpus_per_trial=1)))
    assert_failed(finding, "2 x NVIDIA H100 (80 GiB), 1 x NVIDIA A100", "resources.accelerator=H100")
    assert one("GPUs", mixed, Asked(benchmark_of(timed=False, gpus_per_trial=1))).verdict == "note"
    pinned = Asked(benchmark_of(gpus_per_trial=1, accelerator="H100"))
    assert one("GPUs", mixed, pinned).found.startswith("2 x NVIDIA H100")
    assert "2 trials at once" in one("room", mixed, pinned).found
    assert_failed(one("GPUs", mixed, Asked(benchmark_of(gpus_per_trial=1, accelerator="L4"))), "accelerator = L4")


@pytest.mark.parametrize("pinned", [{}, {"accelerator": "A100"}], ids=["any", "pinned"])
@pytest.mark.parametrize(("timed", "verdict"), [(True, "fail"), (False, "note")])
def test_gpus_that_are_one_type_to_ray(benchmark_of: Any, pinned: dict[str, str], timed: bool, verdict: str) -> None:
    """Two models that Ray has one name for cannot be told apart by a pin, and none is advised."""
    mixed = facts(gpus(0, "NVIDIA A100-SXM4-40GB", "A100"), gpus(1, "NVIDIA A100-SXM4-80GB", "A100"))
    finding = one("GPUs", mixed, Asked(benchmark_of(timed=timed, gpus_per_trial=1, **pinned)))
    assert finding.verdict == verdict
    assert "resources.accelerator" not in finding.todo
    assert "one type to Ray, A100: take the nodes of one model out" in finding.todo
    assert ("--set timed=false" in finding.todo) is timed


def test_gpus_without_a_type(benchmark_of: Any) -> None:
    """Models that Ray has no name for are not pinned either; one that it has is, among others that it has none for."""
    nameless = gpus(0, "NVIDIA X", None)
    wanted = Asked(benchmark_of(gpus_per_trial=1))
    finding = one("GPUs", facts(nameless, gpus(1, "NVIDIA Y", None)), wanted)
    assert_failed(finding, "Ray has no name for their types: take the nodes of one model out")
    assert_failed(one("GPUs", facts(nameless, gpus(1, "NVIDIA H100", "H100")), wanted), "resources.accelerator=H100")


def test_gpus_of_no_use(benchmark_of: Any) -> None:
    """GPUs that trials do not take are a note."""
    there = facts(gpus(0, "NVIDIA H100", "H100"))
    assert "trials take none" in one("GPUs", there, Asked(benchmark_of())).found


def test_torch_that_sees_no_gpu(benchmark_of: Any) -> None:
    """A torch that cannot use the GPU that is there fails, by node."""
    nodes = [gpus(0, "NVIDIA H100", "H100", cuda=""), gpus(1, "NVIDIA H100", "H100", cuda="torch is built for CUDA 13")]
    finding = one("CUDA", facts(*nodes), Asked(benchmark_of(gpus_per_trial=1)))
    assert_failed(finding, "1 of 2 nodes (host1)", "CUDA 13")


def test_torch_that_is_still_to_come_sees_no_gpu(benchmark_of: Any) -> None:
    """With --install a node without torch is no failure; one whose torch cannot use the GPU still is."""
    lacking = {"ray": HERE["ray"], "torch": None, "pandas": None}
    bare = gpus(1, "NVIDIA H100", "H100", cuda="torch cannot be imported", packages=lacking)
    wanted = benchmark_of(gpus_per_trial=1)
    assert one("CUDA", facts(node(0), bare), Asked(wanted, install=True)).verdict == "note"
    assert one("CUDA", facts(node(0), bare), Asked(wanted)).verdict == "fail"
    built = gpus(1, "NVIDIA H100", "H100", cuda="torch is built for CPUs alone")
    assert one("CUDA", facts(node(0), built), Asked(wanted, install=True)).verdict == "fail"


def test_room_for_trials(benchmark_of: Any) -> None:
    """How many trials fit is counted by node; none is a failure, fewer than asked for a note."""
    there = facts(node(0, cpus=3.0), node(1, cpus=3.0))
    assert "2 trials at once" in one("room", there, Asked(benchmark_of(cpus_per_trial=2))).found
    assert one("room", there, Asked(benchmark_of(cpus_per_trial=2, slots=3))).verdict == "note"
    assert_failed(one("room", there, Asked(benchmark_of(cpus_per_trial=4))), "0 trials at once")


def test_a_storage_that_cannot_be_written(asked: Asked) -> None:
    """A storage that some node cannot write fails with that node's reason."""
    barred = {"wrote": False, "why": "PermissionError: [Errno 13] Permission denied: '/shared'", "made": []}
    finding = one("storage", facts(node(0), node(1, storage=barred)), asked)
    assert_failed(finding, "not writable on 1 of 2 nodes (host1)", "Permission denied")
    barred = {"wrote": False, "why": "FileExistsError: [Errno 17] File exists: '/shared'", "made": []}
    assert_failed(one("storage", facts(node(0, storage=barred)), asked), "there is a file of that name")


def test_a_storage_that_the_driver_alone_sees(asked: Asked) -> None:
    """A folder that every node has for itself is writable, not shared, and fails."""
    ids = [node(i)["id"] for i in range(3)]
    apart = [node(i, storage={"wrote": True, "unseen": [one for one in ids if one != ids[i]]}) for i in range(3)]
    assert_failed(
        one("storage", facts(*apart), asked),
        "writable but not shared: no other node sees what the driver on host0 writes",
    )
    some = [node(i, storage={"wrote": True, "unseen": [ids[2]] if i == 1 else []}) for i in range(3)]
    assert_failed(one("storage", facts(*some), asked), "not all seen on 1 of 3 nodes (host1)")


def test_a_storage_on_nodes_that_run_no_trials(asked: Asked) -> None:
    """A node on which neither a trial nor the driver runs needs no storage, no data and no deelbo."""
    idle = node(2, cpus=0.0, deelbo=None, data={"CIFAR-10": "not there"}, storage={"wrote": False, "why": "no"})
    assert {finding.verdict for finding in judge(facts(node(0), node(1), idle), asked)} == {"ok"}


def test_a_storage_that_is_a_path_from_here(tiny: Benchmark) -> None:
    """A relative path means another folder on each node, and fails."""
    assert_failed(one("storage", facts(), Asked(tiny, "runs/x", HTTP)), "runs/x is a path from here")


def test_no_storage_is_a_note(tiny: Benchmark) -> None:
    """Without --storage there is nothing to look at, which is said."""
    assert one("storage", facts(), Asked(tiny)).verdict == "note"


@pytest.mark.parametrize(("left", "verdict"), [(6e9, "ok"), (4e9, "note"), (4e8, "fail")])
def test_free_disk(left: float, verdict: str, asked: Asked) -> None:
    """Less than 5 GB on a node is a note and less than 500 MB a failure."""
    finding = one("disk", facts(node(0), node(1, free={"temporary files": left})), asked)
    assert finding.verdict == verdict
    assert verdict == "ok" or "host1" in finding.found


@pytest.mark.parametrize(
    ("status", "words", "todo"),
    [
        (403, "Invalid Host header - possible DNS rebinding attack detected", "mlflow:5000 among its --allowed-hosts"),
        (401, "You are not authenticated", "MLFLOW_TRACKING_PASSWORD"),
        (None, "[Errno 111] Connection refused", "check --tracking-uri"),
    ],
)
def test_an_mlflow_that_refuses(status: int | None, words: str, todo: str, asked: Asked) -> None:
    """An MLflow that takes nothing fails in its own words, with what to do about it."""
    refused = facts(driver={"mlflow": {"ok": False, "status": status, "words": words}})
    assert_failed(one("MLflow", refused, asked), words, todo)


def test_an_mlflow_on_loopback(tiny: Benchmark) -> None:
    """Only the driver talks to MLflow: a loopback address is fine where it answers there, however many machines there
    are; where nobody does, whose loopback it is is said."""
    asked = Asked(tiny, "/shared/runs", "http://127.0.0.1:5000")
    finding = one("MLflow", facts(), asked)
    assert (finding.verdict, finding.todo) == ("ok", "")
    assert "takes requests from the driver, on the loopback of its machine" in finding.found
    assert "loopback" not in one("MLflow", facts(), Asked(tiny, "/shared/runs", HTTP)).found
    for status, words in ((None, "on the machine where the driver runs"), (403, "--allowed-hosts")):
        refused = facts(driver={"mlflow": {"ok": False, "status": status, "words": "no"}})
        assert_failed(one("MLflow", refused, asked), words)


def test_an_mlflow_without_a_place(tiny: Benchmark) -> None:
    """Without --tracking-uri MLflow's database is in the storage, and a URL cannot hold it."""
    assert one("MLflow", facts(), Asked(tiny, "/shared/runs")).verdict == "ok"
    assert_failed(one("MLflow", facts(), Asked(tiny, "s3://bucket/runs")), "give --tracking-uri")


def test_passwords_are_not_shown(tiny: Benchmark) -> None:
    """No finding has the password of a URI in it."""
    asked = Asked(tiny, "s3://key:hush@bucket/runs", "http://me:hush@mlflow:5000")
    refused = facts(driver={"mlflow": {"ok": False, "status": 401, "words": ""}})
    assert "hush" not in " ".join(finding.describe() for finding in judge(refused, asked))


def test_data_missing_on_some_nodes(asked: Asked) -> None:
    """Nodes that lack a dataset are counted and named in one row, with its complaint and the remedy."""
    lack = {"CIFAR-10": "CIFAR-10 is not there: /data has no folder cifar-10-batches-py: run `deelbo-bench prepare"}
    finding = one("data", facts(node(0), node(1, data=lack), node(2, data=lack)), asked)
    assert_failed(finding, "2 of 3 nodes (host1, host2)", "run `deelbo-bench prepare CONFIG` there")
    assert finding.describe().count("run `") == 1


@pytest.mark.parametrize(("late", "verdict"), [(True, "note"), (False, "fail")])
def test_data_that_take_long_to_read(late: bool, verdict: str, asked: Asked) -> None:
    """A node that still reads its data is no silent one, and a note; one that died of it fails. Neither counts among
    those that have them."""
    slow = node(1, data={}, unread={"problem": "no answer in 90 s", "late": late})
    there = facts(node(0), slow, node(2))
    assert one("nodes", there, asked).verdict == "ok"
    reading, whole = of("data", there, asked)
    assert (reading.verdict, whole.verdict) == (verdict, "ok")
    assert reading.found == "not read on 1 of 3 nodes (host1): no answer in 90 s"
    assert reading.todo
    assert "CIFAR-10 on all 2 nodes" in whole.found
    (alone,) = of("data", facts(node(0, data={}, unread={"problem": "x", "late": late})), asked)
    assert alone.verdict == verdict


def test_weights_missing_where_the_driver_runs(asked: Asked) -> None:
    """Weights that the driver does not find fail; other nodes need none."""
    lost = {"backbone": "resnet50", "version": "IMAGENET1K_V1", "missing": "the weights are not at /x: run `...`"}
    finding = one("weights", facts(driver={"weights": [lost]}), asked)
    assert_failed(finding, "resnet50, where the driver runs: the weights are not at /x", "prepare CONFIG")


def test_what_only_deelbo_can_find(tiny: Benchmark) -> None:
    """Where --install brings deelbo later, data and weights are not looked at, which is a note and no failure."""
    lost = {"backbone": "resnet50", "version": "IMAGENET1K_V1", "missing": "No module named 'deelbo'"}
    bare = node(deelbo=None, data={"CIFAR-10": "No module named 'deelbo'"})
    findings = judge(facts(bare, driver={"weights": [lost]}), Asked(tiny, "/shared", install=True))
    notes = {finding.check for finding in findings if finding.verdict == "note"}
    assert notes == {"deelbo", "data", "weights"}
    assert "fail" not in {finding.verdict for finding in findings}


def test_a_node_that_does_not_answer(asked: Asked) -> None:
    """A silent node fails by name, and the others are judged all the same."""
    silent = node(1) | {"problem": "no answer in 90 s"}
    for key in ("python", "packages", "devices", "storage"):
        del silent[key]
    findings = judge(facts(node(0), silent, node(2)), asked)
    assert_failed(next(one for one in findings if one.check == "nodes"), "1 of 3 nodes (host1): no answer in 90 s")
    assert {one.check for one in findings} >= {"torch", "storage", "data"}


def test_a_probe_without_an_answer(asked: Asked) -> None:
    """Where the job on the cluster said nothing, its end is the failure."""
    findings = judge(Facts("http://head:8265", "token", "2.60.0", HERE, problem="a small job ended with 2"), asked)
    assert_failed(findings[-1], "a small job ended with 2")


def test_a_hundred_nodes_are_few_rows(asked: Asked) -> None:
    """However many nodes say whatever different things, a check takes at most three rows of one line each."""
    nodes = [
        node(
            i,
            data={"CIFAR-10": f"damaged at {i}"},
            storage={"wrote": False, "why": f"error {i}", "made": []},
            packages={"ray": "2.60.0", "torch": f"2.{i}.0"},
        )
        for i in range(100)
    ]
    findings = judge(facts(*nodes), asked)
    for check in {finding.check for finding in findings}:
        some = [finding for finding in findings if finding.check == check]
        assert len(some) <= 3
        assert all(len(finding.describe()) < 500 for finding in some)
    assert "97 other complaints" in of("data", facts(*nodes), asked)[-1].found


def test_several_nodes_of_one_host_are_told_apart(asked: Asked) -> None:
    """Nodes whose hosts have the same name get a part of their number."""
    twins = facts(node(0, host="box"), node(1, host="box", python="3.12.0"))
    assert "1 of 2 nodes (box/000001)" in one("Python", twins, asked).found


def test_refused_by_the_first_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """`raise_first_failure` raises the first failure as one line, and prints the notes and the other failures."""
    findings = [
        Finding("Ray", "2.60.0 here and there", "ok"),
        Finding("access", "no token", "note", "start it with one"),
        Finding("GPUs", "none,\nand each trial takes 1", "fail", "start nodes with GPUs"),
        Finding("data", "not there", "fail", "prepare"),
    ]
    with pytest.raises(ConfigError, match=r"^GPUs: none, and each trial takes 1: start nodes with GPUs$"):
        raise_first_failure(findings)
    assert capsys.readouterr().out.splitlines() == [
        "note  access: no token: start it with one",
        "fail  data: not there: prepare",
    ]
