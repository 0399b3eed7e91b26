"""`submit --install`, on a cluster whose nodes have everything but deelbo."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from bench.storage.records import RecordStore
from tests.cluster.conftest import ROOT, call, started
from tests.cluster.laptop import Laptop
from tests.helpers.tiny import TRIALS

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This code as pip installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """A machine with deelbo beside a cluster with none: its Python finds the packages of this one by links, but for
    ours."""
    folder = tmp_path_factory.mktemp("bare")
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(ray.__file__).parents[1].iterdir():
        if "deelbo" not in entry.name and entry.name not in ("pip", "__pycache__"):  # `venv` brings a pip of its own
            (packages / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=300)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "links.pth").write_text(f"{packages}\n")
    source = folder / "source"
    shutil.copytree(ROOT / "cluster", source / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    python = str(folder / "venv" / "bin" / "python")
    up = started(folder / "deelbo-cluster", {"PYTHONPATH": ""}, python, source)
    (folder / "laptop").mkdir()
    one = Laptop(folder / "laptop", up)
    yield one
    one.close()
    done = call("down", up.folder, {"PYTHONPATH": ""}, python, source)
    assert done.returncode == 0, done.stderr


def test_nodes_without_it_are_told_of(laptop: Laptop, tmp_path: Path) -> None:
    """Without --install nothing is submitted, and the line says what would help."""
    code, said = laptop.call("submit", laptop.config("bare"), "--storage", str(tmp_path / "storage"))
    assert code == 2, said
    assert "none on all 3 nodes" in said.splitlines()[-1]
    assert "--install" in said.splitlines()[-1]
    assert "no benchmark was submitted" in laptop.call("status")[1]


def test_pip_brings_it_to_every_node(laptop: Laptop, wheel: Path, tmp_path: Path) -> None:
    """The whole benchmark runs by what --install names, on workers that had no deelbo."""
    storage = tmp_path / "storage"
    code, said = laptop.call(
        "submit", laptop.config("brought"), "--storage", str(storage), "--install", f"deelbo[bench] @ {wheel.as_uri()}"
    )
    assert code == 0, said
    assert "--install puts it there" in said
    records = list(RecordStore(str(storage)).records())
    assert len(records) == TRIALS
    assert (storage / "report" / "figure2.png").is_file()


def test_what_pip_cannot_install(laptop: Laptop, tmp_path: Path) -> None:
    """Exit code 2, and pip's own line is the last."""
    missing = tmp_path / "nowhere" / "deelbo-9-py3-none-any.whl"
    storage = tmp_path / "storage"
    where = ["--storage", str(storage), "--unchecked", "--install", str(missing)]
    code, said = laptop.call("submit", laptop.config("missing"), *where)
    assert code == 2, said
    assert str(missing) in said.splitlines()[-1]
    assert not storage.exists()


def test_a_job_that_waits_is_stopped(laptop: Laptop, wheel: Path, tmp_path: Path) -> None:
    """While pip is at work there is nothing to signal yet: the job ends before its first trial, as stopped."""
    storage = tmp_path / "storage"
    # a fragment makes it another environment for Ray, which has kept the one from above
    fresh = f"deelbo[bench] @ {wheel.as_uri()}#fresh=1"
    where = ["--storage", str(storage), "--unchecked", "--detach", "--install", fresh]
    code, said = laptop.call("submit", laptop.config("waits"), *where)
    assert code == 0, said
    code, said = laptop.call("stop", "waits")
    assert code == 0
    assert "waits to start, and stops then" in said
    laptop.until("deelbo-waits-.* stopped", "status")
    assert laptop.call("status", "waits")[0] == 130
    assert not storage.exists()
