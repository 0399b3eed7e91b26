"""Files in a folder or behind an fsspec URL, written atomically."""

import os
import posixpath
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from bench.config.places import resolve_storage
from bench.exceptions import StorageError
from bench.storage.object_store import OutageTimer, call_with_retry, http_status, open_filesystem

T = TypeVar("T")
MAX_READERS = 16
PARTIAL = ".part"


class Storage:
    """Files by their names, such as ``records/KEY.json``.

    Its methods raise OSError if it cannot be used; that of an object store is a `bench.exceptions.StorageError`.

    Attributes:
        outage_timer: limits how long an unreachable object store is waited for; at first not at all.
    """

    def __init__(self, url: str) -> None:
        self.url = resolve_storage(url)
        self.outage_timer = OutageTimer(0)

    @property
    def _fs_and_root(self) -> tuple[Any, str]:
        if self.local:  # fsspec would take :: in a folder's name for a chain of file systems
            return LocalFileSystem(), self.url
        return open_filesystem(self.url)

    @property
    def _fs(self) -> Any:
        return self._fs_and_root[0]

    @property
    def root(self) -> str:
        """Its absolute path, or the prefix of its objects."""
        return self._fs_and_root[1]

    @property
    def local(self) -> bool:
        """True if it is a folder of this machine's file system."""
        return "://" not in self.url

    def path(self, *parts: str) -> str:
        """Return the path of a file or folder of this storage."""
        return posixpath.join(self.root, *parts)

    def exists(self, name: str = "") -> bool:
        """Return True if there is such a file or folder; without a name, the storage itself."""
        return self.kind(name) is not None

    def kind(self, name: str = "") -> str | None:
        """Return "file" or "directory", or "other" if it is neither; None if there is nothing."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return str(self._call_uncached(self._fs.info, self.path(name).rstrip("/"))["type"])
        return None

    def names(self, folder: str = "") -> list[str]:
        """Return the sorted names of what is in a folder; none if there is no such folder."""
        path = self.path(folder).rstrip("/")
        try:  # not by fsspec's isdir or exists, which are False during an outage
            paths = [str(name).rstrip("/") for name in self._call_uncached(self._fs.ls, path, False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        # a folder made on an object store's web page is an empty file of its own name
        return sorted(posixpath.join(folder, posixpath.basename(name)) for name in paths if name != path)

    def read_file(self, name: str) -> bytes | None:
        """Return a file's content; None if there is no such file."""
        return self._read(self._fs, self.path(name))

    def read_files(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of the files that exist, in order; from an object store several are read at once."""
        fs, root = self._fs_and_root  # once: looking it up for each of thousands of files takes half of the time
        names = list(names)
        with ThreadPoolExecutor(MAX_READERS) as pool:
            read_all = map if self.local else pool.map
            contents = read_all(partial(self._read, fs), [posixpath.join(root, name) for name in names])
            try:
                for name, content in zip(names, contents, strict=True):
                    if content is not None:
                        yield name, content
            except (KeyboardInterrupt, SystemExit):
                self.stop_waiting()  # otherwise the pool's threads wait for the end of an outage
                raise

    def stop_waiting(self) -> None:
        """Let pending and future calls fail immediately during an outage."""
        self.outage_timer.cancel()

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file atomically: by a temporary name and a rename in a folder, by one request elsewhere."""
        path = self.path(name)
        if not self.local:
            self._call(self._fs.pipe_file, path, content)
            return
        temporary = Path(f"{path}.{uuid.uuid4().hex}{PARTIAL}")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def create_file(self, name: str, content: bytes) -> None:
        """Write a new file; on an object store in one request. Raises FileExistsError if there is one, or will be."""
        path = self.path(name)
        if self.local:
            with Path(path).open("xb") as file:
                try:
                    file.write(content)
                    file.flush()
                except BaseException:
                    Path(path).unlink()
                    raise
            return
        try:
            self._call(partial(self._fs.pipe_file, mode="create"), path, content)
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError) or http_status(error.__cause__) in (409, 412):
                raise FileExistsError(f"{path} exists") from error
            raise

    def remove(self, name: str) -> None:
        """Delete a file if there is one."""
        with suppress(FileNotFoundError):
            self._call(self._fs.rm_file, self.path(name))

    def quarantine(self, name: str) -> str:
        """Move a file into the folder ``damaged`` and return its new name."""
        when = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        target = f"damaged/{when}-{uuid.uuid4().hex[:6]}-{name.replace('/', '-')}"
        if self.local:
            Path(self.path("damaged")).mkdir(parents=True, exist_ok=True)
            Path(self.path(name)).replace(self.path(target))
        else:
            self._call(self._fs.cp_file, self.path(name), self.path(target))
            self.remove(name)
        return target

    def _read(self, fs: Any, path: str) -> bytes | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            if isinstance(fs, LocalFileSystem) and not stat.S_ISREG(Path(path).stat().st_mode):
                return b""  # a folder or a named pipe, reading which might block: invalid content for any reader
            return bytes(self._call(fs.cat_file, path))
        return None

    def _call_uncached(self, call: Callable[..., T], *arguments: Any) -> T:
        self._fs.invalidate_cache()  # fsspec's cached listings miss what other processes have written since
        return self._call(call, *arguments)

    def _call(self, call: Callable[..., T], *arguments: Any) -> T:
        return call(*arguments) if self.local else call_with_retry(self.url, self.outage_timer, call, *arguments)
