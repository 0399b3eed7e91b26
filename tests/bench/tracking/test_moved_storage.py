"""A storage that is moved, copied or handed on: nothing in it names its own place, and a copy leaves the original."""

import hashlib
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
from mlflow.tracking import MlflowClient

from bench.cli.main import main
from bench.storage.records import RecordStore
from tests.faults.processes import until

REPORT = "<html>the report</html>"


@pytest.fixture
def synced(storage: RecordStore, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished storage with a report, in its own MLflow database; its folder."""
    folder = Path(storage.url)
    (folder / "report").mkdir()
    (folder / "report" / "report.html").write_text(REPORT)
    monkeypatch.chdir(folder.parent)
    assert main(["sync", str(folder)]) == 0
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of every file by its name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def artifacts(folder: Path) -> list[Path]:
    return sorted(folder.glob("mlartifacts/tiny/*/artifacts/**/*.*"))


def test_nothing_names_the_storage(synced: Path) -> None:
    """No file of a storage holds the path of the storage, or of the folder that it was made from."""
    assert [path.name for path in artifacts(synced)] == ["benchmark.json", "report.html"]
    found = [path for path in synced.rglob("*") if path.is_file() and str(synced.parent).encode() in path.read_bytes()]
    assert found == []


@pytest.mark.parametrize("how", ["move", "copy"])
def test_a_later_sync_writes_below_the_new_place(synced: Path, how: str, tmp_path: Path) -> None:
    """A copy's report goes to the copy, and the original keeps every byte; where a storage was, nothing comes back."""
    new = tmp_path / "elsewhere" / "new"
    if how == "move":
        new.parent.mkdir()
        synced.rename(new)
    else:
        shutil.copytree(synced, new)
    before = contents(synced)
    (new / "report" / "report.html").write_text("another report")
    assert main(["sync", str(new)]) == 0
    assert [path.read_text() for path in artifacts(new)][1:] == ["another report"]
    assert contents(synced) == before
    assert len(MlflowClient(f"sqlite:///{new}/mlflow.db").search_runs(["1"])) == 10


def test_a_given_database_beside_the_storages_own(synced: Path, tmp_path: Path, storage: RecordStore) -> None:
    """A database that is named by --tracking-uri, and is not the storage's, keeps its artifacts beside itself."""
    (tmp_path / "other").mkdir()
    uri = f"sqlite:///{tmp_path}/other/mlflow.db"
    before = artifacts(synced)
    assert main(["sync", str(synced), "--tracking-uri", uri]) == 0
    assert artifacts(synced) == before
    (run,) = MlflowClient(uri).search_runs(["1"], "tags.`deelbo.role` = 'benchmark'")
    assert run.data.tags["deelbo.storage"] == storage.url
    assert [file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id, "report")] == ["report/report.html"]
    assert (tmp_path / "other" / "mlartifacts").is_dir()


@pytest.mark.slow
def test_links_open_from_the_new_place(synced: Path, tmp_path: Path) -> None:
    """`ui` of a moved storage serves the artifacts of its runs, whatever modules lie in the current folder."""
    new = synced.rename(tmp_path / "new")
    (tmp_path / "random.py").write_text("raise SystemExit('random of the current folder')")
    (run,) = MlflowClient(f"sqlite:///{new}/mlflow.db").search_runs(["1"], "tags.`deelbo.role` = 'benchmark'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-P", "-m", "bench", "ui", "new", "--port", address.rpartition(":")[2]]
    get = build_opener(ProxyHandler({})).open

    def answers() -> Any:
        try:
            return get(f"{address}/health", timeout=5).status == 200
        except OSError:
            return False

    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        until(answers, f"the page answers, see {tmp_path}/log", 90, pause=0.3)
        link = f"{address}/get-artifact?path=report/report.html&run_uuid={run.info.run_id}"
        assert get(link, timeout=20).read().decode() == REPORT
    finally:
        server.terminate()
        server.wait(30)
