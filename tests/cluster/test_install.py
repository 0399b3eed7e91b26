"""`submit --install`, on a cluster whose nodes have every package but deelbo."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from bench.storage.records import RecordStore
from tests.cluster.conftest import ROOT, cluster_command, start_cluster
from tests.cluster.laptop import Laptop
from tests.helpers.tiny import TRIALS

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this code."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """A computer with deelbo, beside a cluster whose Python finds this one's packages by links, except deelbo."""
    folder = tmp_path_factory.mktemp("bare")
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(ray.__file__).parents[1].iterdir():
        if "deelbo" not in entry.name and entry.name not in ("pip", "__pycache__"):  # `venv` installs its own pip
            (packages / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=300)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "links.pth").write_text(f"{packages}\n")
    source = folder / "source"
    shutil.copytree(ROOT / "cluster", source / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    python = str(folder / "venv" / "bin" / "python")
    cluster = start_cluster(folder / "deelbo-cluster", {"PYTHONPATH": ""}, python, source)
    (folder / "laptop").mkdir()
    made = Laptop(folder / "laptop", cluster)
    yield made
    made.close()
    done = cluster_command("down", cluster.folder, {"PYTHONPATH": ""}, python, source)
    assert done.returncode == 0, done.stderr


def test_nodes_without_deelbo(laptop: Laptop, tmp_path: Path) -> None:
    """Without --install nothing is submitted, and the error message names the option."""
    code, output = laptop.run("submit", laptop.write_config("bare"), "--storage", str(tmp_path / "storage"))
    assert code == 2, output
    assert "none on all 3 nodes" in output.splitlines()[-1]
    assert "--install" in output.splitlines()[-1]
    assert "no benchmark was submitted" in laptop.run("status")[1]


def test_pip_installs_deelbo_on_all_nodes(laptop: Laptop, wheel: Path, tmp_path: Path) -> None:
    """The benchmark runs to its report on workers that had no deelbo."""
    storage = tmp_path / "storage"
    options = ["--storage", str(storage), "--install", f"deelbo[bench] @ {wheel.as_uri()}"]
    code, output = laptop.run("submit", laptop.write_config("brought"), *options)
    assert code == 0, output
    assert "--install puts it there" in output
    assert len(list(RecordStore(str(storage)).records())) == TRIALS
    assert (storage / "report" / "figure2.png").is_file()


def test_a_requirement_that_pip_cannot_install(laptop: Laptop, tmp_path: Path) -> None:
    """The exit code is 2, and the last line is pip's own."""
    missing = tmp_path / "nowhere" / "deelbo-9-py3-none-any.whl"
    storage = tmp_path / "storage"
    options = ["--storage", str(storage), "--unchecked", "--install", str(missing)]
    code, output = laptop.run("submit", laptop.write_config("missing"), *options)
    assert code == 2, output
    assert str(missing) in output.splitlines()[-1]
    assert not storage.exists()


def test_a_job_is_stopped_while_pip_works(laptop: Laptop, wheel: Path, tmp_path: Path) -> None:
    """While pip works there is no process to signal; the job ends as stopped before its first trial."""
    storage = tmp_path / "storage"
    # Ray has kept the environment of the test above; the fragment makes this a different one
    fresh = f"deelbo[bench] @ {wheel.as_uri()}#fresh=1"
    options = ["--storage", str(storage), "--unchecked", "--detach", "--install", fresh]
    code, output = laptop.run("submit", laptop.write_config("waits"), *options)
    assert code == 0, output
    code, output = laptop.run("stop", "waits")
    assert code == 0
    assert "has not started yet, and stops when it does" in output
    laptop.run_until("deelbo-waits-.* stopped", "status")
    assert laptop.run("status", "waits")[0] == 130
    assert not storage.exists()
