"""`run` checks its images before a trial starts: complete, enough, and those of earlier trials."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.cli.main import main
from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.config.validation import check_data
from bench.exceptions import ConfigError, RecordError
from bench.ray_backend.tuner import _data_folder
from bench.scheduling.resume import check_same_inputs
from bench.storage.records import RecordStore
from deelbo.data import load_task


def benchmark_on(root: Path, **change: Any) -> Benchmark:
    content = {
        "name": "at-hand",
        "datasets": {"CIFAR-10": [100]},
        "backbones": {"resnet50": {}},
        "priors": ["l2-sp"],
        "seeds": [1001],
        "methods": {"de-elbo": {"learning_rates": [0.1]}},
        "training": {"image_size": 32},
        "data": str(root),
        "verify_data": False,
    }
    return parse_benchmark(content | change, "x")


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(str(tmp_path / "storage"))


def test_images_that_fit_are_accepted(data_root: Path) -> None:
    """Sizes that the folder has are accepted."""
    check_data(benchmark_on(data_root), ["CIFAR-10"])


def test_a_signal_while_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's own handler of SIGTERM raises SystemExit(15); the run is stopped as by any other signal."""

    def stop(session: object) -> None:
        raise SystemExit(15)

    monkeypatch.setattr("bench.session.run.RunSession.run", stop)
    assert main(["run", "quickstart", "--storage", str(tmp_path)]) == 130
    assert "stopped: the same command continues" in capsys.readouterr().out


def test_a_size_beyond_the_folder(data_root: Path) -> None:
    """An N that the dataset has and the folder does not is refused before any trial."""
    with pytest.raises(ConfigError, match=r"^CIFAR-10: n = 1000 is larger than the pool of 400"):
        check_data(benchmark_on(data_root, datasets={"CIFAR-10": [1000]}), ["CIFAR-10"])


def test_resources_are_checked_before_images(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial that this machine cannot hold is refused before images are decoded, which may take minutes."""
    nodes = [{"Resources": {"CPU": 2.0}, "Alive": True}]
    monkeypatch.setattr("bench.ray_backend.connect.ray_session", lambda *_: nullcontext())
    monkeypatch.setattr("bench.session.run._import_slow_modules", lambda: None)
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("bench.session.run.check_data", lambda *_: pytest.fail("decoded"))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(benchmark_on(data_root).content()))
    arguments = ["run", str(file), "--storage", str(tmp_path / "storage"), "--set", "resources.gpus_per_trial=1"]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no trial fits: it takes 1 CPU and 1 GPU of one node" in line
    assert "set resources.gpus_per_trial=0 to train on CPUs" in line


def test_an_image_that_cannot_be_decoded(data_root: Path, tmp_path: Path) -> None:
    """A damaged photograph is named before any trial."""
    shutil.copytree(data_root / "oxford-iiit-pet", tmp_path / "data" / "oxford-iiit-pet")
    victim = sorted((tmp_path / "data" / "oxford-iiit-pet" / "images").iterdir())[0]
    victim.write_bytes(b"no photograph")
    benchmark = benchmark_on(tmp_path / "data", datasets={"Oxford-IIIT_Pet": [370]})
    with pytest.raises(ValueError, match=victim.name) as caught:
        check_data(benchmark, ["Oxford-IIIT_Pet"])
    assert len(str(caught.value).splitlines()) == 1


def test_other_images_than_before(
    data_root: Path, store: RecordStore, tmp_path: Path, fake: Any, cifar10_writer: Callable[..., Path]
) -> None:
    """A storage whose trials saw other images is refused; with the same images, or none on record, it is not."""
    benchmark = benchmark_on(data_root)
    (spec,) = make_methods(benchmark)[0].initial_trials()
    seen = load_task("CIFAR-10", data_root, 32, verify=False).fingerprint
    records = [fake(spec), fake(spec, versions={"data": seen})]
    check_same_inputs(store, records, check_data(benchmark, ["CIFAR-10"]), {})
    cifar10_writer(tmp_path / "other", seed=1)
    with pytest.raises(RecordError, match=f"saw other data of CIFAR-10: {seen}, here "):
        check_same_inputs(store, records, check_data(benchmark_on(tmp_path / "other"), ["CIFAR-10"]), {})


def test_workers_are_told_a_whole_path(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers get an absolute path of a relative data folder, given or from the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEELBO_DATA", "mine")
    assert (
        _data_folder(benchmark_on(Path("data")), None)
        == _data_folder(benchmark_on(Path("data")), "a:1")
        == str(tmp_path / "data")
    )
    assert _data_folder(benchmark_on(data_root, data=None), None) == str(tmp_path / "mine")


def test_a_node_of_a_cluster_has_its_own_folder(data_root: Path) -> None:
    """Without a configured folder, the nodes of a cluster use that of their own environment."""
    assert _data_folder(benchmark_on(data_root, data=None), "head:6379") is None
