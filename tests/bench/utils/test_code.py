"""The hash of the code that a process runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench.utils.code import PACKAGES, find_code, hash_code, running_code

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
