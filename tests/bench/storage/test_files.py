"""Atomic files in a folder or behind a URL, whatever the folder's name."""

import errno
import os
import uuid
from pathlib import Path

import pytest

from bench.storage.files import Storage


@pytest.fixture(params=["folder", "memory", "file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """The same behavior on a folder, a file:// URL, and object stores."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return Storage(f"s3://lab/{uuid.uuid4().hex}/a b")
    urls = {"folder": str(tmp_path / "a"), "memory": f"memory://{uuid.uuid4().hex}/a", "file": f"file://{tmp_path}/a"}
    return Storage(urls[request.param])


def test_a_file_is_written_and_removed(storage: Storage) -> None:
    """A file has the content that was written last; a missing or removed file reads as None."""
    assert storage.read_file("b/c") is None
    storage.write_file("b/c", b"1")
    storage.write_file("b/c", b"2")
    assert storage.read_file("b/c") == b"2"
    assert (storage.exists("b/c"), storage.exists("b"), storage.exists("d")) == (True, True, False)
    for _ in range(2):  # removing a missing file is no error
        storage.remove("b/c")
        assert storage.read_file("b/c") is None


def test_names_are_in_order(storage: Storage) -> None:
    """The names of a folder's files are sorted; a folder that does not exist has none."""
    for name in ("b/2", "b/1", "c"):
        storage.write_file(name, b"x")
    assert storage.names("b") == ["b/1", "b/2"]
    assert storage.names() == ["b", "c"]
    assert storage.names("d") == []
    assert list(storage.read_files(["b/2", "d", "b/1"])) == [("b/2", b"x"), ("b/1", b"x")]


def test_a_quarantined_file_is_kept(storage: Storage) -> None:
    """A quarantined file has its content under its new name; two of one name both stay."""
    moved = []
    for content in (b"1", b"2"):
        storage.write_file("b/c.json", content)
        moved.append(storage.quarantine("b/c.json"))
        assert storage.read_file("b/c.json") is None
    assert [storage.read_file(name) for name in moved] == [b"1", b"2"]
    assert all(name.startswith("damaged/") and name.endswith("b-c.json") for name in moved)


@pytest.mark.parametrize("name", ["a::b", "50%", "what?", "#1", "a*[b]"])
def test_any_name_of_a_folder_will_do(tmp_path: Path, name: str) -> None:
    """Characters that mean something in a URL mean nothing in a folder's name."""
    storage = Storage(str(tmp_path / name))
    storage.write_file("b/c", b"x")
    assert (tmp_path / name / "b" / "c").read_bytes() == b"x"
    assert list(storage.read_files(storage.names("b"))) == [("b/c", b"x")]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails halfway leaves the old file as it was, and nothing beside it."""
    storage = Storage(str(tmp_path))
    storage.write_file("b", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            storage.write_file("b", b"new")
    assert storage.read_file("b") == b"old"
    assert os.listdir(tmp_path) == ["b"]
