"""A folder or any fsspec URL, in which files are written whole or not at all."""

from __future__ import annotations

import os
import posixpath
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from bench.config.places import resolve_storage
from bench.exceptions import StorageError
from bench.storage.object_store import opened
from bench.storage.retry import Patience, asked, http_status

__all__ = ["Storage"]


T = TypeVar("T")
READERS = 16
PART = ".part"


class Storage:
    """Files by their names in it, such as ``records/KEY.json``. Cheap to make and to send to another process: a URL.

    Its methods raise OSError where it cannot be used; of one behind a URL that is a `bench.exceptions.StorageError`.

    Attributes:
        patience: for one behind a URL that does not answer; None: what does not answer is an error at once.

    Raises:
        ValueError: a URL that names no place of its own.
    """

    def __init__(self, url: str) -> None:
        self.url = resolve_storage(url)
        self.patience: Patience | None = None

    @property
    def _fs_and_root(self) -> tuple[Any, str]:
        if self.local:  # whatever else is in its name: fsspec takes :: for a chain
            return LocalFileSystem(), self.url
        return opened(self.url)

    @property
    def _fs(self) -> Any:
        return self._fs_and_root[0]

    @property
    def root(self) -> str:
        """The storage as an absolute path or object prefix."""
        return self._fs_and_root[1]

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine's file system."""
        return "://" not in self.url

    def path(self, *parts: str) -> str:
        """Where something of this storage is."""
        return posixpath.join(self.root, *parts)

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file or folder; the storage itself where no name is given."""
        path = self.path(name).rstrip("/")
        return os.path.exists(path) if self.local else self._kind(path) is not None

    def is_file(self) -> bool:
        """Whether there is something by the storage's name that is no folder."""
        if self.local:
            return os.path.exists(self.root) and not os.path.isdir(self.root)
        return self._kind(self.root) == "file"

    def names(self, folder: str = "") -> list[str]:
        """What is in a folder of it, in order; nothing where there is no such folder."""
        path = self.path(folder).rstrip("/")
        try:  # without fsspec's isdir and exists, to many of which an outage is a "no"
            found = [str(name).rstrip("/") for name in self._looked(self._fs.ls, path, False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        # the page of an object store makes folders that are an empty file of their own name
        return sorted(posixpath.join(folder, posixpath.basename(name)) for name in found if name != path)

    def read_file(self, name: str) -> bytes | None:
        """A file's content, or None where there is none."""
        return self._content(self._fs, self.path(name))

    def read_files(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Those of the files that are there, in order; several at once where that saves time."""
        fs, root = self._fs_and_root  # asked once: of thousands of files that is half the time
        names = list(names)
        if self.local:  # a pool costs more than it saves
            every = ((name, self._content(fs, posixpath.join(root, name))) for name in names)
            yield from ((name, content) for name, content in every if content is not None)
            return
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(partial(self._content, fs), [posixpath.join(root, name) for name in names])
            try:
                yield from ((name, content) for name, content in zip(names, found, strict=True) if content is not None)
            except (KeyboardInterrupt, SystemExit):
                self.hurry()  # else those that wait for an outage to end would be waited for
                raise

    def hurry(self) -> None:
        """Who leaves waits for nobody: what does not answer is an error at once."""
        if self.patience is not None:
            self.patience.end()

    def write_file(self, name: str, content: bytes) -> None:
        """Whole or not at all: a temporary name and a rename on a local disk, a single put elsewhere."""
        path = self.path(name)
        if not self.local:
            self._asked(self._fs.pipe_file, path, content)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}{PART}"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def create_file(self, name: str, content: bytes) -> None:
        """Write a new file; on an object store in one atomic request.

        Raises:
            FileExistsError: the file exists, or another process is creating it.
        """
        path = self.path(name)
        if not self.local:
            try:
                self._asked(partial(self._fs.pipe_file, mode="create"), path, content)
            except StorageError as error:
                if isinstance(error.__cause__, FileExistsError) or http_status(error.__cause__) in (409, 412):
                    raise FileExistsError(f"{path} exists") from error
                raise
            return
        with open(path, "xb") as file:
            try:
                file.write(content)
                file.flush()
            except BaseException:
                os.unlink(path)
                raise

    def remove(self, name: str) -> None:
        """Deletes a file; nothing where there is none."""
        try:
            self._asked(self._fs.rm_file, self.path(name))
        except FileNotFoundError:
            return

    def set_aside(self, name: str) -> str:
        """Moves a file into the folder ``damaged``; its new name."""
        when = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        aside = f"damaged/{when}-{uuid.uuid4().hex[:6]}-{name.replace('/', '-')}"
        if self.local:
            os.makedirs(self.path("damaged"), exist_ok=True)
            os.replace(self.path(name), self.path(aside))
        else:
            self._asked(self._fs.cp_file, self.path(name), self.path(aside))
            self.remove(name)
        return aside

    def sweep(self, folders: Iterable[str]) -> None:
        """Removes what writers that were killed left half written. Only for who knows that nobody writes."""
        if self.local:
            for name in (name for folder in folders for name in self.names(folder) if name.endswith(PART)):
                self.remove(name)

    def _content(self, fs: Any, path: str) -> bytes | None:
        try:
            if isinstance(fs, LocalFileSystem) and not stat.S_ISREG(os.stat(path).st_mode):
                return b""  # a folder, or a pipe that would be waited for: no content that anybody could take for whole
            return bytes(self._asked(fs.cat_file, path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _kind(self, path: str) -> str | None:
        """ "file" or "directory"; None where there is nothing."""
        try:
            return str(self._looked(self._fs.info, path)["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _looked(self, call: Callable[..., T], *arguments: Any) -> T:
        """What is there now: what the file system remembers of folders knows nothing of other processes' files."""
        self._fs.invalidate_cache()
        return self._asked(call, *arguments)

    def _asked(self, call: Callable[..., T], *arguments: Any) -> T:
        if self.local:
            return call(*arguments)
        return asked(self.url, self.patience, call, *arguments)
