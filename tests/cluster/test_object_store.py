"""`submit` to a storage on S3, on a cluster whose nodes get its address and keys only with the job."""

import re
from collections.abc import Iterator

import fsspec
import pytest

from bench.storage.records import RecordStore
from tests.cluster.laptop import Laptop
from tests.cluster.test_submit import laptop
from tests.helpers.object_store import KEYS, ObjectStore

__all__ = ["laptop"]  # a fixture
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]
METHODS = {
    "asha": {"trials": 4, "rungs": [0.25], "learning_rates": [0.1, 0.01], "weight_decays": [0.01, 0], "eta": 2},
    "de-elbo": {"learning_rates": [0.1, 0.01]},
}
VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_EC2_METADATA_DISABLED")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An S3 server on loopback, which s3:// of this process uses."""
    server = ObjectStore().listen()
    server.make()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield server
    server.hang_up()


def test_a_benchmark_with_rungs_runs_on_s3(laptop: Laptop, s3: ObjectStore) -> None:
    """With wrong keys the nodes are refused in one line; with the right ones all trials are stored, checkpoints pass
    from node to node, the report is there, and no output contains the keys."""
    options = ["--storage", "s3://lab/deep/one", "--tracking-uri", laptop.cluster.mlflow]
    options += [word for name in VARIABLES for word in ("--env", name)]
    name = laptop.write_config("faraway", methods=METHODS, training={"steps": 20, "batch_size": 50})
    wrong_key = s3.environment | {"AWS_ACCESS_KEY_ID": "key-of-another"}
    code, output = laptop.run("submit", name, *options, **wrong_key)
    assert code == 2
    assert re.search(r"s3://lab/deep/one is not writable \(.*\) on all 3 nodes", output), output
    assert "--env NAME" in output
    code, output = laptop.run("submit", name, *options, **s3.environment)
    assert code == 0, output
    store = RecordStore("s3://lab/deep/one")
    records = list(store.records())
    assert {record.spec.method for record in records} == {"asha", "de-elbo"}
    assert {record.state["handed_over_at_step"] for record in records if record.spec.since > 0} == {5}
    assert store.exists("report/report.html")
    assert not store.exists("lease-1.json")
    _, status = laptop.run("status", "faraway")
    assert "s3://lab/deep/one" in status
    assert all(secret not in output + status for secret in KEYS.values())
