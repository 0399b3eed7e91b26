"""A folder or any fsspec URL, in which files are written whole or not at all."""

from __future__ import annotations

import os
import posixpath
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

__all__ = ["Storage"]

READERS = 16
PART = ".part"


class Storage:
    """Files by their names in it, such as ``records/KEY.json``. Cheap to make and to send to another process: a URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if "://" in url else os.path.abspath(url)

    @property
    def _fs_and_root(self) -> tuple[Any, str]:
        if "://" not in self.url:  # whatever else is in its name: fsspec takes :: for a chain
            return LocalFileSystem(), self.url
        fs, root = fsspec.core.url_to_fs(self.url)
        return fs, str(root).rstrip("/")

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
        protocol = self._fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def path(self, *parts: str) -> str:
        """Where something of this storage is."""
        return posixpath.join(self.root, *parts)

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file or folder; the storage itself where no name is given."""
        return bool(self._fs.exists(self.path(name).rstrip("/")))

    def names(self, folder: str = "") -> list[str]:
        """What is in a folder of it, in order; nothing where there is no such folder."""
        path = self.path(folder).rstrip("/")
        if not self._fs.isdir(path):
            return []
        self._fs.invalidate_cache(path)  # other processes write here
        found = (posixpath.basename(str(name).rstrip("/")) for name in self._fs.ls(path, detail=False))
        return sorted(posixpath.join(folder, name) for name in found)

    def read_file(self, name: str) -> bytes | None:
        """A file's content, or None where there is none."""
        return _content(self._fs, self.path(name))

    def read_files(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Those of the files that are there, in order; several at once where that saves time."""
        fs, root = self._fs_and_root  # asked once: of thousands of files that is half the time
        names = list(names)
        if self.local:  # a pool costs more than it saves
            every = ((name, _content(fs, posixpath.join(root, name))) for name in names)
            yield from ((name, content) for name, content in every if content is not None)
            return
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(partial(_content, fs), [posixpath.join(root, name) for name in names])
            yield from ((name, content) for name, content in zip(names, found, strict=True) if content is not None)

    def write_file(self, name: str, content: bytes) -> None:
        """Whole or not at all: a temporary name and a rename on a local disk, a single put elsewhere."""
        path = self.path(name)
        if not self.local:
            self._fs.pipe_file(path, content)
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

    def remove(self, name: str) -> None:
        """Deletes a file; nothing where there is none."""
        try:
            self._fs.rm_file(self.path(name))
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
            self._fs.mv(self.path(name), self.path(aside))
        return aside

    def sweep(self, folders: Iterable[str]) -> None:
        """Removes what writers that were killed left half written. Only for who knows that nobody writes."""
        if self.local:
            for name in (name for folder in folders for name in self.names(folder) if name.endswith(PART)):
                self.remove(name)


def _content(fs: Any, path: str) -> bytes | None:
    try:
        if isinstance(fs, LocalFileSystem) and not stat.S_ISREG(os.stat(path).st_mode):
            return b""  # a folder, or a pipe that would be waited for: no content that anybody could take for whole
        return bytes(fs.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
