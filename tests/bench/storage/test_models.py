"""Models in a storage: whole or absent."""

import errno
import json
import uuid
from hashlib import sha256
from pathlib import Path

import pytest

from bench.storage.models import has_model, model_keys, read_model, remove_model, write_model
from bench.storage.records import RecordStore

FILES = {"a": b"weights", "z": b"tokens"}
DESCRIPTION = {"format": 1, "files": {name: sha256(content).hexdigest() for name, content in FILES.items()}}
MODEL = {"model.json": json.dumps(DESCRIPTION).encode(), **FILES}


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RecordStore:
    return RecordStore(str(tmp_path / "storage") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/a")


def test_a_model_is_written_read_and_removed(store: RecordStore) -> None:
    """Its description is written last and removed first, so that a part of a model is none."""
    order = []
    write_file, remove = store.write_file, store.remove
    store.write_file = lambda name, content: (order.append(name), write_file(name, content))[1]  # type: ignore[method-assign]
    store.remove = lambda name: (order.append(f"-{name}"), remove(name))[1]  # type: ignore[method-assign]
    for _ in range(2):
        write_model(store, "k", MODEL)
        assert order == ["-models/k/model.json", "models/k/a", "models/k/z", "models/k/model.json"]
        order.clear()
    assert (model_keys(store), has_model(store, "k"), has_model(store, "l")) == (["k"], True, False)
    assert read_model(store, "k") == MODEL
    remove_model(store, "k")
    assert order == ["-models/k/model.json", "-models/k/a", "-models/k/z"]
    assert (model_keys(store), has_model(store, "k")) == ([], False)
    remove_model(store, "k")


def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the record that follows has the room that the model took."""
    store, write_file = RecordStore(str(tmp_path / "storage")), RecordStore.write_file

    def full(self: RecordStore, name: str, content: bytes) -> None:
        if name.endswith("/z"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_file(self, name, content)

    monkeypatch.setattr(RecordStore, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_model(store, "k", MODEL)
    assert model_keys(store) == []


def test_a_damaged_file_is_named(store: RecordStore) -> None:
    """With its path in the storage."""
    write_model(store, "k", MODEL)
    store.write_file("models/k/z", b"other")
    with pytest.raises(ValueError, match=r"models/k/z is damaged, its hash is not that in model.json"):
        read_model(store, "k")
    store.remove("models/k/a")
    with pytest.raises(ValueError, match=r"models/k/a is missing"):
        read_model(store, "k")
