"""Trained models in a storage: a folder for each, ``models/KEY``, named by its trial."""

import posixpath
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bench.storage.files import Storage
from deelbo.saved_model import DESCRIPTION, read_files

FOLDER = "models"


def model_keys(store: Storage) -> list[str]:
    """Return the keys of the trials that have a folder, which need not hold a whole model."""
    return [posixpath.basename(name) for name in store.names(FOLDER)]


def has_model(store: Storage, key: str) -> bool:
    """Return whether the whole model of a trial is there."""
    return store.exists(f"{FOLDER}/{key}/{DESCRIPTION}")


def write_model(store: Storage, key: str, files: Mapping[str, bytes]) -> None:
    """Write the files of `deelbo.saved_model.model_files`; without its description, written last, there is no model."""
    try:
        store.remove(f"{FOLDER}/{key}/{DESCRIPTION}")
        for name in sorted(files, key=DESCRIPTION.__eq__):
            store.write_file(f"{FOLDER}/{key}/{name}", files[name])
    except BaseException:
        with suppress(Exception):  # room for the record
            remove_model(store, key)
        raise


def read_model(store: Storage, key: str) -> dict[str, bytes]:
    """Return the files of a trial's model. Raises ValueError if one is missing or damaged, in a line that names it."""
    folder = f"{FOLDER}/{key}"
    return read_files(lambda name: store.read_file(f"{folder}/{name}"), store.path(folder))[0]


def remove_model(store: Storage, key: str) -> None:
    """Remove the folder of a trial's model, its description first."""
    folder = f"{FOLDER}/{key}"
    description = f"{folder}/{DESCRIPTION}"
    for name in sorted(store.names(folder), key=description.__ne__):
        store.remove(name)
    if store.local:
        with suppress(OSError):
            Path(store.path(folder)).rmdir()
