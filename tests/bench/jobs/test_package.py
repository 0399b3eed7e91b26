"""The files, variables and metadata of a job, and what is refused before anything is sent."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deelbo
from bench.config.benchmark import Benchmark
from bench.config.loading import load_benchmark, parse_benchmark
from bench.exceptions import ConfigError
from bench.jobs import package
from bench.jobs.package import (
    job_environment,
    job_metadata,
    pack_job,
    pip_runtime_env,
    plugin_files,
    plugin_requirements,
)
from deelbo.data import DATASETS
from deelbo.plugins import Plugin


@pytest.fixture
def resnet50(content: dict[str, Any]) -> Callable[..., Benchmark]:
    """Makes a benchmark of a ResNet-50 with the given settings of the backbone."""

    def make(**settings: Any) -> Benchmark:
        backbone = {"backbone": "resnet50", "dataset": "CIFAR-10", "priors": ["ptyl"]}
        changed = {key: value for key, value in (content | backbone).items() if key != "backbone"}
        return parse_benchmark(changed | {"backbones": {"resnet50": settings}}, "test")

    return make


def test_job_reads_the_submitted_benchmark(tmp_path: Path, tiny: Benchmark) -> None:
    """The packed file is a configuration that `run` loads as the same benchmark; nothing else is packed."""
    pack_job(tmp_path, tiny, from_source=False)
    assert load_benchmark(str(tmp_path / "benchmark.json")) == tiny
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark.json"]


def test_relative_weight_file_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet50: Callable[..., Benchmark]
) -> None:
    """A relative path is packed under the same name; an absolute one belongs to the cluster."""
    here, folder = tmp_path / "here", tmp_path / "job"
    (here / "priors").mkdir(parents=True)
    folder.mkdir()
    (here / "priors" / "swag.pt").write_bytes(b"weights")
    monkeypatch.chdir(here)
    pack_job(folder, resnet50(ptyl="priors/swag.pt", weights="/on/the/cluster.pt"), from_source=False)
    assert (folder / "priors" / "swag.pt").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.pt", "expected an existing file"),
        ("../swag.pt", "in or below this folder"),
        ("benchmark.json", "by a name other than"),
        ("large.pt", "Ray accepts 0"),
    ],
)
def test_weight_file_that_cannot_be_packed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet50: Callable[..., Benchmark], name: str, message: str
) -> None:
    """A file that is missing, outside this folder, of a reserved name or too large is refused with its key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(package, "MAX_BYTES", 10)
    (tmp_path / "large.pt").write_bytes(bytes(11))
    with pytest.raises(ConfigError, match=message) as caught:
        pack_job(tmp_path, resnet50(ptyl=name), from_source=False)
    assert "backbones.resnet50.ptyl" in str(caught.value)


def test_from_source_packs_code_and_presets(tmp_path: Path, tiny: Benchmark) -> None:
    """The code that `python -m bench` needs is packed without compiled files, and has a reproducible hash."""
    hashes = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        hashes.append(pack_job(tmp_path / name, tiny, from_source=True))
    assert hashes[0] == hashes[1] != ""
    assert pack_job(tmp_path, tiny, from_source=False) == ""
    names = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file()}
    presets, script = "bench/config/presets/poster.yaml", "bench/jobs/entrypoint.sh"
    assert {"bench/__main__.py", presets, "deelbo/data/__init__.py", script} <= names
    assert not [name for name in names if name.endswith(".pyc")]


FIND = """
from bench.config.loading import load_benchmark
from bench.config.plugins import used_plugins
from bench.config.validation import check
print(*used_plugins(check(load_benchmark("benchmark.json"))), sep=", ")
"""


def test_from_source_packs_plugins(tmp_path: Path, content: dict[str, Any], plugins: Path) -> None:
    """The plug-ins that a benchmark uses are found in the job's folder, and are part of the hash of its code."""
    methods = {"thumb": {"method": "rule-of-thumb"}}
    benchmark = parse_benchmark(content | {"dataset": "rows", "methods": methods}, "test")
    hashes = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        hashes.append(pack_job(tmp_path / name, benchmark, from_source=True))
        if name == "b":
            (plugins / "my_data.py").write_text((plugins / "my_data.py").read_text() + "# changed\n")
    assert hashes[0] == hashes[1] != hashes[2]
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'a')!r}){FIND}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path / "a", capture_output=True, text=True, check=False
    )
    assert done.stdout == "the plug-in my-data 1.0, the plug-in my-method 1.0\n", done.stderr
    packed = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"my_data.py", "my_data-1.0.dist-info", "my_method.py"} <= packed
    (tmp_path / "d").mkdir()
    pack_job(tmp_path / "d", parse_benchmark(content, "test"), from_source=True)
    assert not list((tmp_path / "d").glob("my_*"))


def test_all_modules_of_an_installed_plugin_are_packed(plugins: Path) -> None:
    """Packages with their data are packed whole, and so are other modules that the distribution lists."""
    (plugins / "my_data.py").unlink()
    names = ["my_data/__init__.py", "my_data/numbers.csv", "helper_of_mine.py", "__editable___finder.py"]
    for name in names:
        (plugins / name).parent.mkdir(exist_ok=True)
        (plugins / name).write_text("ENTRY = 1")
    (plugins / "my_data-1.0.dist-info" / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    (plugin,) = [plugin for plugin in [DATASETS.plugin("rows")] if plugin is not None]
    info = [f"my_data-1.0.dist-info/{name}" for name in ("METADATA", "entry_points.txt")]
    assert sorted(plugin_files([plugin])) == sorted([*names[:3], *info])


def test_the_packages_that_a_plugin_needs(plugins: Path) -> None:
    """They are those that it needs in any case, by name, beside deelbo itself."""
    needs = ["deelbo>=0.1", "timm", "efficientnet-lite (>=1)", "scipy ; extra == 'more'"]
    with (plugins / "my_data-1.0.dist-info" / "METADATA").open("a") as file:
        file.writelines(f"Requires-Dist: {requirement}\n" for requirement in needs)
    assert plugin_requirements(Plugin("my-data", "1.0", "my_data")) == ["efficientnet-lite", "timm"]
    assert plugin_requirements(Plugin("", "", "my_data")) == []


def test_an_imported_package_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package from which a network is imported has no distribution: its files go along, and pip gets no name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "nets_of_mine").mkdir()
    (tmp_path / "nets_of_mine" / "__init__.py").write_text("")
    plugin = Plugin("", "", "nets_of_mine")
    assert plugin_files([plugin]) == {"nets_of_mine/__init__.py": b""}
    assert pip_runtime_env("deelbo", None, [plugin])["pip"] == ["deelbo"]
    with pytest.raises(ConfigError, match="the package no_such_nets has no module no_such_nets"):
        plugin_files([Plugin("", "", "no_such_nets")])


def test_a_plugin_that_is_too_large(
    tmp_path: Path, content: dict[str, Any], plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, with what to do."""
    monkeypatch.setattr(package, "MAX_BYTES", 10)
    with pytest.raises(ConfigError, match=r"the plug-in my-data 1\.0: .* more than .* install them on the nodes"):
        pack_job(tmp_path, parse_benchmark(content | {"dataset": "rows"}, "test"), from_source=True)


def test_relative_data_folder_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    """A relative data folder would mean another location on each node."""
    with pytest.raises(ConfigError, match="data = 'images'"):
        pack_job(tmp_path, parse_benchmark(content | {"data": "images"}, "test"), from_source=False)


def test_passwords_are_in_the_environment_only(tiny: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials are passed as variables that MLflow's client reads, and never as metadata of the job."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-key")
    uri = "https://lab:s%40crt@mlflow.example:5000/x"
    env = job_environment(uri, ["AWS_SECRET_ACCESS_KEY"])
    assert env["MLFLOW_TRACKING_USERNAME"] == "lab"
    assert env["MLFLOW_TRACKING_PASSWORD"] == "s@crt"
    assert env["DEELBO_TRACKING_URI"] == "https://mlflow.example:5000/x"
    assert env["AWS_SECRET_ACCESS_KEY"] == "a-key"
    assert env["MLFLOW_TRACKING_TOKEN"] == "a-token"
    listed = json.dumps(job_metadata(tiny, "/shared", uri, {}))
    assert not any(secret in listed for secret in ("s%40crt", "s@crt", "a-token", "a-key"))


def test_user_without_password_keeps_the_password_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URI may contain the user name alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "kept")
    assert job_environment("http://lab@mlflow:5000", [])["MLFLOW_TRACKING_PASSWORD"] == "kept"


def test_token_of_the_cluster_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's nodes have a token of their own."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-cluster")
    assert "of-the-cluster" not in job_environment(None, []).values()


@pytest.mark.parametrize("name", ["NOT_SET_ANYWHERE", "A=b", "", "A B"])
def test_unset_variable_is_refused(name: str) -> None:
    """The message does not repeat a value after =, which may be a secret."""
    with pytest.raises(ConfigError, match="no such variable") as caught:
        job_environment(None, [name])
    assert "b'" not in str(caught.value)


@pytest.mark.parametrize(
    ("install", "storage", "pip"),
    [
        ("", None, "deelbo[bench,methods]==1.2.3"),
        ("", "s3://lab/x", "deelbo[bench,methods,s3]==1.2.3"),
        ("deelbo[bench] @ git+https://example.org/x", None, "deelbo[bench] @ git+https://example.org/x"),
        ("deelbo @ git+ssh://git@example.org/x.git", None, "deelbo @ git+ssh://git@example.org/x.git"),
    ],
)
def test_requirement_of_install(install: str, storage: str | None, pip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is this version of deelbo with what the storage needs; a user name is allowed."""
    monkeypatch.setattr(deelbo, "__version__", "1.2.3")
    assert pip_runtime_env(None) == {}
    assert pip_runtime_env(install, storage) == {"pip": [pip], "config": {"setup_timeout_seconds": 3600}}
    with_text = pip_runtime_env(install, storage, has_texts=True)["pip"]
    assert with_text == [pip.replace("]==", ",text]==")]
    plugin = Plugin("my-data", "1.0", "my_data")
    assert pip_runtime_env(install, storage, [plugin])["pip"] == [pip, "my-data==1.0"]


@pytest.mark.parametrize("where", ["git+https://me:secret@example.org/x", "https://secret@example.org/x.whl"])
def test_password_in_install_is_refused(where: str) -> None:
    """A password would be listed with the job; the message does not repeat it."""
    with pytest.raises(ConfigError, match="has a password in it") as caught:
        pip_runtime_env(f"deelbo @ {where}")
    assert "secret" not in str(caught.value)
