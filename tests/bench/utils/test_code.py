"""The hash of the code that a process runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench.utils.code import PACKAGES, describe_module, find_code, hash_code, hash_module, running_code
from tests.helpers.plugins import write_dataset

ROOT = Path(bench.__file__).resolve().parents[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Another place with the same code."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / "copy" / package, ignore=ignored)
    return tmp_path / "copy"


def test_a_copy_has_the_same_hash(copy: Path) -> None:
    """The hash depends on the sources' names and content alone: neither on their folder nor on compiled files."""
    assert running_code().folder == str(ROOT)
    (copy / "bench" / "__pycache__").mkdir()
    (copy / "bench" / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert hash_code(copy) == running_code().hash == hash_code(ROOT)


@pytest.mark.parametrize("change", ["changed", "renamed", "removed", "moved"])
def test_other_code_has_another_hash(copy: Path, change: str) -> None:
    """One changed line, another name, a missing file, and the same content in the other package."""
    file = copy / "deelbo" / "training" / "evaluation.py"
    if change == "changed":
        file.write_text(file.read_text().replace("return", "return  ", 1))
    elif change == "removed":
        file.unlink()
    else:
        file.rename(file.with_name("other.py") if change == "renamed" else copy / "bench" / "evaluation.py")
    assert hash_code(copy) != hash_code(ROOT)


def test_packages_of_two_folders_are_refused(copy: Path, tmp_path: Path) -> None:
    """A process that would import bench from one folder and deelbo from another says so, with both folders."""
    (copy / "bench").rename(tmp_path / "bench")
    (tmp_path / "copy" / "deelbo").rename(copy / "deelbo")
    script = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(copy)!r}]\n"
        "from bench.cli.main import main; sys.exit(main(['run', 'quickstart', '--storage', 'here']))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"deelbo-bench: bench is imported from {tmp_path} and deelbo from {copy}, expected")
    assert not (tmp_path / "here").exists()


def test_without_the_packages_there_is_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that has only a part of the packages reports none."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find_code() == {}


def test_the_code_of_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the version and the hash of a module's or a package's own files, wherever it lies; "none" without it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    write_dataset(tmp_path)
    (tmp_path / "my_package" / "part").mkdir(parents=True)
    for name in ("__init__", "part/nets"):
        (tmp_path / "my_package" / f"{name}.py").write_text("import no_such_module")
    plugins = (("my_data", "my-data"), ("my_package", ""), ("my_data", "no-such-data"), ("no_such_module", "my-data"))
    found = [describe_module(*plugin) for plugin in plugins]
    assert found[0] == f"1.0 ({hash_module('my_data')})"
    assert found[1] == f"({hash_module('my_package')})"
    assert found[2:] == [f"not installed ({hash_module('my_data')})", "none"]
    assert find_code(plugins[:2])["plugins"] == {"my_data": found[0], "my_package": found[1]}
    (tmp_path / "my_package" / "part" / "nets.py").write_text("import another_module")
    assert describe_module("my_package", "") != found[1]
