"""`submit` to a cluster that requires a token: without one, with a wrong one, and with the right one."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import Cluster, cluster_command, start_cluster
from tests.helpers.tiny import CONTENT

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
TOKEN, WRONG_TOKEN = secrets.token_hex(32), secrets.token_hex(32)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one worker that requires TOKEN."""
    folder = tmp_path_factory.mktemp("guarded") / "deelbo-cluster"
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    yield start_cluster(folder, variables | {"WORKERS": "1"})
    done = cluster_command("down", folder, variables)
    assert done.returncode == 0, done.stderr


def submit(cluster: Cluster, folder: Path, **variables: str) -> tuple[int, str]:
    """Run `submit` with a home folder without a token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(folder), "RAY_API_SERVER_ADDRESS": cluster.address, **variables}
    (folder / "guarded.yaml").write_text(yaml.safe_dump(CONTENT | {"name": "guarded"}))
    command = [sys.executable, "-m", "bench", "submit", "guarded.yaml", "--storage", str(folder / "storage")]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("variables", "messages"),
    [({}, ["wants a token", "RAY_AUTH_TOKEN"]), ({"RAY_AUTH_TOKEN": WRONG_TOKEN}, ["refuses the token"])],
    ids=["none", "wrong"],
)
def test_without_the_token(guarded: Cluster, tmp_path: Path, variables: dict[str, str], messages: list[str]) -> None:
    """One line tells of the missing or refused token, without showing it."""
    code, output = submit(guarded, tmp_path, **variables)
    assert (code, output.count("\n")) == (2, 1), output
    assert all(message in output for message in messages), output
    assert WRONG_TOKEN not in output


@pytest.mark.parametrize("place", ["variable", "file"])
def test_with_the_token(guarded: Cluster, tmp_path: Path, place: str) -> None:
    """The token is read from the variable or the file that Ray's own client reads, and is in no output or log."""
    if place == "file":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    code, output = submit(guarded, tmp_path, **({"RAY_AUTH_TOKEN": TOKEN} if place == "variable" else {}))
    assert code == 0, output
    assert "9/9 done" in output
    assert TOKEN not in output
    folders = (guarded.folder, guarded.state.temporary)
    logs = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".db"]
    assert any("job-driver-deelbo-guarded" in path.name for path in logs)
    assert not [path for path in logs if TOKEN.encode() in path.read_bytes()]
