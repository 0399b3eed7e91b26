"""A storage on moto's S3: other processes' writes are seen, outages are retried, errors are one line."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from unittest.mock import Mock

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from bench.exceptions import StorageError
from bench.ray_backend.trainable import shares_storage
from bench.storage import object_store as remote
from bench.storage.lock import StorageLock
from bench.storage.object_store import OutageTimer
from bench.storage.records import RecordStore
from bench.utils.text import redact_url

if TYPE_CHECKING:
    from tests.helpers.object_store import ObjectStore

Anew = Callable[[], RecordStore]


@pytest.fixture
def anew(s3: ObjectStore) -> Anew:
    """Make a storage as a new process would: without cached listings."""
    url = f"s3://lab/{uuid.uuid4().hex}/a"

    def make() -> RecordStore:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        return RecordStore(url)

    return make


def test_writes_of_others_are_seen_at_once(s3: ObjectStore, anew: Anew) -> None:
    """A listing is never out of date, although fsspec caches it."""
    here, there = anew(), s3.client()
    folder = here.root.removeprefix("lab/")
    here.write_file("records/a.json", b"1")
    here.write_file("benchmark.json", b"{}")
    assert (here.names(), here.names("records")) == (["benchmark.json", "records"], ["records/a.json"])
    for name in ("records/b.json", "rungs/c.pt"):
        there.put_object(Bucket="lab", Key=f"{folder}/{name}", Body=b"22")
    there.delete_object(Bucket="lab", Key=f"{folder}/benchmark.json")
    assert here.read_file("records/b.json") == b"22"
    assert (here.exists("rungs"), here.exists("rungs/c.pt"), here.exists("benchmark.json")) == (True, True, False)
    assert (here.names("rungs"), here.names("records")) == (["rungs/c.pt"], ["records/a.json", "records/b.json"])


def test_a_folder_made_on_a_web_page_is_empty(anew: Anew) -> None:
    """A folder that was made on the provider's web page, an empty file of its own name, can become a storage."""
    store = anew()
    store.write_file("", b"")
    assert store.names() == []
    assert store.read_benchmark() is None


def test_a_file_is_one_request(s3: ObjectStore, anew: Anew) -> None:
    """Reading a file, or listing a folder, takes one request."""
    store = anew()
    names = [f"records/{i}.json" for i in range(5)]
    for name in names:
        store.write_file(name, b"x")
    s3.asked.clear()
    assert len(list(store.read_files(names))) == 5
    assert s3.asked == {"GET": 5}
    assert store.names("records") == names
    assert s3.asked == {"GET": 6}


def refused(store: RecordStore, call: Callable[[RecordStore], object]) -> str:
    with pytest.raises(StorageError) as caught:
        call(store)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(redact_url(store.url))
    return str(caught.value)


CALLS = [
    lambda store: store.names("records"),
    lambda store: store.read_file("id"),
    lambda store: store.write_file("id", b"x"),
    lambda store: list(store.read_files(["id"])),
]


def test_other_keys_are_refused(anew: Anew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that are denied are named as such, never shown, and not retried."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-another")
    store = anew()
    store.outage_timer = OutageTimer(60)
    for call in CALLS:
        message = refused(store, call)
        assert "AWS_ACCESS_KEY_ID" in message
        assert "key-of-another" not in message


def test_missing_credentials_are_named(anew: Anew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials the message says what to set."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "give credentials" in refused(anew(), CALLS[1])


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_named() -> None:
    """A bucket that does not exist is not an empty storage."""
    for call in CALLS[1:]:
        assert "make the bucket" in refused(RecordStore("s3://nobody-made-this/x"), call)


def test_an_unreachable_server_is_named(s3: ObjectStore, anew: Anew) -> None:
    """Without an outage timer an unreachable server is an error of one line at once."""
    store = anew()
    s3.hang_up()
    try:
        for call in CALLS:
            assert "AWS_ENDPOINT_URL" in refused(store, call)
    finally:
        s3.listen()


def test_an_outage_is_waited_for(s3: ObjectStore, anew: Anew, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an outage timer calls go on once the server is back, and one line says that they wait."""
    monkeypatch.setattr(remote, "RETRY_SECONDS", 0.05)
    store, said = anew(), list[str]()

    def say(words: str) -> None:
        said.append(words)
        s3.listen()

    store.outage_timer = OutageTimer(30, say)
    store.write_file("a", b"1")
    s3.hang_up()
    store.write_file("a", b"2")
    assert store.read_file("a") == b"2"
    assert len(said) == 1
    assert "retrying" in said[0]
    s3.hang_up()
    assert dict(store.read_files(["a", *"bcdefgh"])) == {"a": b"2"}
    assert len(said) == 2  # once for all that waited


def test_an_outage_that_is_too_long_is_an_error(s3: ObjectStore, anew: Anew, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stays away is an error after the maximum outage; a lock can still be left."""
    monkeypatch.setattr(remote, "RETRY_SECONDS", 0.05)
    store = anew()
    try:
        with StorageLock(store):
            store.outage_timer = OutageTimer(0.2)
            s3.hang_up()
            refused(store, CALLS[2])
            since = time.monotonic()
            refused(store, CALLS[2])  # the same outage, whose time is over
            assert time.monotonic() - since < 0.2
    finally:
        s3.listen()
    assert store.exists("lease-1.json")  # it could not be removed; the next run looks its process up


class Away(AbstractFileSystem):
    """An unreachable file system with fsspec's own `exists` and `isdir`, which return False for it."""

    cachable = False
    info = ls = Mock(side_effect=ConnectionError("nobody there"))


@pytest.fixture
def _away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **options: (Away(), "lab/x"))


@pytest.mark.usefixtures("_away")
def test_an_outage_is_no_empty_storage() -> None:
    """An unreachable storage raises an error instead of looking empty or deleted."""
    store = RecordStore("gs://lab/x")
    for call in (store.names, store.exists):
        with pytest.raises(StorageError, match="nobody there"):
            call()


@pytest.mark.usefixtures("_away")
def test_waiting_can_be_stopped() -> None:
    """A call that waits in another thread fails at once, and no later call waits."""
    store, waits = RecordStore("gs://lab/x"), threading.Event()
    store.outage_timer = OutageTimer(60, lambda words: waits.set())
    since = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(store.exists)
        assert waits.wait(10)
        store.stop_waiting()
        with pytest.raises(StorageError):
            asked.result()
        with pytest.raises(StorageError):
            store.exists()
    assert time.monotonic() - since < 10


@pytest.mark.usefixtures("_away")
def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """No message about an outage contains the password of a URL."""
    monkeypatch.setattr(remote, "RETRY_SECONDS", 0.01)
    store, said = RecordStore("sftp://me:secret@h/x"), list[str]()
    store.outage_timer = OutageTimer(0.02, said.append)
    assert "secret" not in refused(store, lambda one: one.exists()) + "".join(said)
    assert said


def test_a_worker_without_access_sends_its_records(anew: Anew, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without access does not count as sharing the storage, so the driver writes its records."""
    with StorageLock(anew()) as lock:
        assert shares_storage(anew(), lock.token) is True
        assert shares_storage(anew(), lock.token[::-1]) is False
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-another")
        assert shares_storage(anew(), lock.token) is None  # tried again with the next trial


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without s3fs the message says what to install."""
    monkeypatch.setattr(fsspec.core, "url_to_fs", Mock(side_effect=ImportError("Install s3fs to access S3")))
    assert "pip install 'deelbo[s3]'" in refused(RecordStore("s3://lab/x"), CALLS[1])


@pytest.mark.parametrize("url", ["s3://lab", "s3://lab/", "s3:///x", "s3://lab/a/../b", "gs://lab/a//b"])
def test_a_url_must_name_a_place(url: str) -> None:
    """A bucket alone, and names that S3 and its clients read differently, are refused."""
    with pytest.raises(ValueError, match=r"(is incomplete|invalid in object stores): expected .*://BUCKET/NAME"):
        RecordStore(url)


def test_an_unknown_scheme_is_named() -> None:
    """A URL that fsspec cannot open is an error in one line."""
    assert "s3://BUCKET/NAME" in refused(RecordStore("s4://lab/a"), CALLS[1])
