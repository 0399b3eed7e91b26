"""A cluster that wants a token: none, a wrong one, and its own."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import Cluster, call, started
from tests.helpers.tiny import CONTENT

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
TOKEN = secrets.token_hex(32)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with one worker that lets in who has the token."""
    folder = tmp_path_factory.mktemp("guarded") / "deelbo-cluster"
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    yield started(folder, variables | {"WORKERS": "1"})
    done = call("down", folder, variables)
    assert done.returncode == 0, done.stderr


def submit(cluster: Cluster, folder: Path, **variables: str) -> tuple[int, str]:
    """`submit --detach`, from a home without a token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(folder), "RAY_API_SERVER_ADDRESS": cluster.address, **variables}
    (folder / "guarded.yaml").write_text(yaml.safe_dump(CONTENT | {"name": "guarded"}))
    command = [sys.executable, "-m", "bench", "submit", "guarded.yaml", "--storage", str(folder / "storage")]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )
    return done.returncode, done.stdout


def test_no_token(guarded: Cluster, tmp_path: Path) -> None:
    """One line says where it goes."""
    code, said = submit(guarded, tmp_path)
    assert (code, said.count("\n")) == (2, 1), said
    assert "wants a token" in said
    assert "RAY_AUTH_TOKEN" in said


def test_a_wrong_token(guarded: Cluster, tmp_path: Path) -> None:
    """One line says that it was refused; it is not shown."""
    wrong = secrets.token_hex(32)
    code, said = submit(guarded, tmp_path, RAY_AUTH_TOKEN=wrong)
    assert (code, said.count("\n")) == (2, 1), said
    assert "refuses the token" in said
    assert wrong not in said


@pytest.mark.parametrize("where", ["variable", "file"])
def test_the_right_token(guarded: Cluster, tmp_path: Path, where: str) -> None:
    """In a variable or in the file where Ray's own client looks; it is nowhere in what is said, nor in Ray's logs."""
    variables = {"RAY_AUTH_TOKEN": TOKEN} if where == "variable" else {}
    if where == "file":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    code, said = submit(guarded, tmp_path, **variables)
    assert code == 0, said
    assert "9/9 done" in said
    assert TOKEN not in said
    places = (guarded.folder, Path(guarded.state.temporary))
    logs = [path for place in places for path in place.rglob("*") if path.is_file() and path.suffix != ".db"]
    assert any("job-driver-deelbo-guarded" in path.name for path in logs)
    assert not [path for path in logs if TOKEN.encode() in path.read_bytes()]
