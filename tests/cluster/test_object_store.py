"""`submit` to a storage on S3, on a cluster whose nodes know nothing of it: its address and keys come with the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest

from bench.storage.records import RecordStore
from tests.cluster.test_submit import Laptop, config, laptop
from tests.helpers.object_store import KEYS, ObjectStore

__all__ = ["config", "laptop"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]
METHODS = {
    "asha": {"trials": 4, "rungs": [0.25], "learning_rates": [0.1, 0.01], "weight_decays": [0.01, 0], "eta": 2},
    "de-elbo": {"learning_rates": [0.1, 0.01]},
}
NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_EC2_METADATA_DISABLED")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An S3 on loopback, where s3:// leads in this process."""
    server = ObjectStore().listen()
    server.make()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield server
    server.hang_up()


def test_a_benchmark_with_rungs_is_submitted_to_s3(laptop: Laptop, config: Callable[..., str], s3: ObjectStore) -> None:
    """With other keys the nodes are refused in one line; with the right ones all trials are kept, runs are handed over
    from node to node, the report is there, and the key is in nothing that was said."""
    where = ["--storage", "s3://lab/deep/one", "--tracking-uri", laptop.cluster.mlflow]
    name = config("faraway", methods=METHODS, training={"steps": 20, "batch_size": 50})
    taken: list[Any] = [word for one in NAMES for word in ("--env", one)]
    code, said = laptop.call("submit", name, *where, *taken, **s3.environment | {"AWS_ACCESS_KEY_ID": "key-of-another"})
    assert code == 2
    assert "s3://lab/deep/one is not writable on all 3 nodes" in said
    assert "--env NAME" in said
    code, said = laptop.call("submit", name, *where, *taken, **s3.environment)
    assert code == 0, said
    store = RecordStore("s3://lab/deep/one")
    records = list(store.records())
    assert {record.spec.method for record in records} == {"asha", "de-elbo"}
    handed = [record.state["handed_over_at_step"] for record in records if record.spec.since > 0]
    assert handed
    assert set(handed) == {5}
    assert store.exists("report/report.html")
    assert not store.exists("lock.json")
    _, status = laptop.call("status", "faraway")
    assert "s3://lab/deep/one" in status
    assert all(secret not in said + status for secret in KEYS.values())
