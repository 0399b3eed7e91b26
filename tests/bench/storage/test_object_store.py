"""A storage on S3, as moto plays it: what others write is seen, outages are waited for, errors are one line."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from bench.config.benchmark import Benchmark, make_methods
from bench.exceptions import RecordError, StorageError
from bench.ray_backend.trainable import shares_storage
from bench.storage import retry as remote
from bench.storage.lock import StorageLock
from bench.storage.records import RecordStore
from bench.storage.retry import Patience
from bench.trials.record import TrialRecord
from bench.utils.text import redact_url

if TYPE_CHECKING:
    from tests.helpers.object_store import ObjectStore

Anew = Callable[[], RecordStore]


@pytest.fixture
def anew(s3: ObjectStore) -> Anew:
    """Makes a storage as a process would that begins: without what this one remembers of it."""
    url = f"s3://lab/{uuid.uuid4().hex}/a"

    def make() -> RecordStore:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        return RecordStore(url)

    return make


def test_what_others_write_is_seen_at_once(s3: ObjectStore, anew: Anew) -> None:
    """A folder that was listed before is no reason to miss what another process has written or removed since."""
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


def test_a_folder_of_the_page_is_empty(anew: Anew) -> None:
    """A folder that was made on the provider's page, an empty file of its own name, can be taken."""
    store = anew()
    store.write_file("", b"")
    assert store.names() == []
    assert store.read_benchmark() is None


def test_a_file_is_one_request(s3: ObjectStore, anew: Anew) -> None:
    """To read one, or to list a folder, S3 is asked once."""
    store = anew()
    names = [f"records/{i}.json" for i in range(5)]
    for name in names:
        store.write_file(name, b"x")
    s3.asked.clear()
    assert len(list(store.read_files(names))) == 5
    assert s3.asked == {"GET": 5}
    assert store.names("records") == names
    assert s3.asked == {"GET": 6}


def test_a_damaged_record_is_set_aside(anew: Anew, tiny: Benchmark, fake: Callable[..., TrialRecord]) -> None:
    """It is moved to `damaged` with its series, and the others are read."""
    store = anew()
    spec = make_methods(tiny)[0].ask()
    assert spec is not None
    whole, broken = fake(spec), fake(replace(spec, seed=1002))
    for record in (whole, broken):
        store.write(record, [{"epoch": 1.0}])
    store.write_file(f"records/{broken.key}.json", b"{ damaged")
    records, lines = store.whole_records()
    assert [record.key for record in records] == [whole.key]
    assert list(lines) == [broken.key]
    assert len(store.names("damaged")) == 2
    assert (store.names("records"), store.names("series")) == (
        [f"records/{whole.key}.json"],
        [f"series/{whole.key}.json"],
    )


def test_one_run_at_a_time(anew: Anew) -> None:
    """A second owner is refused while the first one works, and none is left after."""
    with StorageLock(anew()), pytest.raises(RecordError, match="in use by another `run`"):
        StorageLock(anew()).__enter__()
    assert anew().names() == []


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
    """Credentials that do not fit are named as such, whatever is asked, and never shown; patience changes nothing."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-another")
    store = anew()
    store.patience = Patience(60)
    for call in CALLS:
        said = refused(store, call)
        assert "AWS_ACCESS_KEY_ID" in said
        assert "key-of-another" not in said


def test_no_keys_at_all(anew: Anew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are none, that is said, and what to set."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "give credentials" in refused(anew(), CALLS[1])


@pytest.mark.usefixtures("s3")
def test_no_such_bucket() -> None:
    """A bucket that is not there is not an empty storage."""
    for call in CALLS[1:]:
        assert "make the bucket" in refused(RecordStore("s3://nobody-made-this/x"), call)


def test_nobody_listens(s3: ObjectStore, anew: Anew) -> None:
    """A server that is away is an error of one line at once, for who begins."""
    store = anew()
    s3.hang_up()
    try:
        for call in CALLS:
            assert "AWS_ENDPOINT_URL" in refused(store, call)
    finally:
        s3.listen()


def test_an_outage_is_waited_for(s3: ObjectStore, anew: Anew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has patience goes on where the server comes back, and says once that it waits."""
    monkeypatch.setattr(remote, "PAUSE", 0.05)
    store, said = anew(), list[str]()

    def say(words: str) -> None:
        said.append(words)
        s3.listen()

    store.patience = Patience(30, say)
    store.write_file("a", b"1")
    s3.hang_up()
    store.write_file("a", b"2")
    assert store.read_file("a") == b"2"
    assert len(said) == 1
    assert "waiting" in said[0]
    s3.hang_up()
    assert dict(store.read_files(["a", *"bcdefgh"])) == {"a": b"2"}
    assert len(said) == 2  # once for all that waited


def test_patience_ends(s3: ObjectStore, anew: Anew, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not come back is an error once the time is over; a lock is left without one."""
    monkeypatch.setattr(remote, "PAUSE", 0.05)
    store = anew()
    try:
        with StorageLock(store):
            store.patience = Patience(0.2)
            s3.hang_up()
            refused(store, CALLS[2])
            since = time.monotonic()
            refused(store, CALLS[2])  # the same outage: it was waited for
            assert time.monotonic() - since < 0.2
    finally:
        s3.listen()
    assert store.exists("lease-1.json")  # it could not be removed; the next run looks its process up


class Away(AbstractFileSystem):
    """A file system that does not answer, with fsspec's own `exists` and `isdir`, to which that is a "no"."""

    cachable = False

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        raise ConnectionError("nobody there")

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        raise ConnectionError("nobody there")


def test_an_outage_is_no_empty_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run would begin anew, and one at its end be told that its storage was deleted."""
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **options: (Away(), "lab/x"))
    store = RecordStore("gs://lab/x")
    for call in (store.names, store.exists, store.is_file):
        with pytest.raises(StorageError, match="nobody there"):
            call()


def test_who_leaves_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits in another thread stops at once, and no later call waits."""
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **options: (Away(), "lab/x"))
    store, waits = RecordStore("gs://lab/x"), threading.Event()
    store.patience = Patience(60, lambda words: waits.set())
    since = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(store.exists)
        assert waits.wait(10)
        store.hurry()
        with pytest.raises(StorageError):
            asked.result()
        with pytest.raises(StorageError):
            store.exists()
    assert time.monotonic() - since < 10


def test_no_password_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in what went wrong, nor while it is waited for."""
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **options: (Away(), "x"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    store, said = RecordStore("sftp://me:secret@h/x"), list[str]()
    store.patience = Patience(0.02, said.append)
    assert "secret" not in refused(store, lambda one: one.exists()) + "".join(said)
    assert said


def test_a_worker_without_access_sends_its_records(anew: Anew, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is not let in takes the storage for none that it shares, and the driver writes for it."""
    with StorageLock(anew()) as lock:
        assert shares_storage(anew(), lock.token) is True
        assert shares_storage(anew(), lock.token[::-1]) is False
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-another")
        assert shares_storage(anew(), lock.token) is None  # asked again, with the next trial


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without s3fs the line says what to install."""

    def without(url: str, **options: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    assert "pip install 'deelbo[s3]'" in refused(RecordStore("s3://lab/x"), CALLS[1])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "is incomplete"),
        ("s3://lab", "s3://BUCKET/NAME"),
        ("s3://lab/", "s3://BUCKET/NAME"),
        ("s3:///x", "is incomplete"),
        ("s3://lab/a/../b", "invalid in object stores"),
        ("gs://lab/a//b", "invalid in object stores"),
    ],
)
def test_a_url_must_name_a_place(url: str, words: str) -> None:
    """A bucket alone, and names that S3 and its clients read differently, are refused."""
    with pytest.raises(ValueError, match=re.escape(words)):
        RecordStore(url)


def test_an_unknown_scheme_is_named() -> None:
    """A URL that fsspec cannot open is an error in one line."""
    assert "s3://BUCKET/NAME" in refused(RecordStore("s4://lab/a"), CALLS[1])
