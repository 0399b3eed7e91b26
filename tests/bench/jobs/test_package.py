"""What a job takes along, and what is refused before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.config.benchmark import Benchmark
from bench.config.loading import load_benchmark, parse_benchmark
from bench.exceptions import ConfigError
from bench.jobs import package as packing
from bench.jobs.package import facts, pack, requirement, variables


@pytest.fixture
def resnet50(content: dict[str, Any]) -> Callable[..., Benchmark]:
    """A benchmark of a ResNet-50 with settings of its own."""

    def make(**settings: Any) -> Benchmark:
        backbone = {"backbone": "resnet50", "dataset": "CIFAR-10", "priors": ["ptyl"]}
        changed = {key: value for key, value in (content | backbone).items() if key != "backbone"}
        return parse_benchmark(changed | {"backbones": {"resnet50": settings}}, "test")

    return make


def test_a_job_reads_the_benchmark_that_was_submitted(tmp_path: Path, tiny: Benchmark) -> None:
    """With all that --set changed, by a file that `run` takes."""
    pack(tmp_path, tiny, from_source=False)
    assert load_benchmark(str(tmp_path / "benchmark.json")) == tiny
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark.json"]


def test_a_relative_file_of_weights_goes_along_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet50: Callable[..., Benchmark]
) -> None:
    """So that the benchmark's file needs no change."""
    here, folder = tmp_path / "here", tmp_path / "job"
    (here / "priors").mkdir(parents=True)
    folder.mkdir()
    (here / "priors" / "swag.pt").write_bytes(b"weights")
    monkeypatch.chdir(here)
    pack(folder, resnet50(ptyl="priors/swag.pt", weights="/on/the/cluster.pt"), from_source=False)
    assert (folder / "priors" / "swag.pt").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.pt", "no such file here"),
        ("../swag.pt", "in or below"),
        ("benchmark.json", "by a name other than"),
        ("large.pt", "takes 0 along"),
    ],
)
def test_a_file_that_cannot_go_along_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet50: Callable[..., Benchmark], name: str, words: str
) -> None:
    """In one line that names its key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packing, "LARGEST", 10)
    (tmp_path / "large.pt").write_bytes(bytes(11))
    with pytest.raises(ConfigError, match=words) as caught:
        pack(tmp_path, resnet50(ptyl=name), from_source=False)
    assert "backbones.resnet50.ptyl" in str(caught.value)


def test_all_together_may_be_too_much(tmp_path: Path, tiny: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the whole folder is looked at before Ray refuses it."""
    monkeypatch.setattr(packing, "LARGEST", 1000)
    with pytest.raises(ConfigError, match="MiB"):
        pack(tmp_path, tiny, from_source=True)


def test_from_source_takes_code_and_presets_along(tmp_path: Path, tiny: Benchmark) -> None:
    """What `python -m bench` needs, and nothing that Python made of it."""
    pack(tmp_path, tiny, from_source=True)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {
        "bench/__main__.py",
        "bench/config/presets/poster.yaml",
        "deelbo/data/__init__.py",
        "bench/jobs/entrypoint.sh",
    } <= names
    assert not [name for name in names if name.endswith(".pyc")]


def test_a_relative_data_folder_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    """It means another place on each node."""
    with pytest.raises(ConfigError, match="data = 'images'"):
        pack(tmp_path, parse_benchmark(content | {"data": "images"}, "test"), from_source=False)


def test_passwords_go_by_environment_alone(tiny: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is listed of a job holds them; MLflow's client finds them where it looks."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-key")
    uri = "https://lab:s%40crt@mlflow.example:5000/x"
    taken = variables(uri, ["AWS_SECRET_ACCESS_KEY"])
    assert taken["MLFLOW_TRACKING_USERNAME"] == "lab"
    assert taken["MLFLOW_TRACKING_PASSWORD"] == "s@crt"
    assert taken["DEELBO_TRACKING_URI"] == "https://mlflow.example:5000/x"
    assert taken["AWS_SECRET_ACCESS_KEY"] == "a-key"
    assert taken["MLFLOW_TRACKING_TOKEN"] == "a-token"
    listed = json.dumps(facts(tiny, "/shared", uri))
    assert not any(word in listed for word in ("s%40crt", "s@crt", "a-token", "a-key"))


def test_a_user_without_a_password_leaves_the_one_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address may name the user alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "kept")
    assert variables("http://lab@mlflow:5000", [])["MLFLOW_TRACKING_PASSWORD"] == "kept"


def test_the_code_that_goes_along_has_a_hash(tmp_path: Path, tiny: Benchmark) -> None:
    """By which a second submit knows whether it means the same job; without code there is none."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    hashes = [pack(tmp_path / "a", tiny, True), pack(tmp_path / "b", tiny, True), pack(tmp_path / "c", tiny, False)]
    assert hashes[0] == hashes[1] != hashes[2] == ""


def test_the_clusters_own_token_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nodes have theirs."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-cluster")
    assert "of-the-cluster" not in variables(None, []).values()


@pytest.mark.parametrize("name", ["NOT_SET_ANYWHERE", "A=b", "", "A B"])
def test_a_variable_that_is_not_set_is_refused(name: str) -> None:
    """A value after = is not repeated: it may be a secret."""
    with pytest.raises(ConfigError, match="no such variable") as caught:
        variables(None, [name])
    assert "b'" not in str(caught.value)


def test_install_asks_for_this_version_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """By pip's requirement."""
    monkeypatch.setattr(packing, "version", lambda name: "1.2.3")
    assert requirement(None) == {}
    assert requirement("")["pip"] == ["deelbo[bench,methods]==1.2.3"]
    assert requirement("", "s3://lab/x")["pip"] == ["deelbo[bench,methods,s3]==1.2.3"]
    wanted = "deelbo[bench] @ git+https://example.org/x"
    assert requirement(wanted) == {"pip": [wanted], "config": {"setup_timeout_seconds": 3600}}


def test_a_user_is_no_password() -> None:
    """Of git over SSH."""
    assert requirement("deelbo @ git+ssh://git@example.org/x.git")["pip"]


@pytest.mark.parametrize("where", ["git+https://me:secret@example.org/x", "https://secret@example.org/x.whl"])
def test_a_password_in_install_is_refused(where: str) -> None:
    """It would be among what the cluster lists of a job; the line does not repeat it."""
    with pytest.raises(ConfigError, match="has a password in it") as caught:
        requirement(f"deelbo @ {where}")
    assert "secret" not in str(caught.value)
