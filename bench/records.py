"""Where records are kept: a local folder or any fsspec URL. The single source of truth.

benchmark.json        the configuration
records/KEY.json      one trial each, written once, whole or not at all
series/KEY.json       its rows over the epochs
attempts/KEY.1.json   when an attempt at it began
runs/TIME.json        one a call of `run`: where its wall-clock time went
"""

from __future__ import annotations

import json
import os
import posixpath
import time
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
import pandas as pd

from bench.trials import TrialRecord, plain

__all__ = ["RecordError", "RecordStore", "frame_of"]


class RecordError(ValueError):
    """A storage that cannot be used as it is, in one line."""


class RecordStore:
    """A benchmark's storage. Cheap to make and to send to another process: it holds a URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if "://" in url else os.path.abspath(url)

    @property
    def _fs(self) -> Any:
        return fsspec.core.url_to_fs(self.url)[0]

    @property
    def root(self) -> str:
        """The storage as an absolute path or object prefix."""
        return str(fsspec.core.url_to_fs(self.url)[1]).rstrip("/")

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine's file system."""
        protocol = self._fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def path(self, *parts: str) -> str:
        """Where something of this storage is."""
        return posixpath.join(self.root, *parts)

    def read_benchmark(self) -> dict[str, Any] | None:
        """The configuration kept here; None where the storage does not exist or is empty.

        Raises:
            RecordError: there is something else.
        """
        if self._fs.exists(self.path("benchmark.json")):
            try:
                content = json.loads(self._fs.cat_file(self.path("benchmark.json")))
            except (ValueError, RecursionError) as error:
                raise RecordError(f"{self.path('benchmark.json')} is damaged ({error}): put it back") from None
            if not isinstance(content, dict):
                raise RecordError(f"{self.path('benchmark.json')} is damaged (not an object): put it back")
            return content
        if self._fs.exists(self.root) and (not self._fs.isdir(self.root) or self._fs.ls(self.root)):
            raise RecordError(f"{self.url} exists and holds no benchmark: choose another --storage, or an empty folder")
        return None

    def write_benchmark(self, content: dict[str, Any]) -> None:
        """Keeps the configuration."""
        self._write("benchmark.json", json.dumps(content, indent=1))

    def write(self, record: TrialRecord, series: list[dict[str, float]]) -> None:
        """Keeps a trial: the series first, so that whoever finds the record finds its series."""
        rows = [{name: plain(value) for name, value in row.items()} for row in series]
        self._write(f"series/{record.key}.json", json.dumps(rows, allow_nan=False))
        self._write(f"records/{record.key}.json", record.to_json())

    def begin(self, key: str) -> int:
        """Notes that an attempt at a trial begins; its number, from 1."""
        attempt = self.attempts(key) + 1
        self._write(f"attempts/{key}.{attempt}.json", json.dumps({"started": time.time()}))
        return attempt

    def attempts(self, key: str) -> int:
        """How many attempts at a trial were begun."""
        count = 0
        while self._fs.exists(self.path("attempts", f"{key}.{count + 1}.json")):
            count += 1
        return count

    def write_run(self, started: str, content: dict[str, Any]) -> None:
        """Keeps the account of one call of `run`."""
        self._write(f"runs/{started}.json", json.dumps(content, indent=1))

    def read(self, key: str) -> TrialRecord | None:
        """The record of that trial, or None. Raises RecordError where it is damaged."""
        path = self.path("records", f"{key}.json")
        return self._read(path) if self._fs.exists(path) else None

    def records(self, damaged: list[str] | None = None) -> Iterator[TrialRecord]:
        """Every record, in the order of their keys.

        Args:
            damaged: where given, takes a line for each file that is not a record, and the rest is yielded.

        Raises:
            RecordError: a file that is not a record, named.
        """
        for path in self._list("records"):
            try:
                yield self._read(path)
            except RecordError as error:
                if damaged is None:
                    raise
                damaged.append(str(error))

    def series(self, key: str) -> list[dict[str, float]]:
        """A trial's rows over the epochs; none where it has none."""
        path = self.path("series", f"{key}.json")
        if not self._fs.exists(path):
            return []
        try:
            rows = json.loads(self._fs.cat_file(path))
            return [{name: float(value) for name, value in row.items()} for row in rows]
        except (ValueError, TypeError, AttributeError) as error:
            raise RecordError(f"{path} is damaged ({error}): delete it, its trial stays without a series") from None

    def runs(self, damaged: list[str] | None = None) -> list[dict[str, Any]]:
        """The accounts of all calls of `run`, oldest first. ``damaged``: as in `records`."""
        accounts = []
        for path in self._list("runs"):
            try:
                account = json.loads(self._fs.cat_file(path))
                if not isinstance(account, dict):
                    raise ValueError("not an object")
                accounts.append(account)
            except (ValueError, RecursionError) as error:
                words = f"{path} is damaged ({error}): delete it, no trial is lost with it"
                if damaged is None:
                    raise RecordError(words) from None
                damaged.append(words)
        return accounts

    def frame(self) -> pd.DataFrame:
        """All records as a table: see `frame_of`."""
        return frame_of(list(self.records()))

    def _read(self, path: str) -> TrialRecord:
        try:
            return TrialRecord.from_json(self._fs.cat_file(path).decode())
        except ValueError as error:
            raise RecordError(f"{path} is damaged ({error}): delete it, and `run` will run that trial again") from None

    def _list(self, folder: str) -> list[str]:
        path = self.path(folder)
        if not self._fs.exists(path):
            return []
        self._fs.invalidate_cache(path)  # other processes write here
        return sorted(str(name) for name in self._fs.ls(path, detail=False) if str(name).endswith(".json"))

    def _write(self, name: str, text: str) -> None:
        """Whole or not at all: a temporary name and a rename on a local disk, a single put elsewhere."""
        path = self.path(name)
        if not self.local:
            self._fs.pipe_file(path, text.encode())
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}.part"
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise


COLUMNS = {
    "source": "str",
    "key": "str",
    "dataset": "str",
    "backbone": "str",
    "method": "str",
    "prior": "str",
    "n": "int64",
    "seed": "int64",
    "stage": "str",
    "learning_rate": "float64",
    "weight_decay": "float64",
    "head_weight_decay": "float64",
    "prior_scale": "float64",
    "kappa": "float64",
    "status": "str",
    "val_nll": "float64",
    "val_acc": "float64",
    "test_nll": "float64",
    "test_acc": "float64",
    "objective": "float64",
    "nll_under_q": "float64",
    "train_seconds": "float64",
    "evaluate_seconds": "float64",
    "select_seconds": "float64",
    "total_seconds": "float64",
    "started": "float64",
    "finished": "float64",
}
"""The schema that curves, tables and figures read: one row a trial. docs/records.md says what each column means."""


def frame_of(records: list[TrialRecord], source: str = "") -> pd.DataFrame:
    """One row a record: the columns of `COLUMNS`, then the learned state (``state_*``).

    ``source``: what to call the storage beside others."""
    rows = []
    for record in records:
        row: dict[str, Any] = {name: getattr(record.spec, name, None) for name in COLUMNS}
        row |= {
            "source": source,
            "key": record.key,
            "status": record.status,
            "started": record.started,
            "finished": record.finished,
        }
        row |= {name: value for name, value in record.metrics.items() if name in COLUMNS}
        row |= {f"{phase}_seconds": value for phase, value in record.seconds.items()}
        row |= {f"state_{name}": value for name, value in record.state.items()}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else list(COLUMNS))
    for name, kind in COLUMNS.items():
        frame[name] = frame[name].astype(kind)
    return frame.sort_values(["dataset", "prior", "n", "seed", "method", "stage", "key"], ignore_index=True)
