"""Where records are kept: the single source of truth.

benchmark.json        the configuration
records/KEY.json      one trial each, written once, whole or not at all
series/KEY.json       its rows over the epochs
attempts/KEY.1.json   when an attempt at it began; where it came to nothing, when it ended
checkpoints/KEY.pt    where a long run goes on from
rungs/KEY.pt          where a run that stopped early goes on from, should it be chosen to
runs/TIME.json        one a call of `run`: where its wall-clock time went
damaged/              files that were set aside
id                    what tells it from other storages
lock, lease-K.json    which `run` uses it
"""

from __future__ import annotations

import json
import posixpath
import re
import uuid
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench.config.benchmark import Benchmark
from bench.config.loading import parse_benchmark
from bench.exceptions import FormatError, RecordError
from bench.storage.files import Storage
from bench.trials.json_fields import Numbers, describe_problem, to_json_number
from bench.trials.record import FORMAT, TrialRecord
from bench.utils.text import redact_url, short_repr, single_line

__all__ = ["RecordStore"]


FILES = ("records", "series", "attempts", "checkpoints", "rungs", "runs")
SERIES = TypeAdapter(list[Numbers])
OURS = {*FILES, "damaged", "lock", "id", "report", "replay", "mlflow.db", "mlartifacts"}


class RecordStore(Storage):
    """A benchmark's storage."""

    def read_benchmark(self) -> dict[str, Any] | None:
        """The configuration kept here; None where the storage does not exist, is empty, or lost it and has records.

        Raises:
            RecordError: there is something else.
        """
        content = self.read_file("benchmark.json")
        if content is None:
            there = {name for name in self.names() if not name.startswith("lease-")}
            if not ("records" in there or there <= OURS) or self.is_file():
                raise RecordError(
                    f"{self.url} exists and holds no benchmark: choose another --storage, or an empty folder"
                )
            return None
        try:
            found = json.loads(content)
            if not isinstance(found, dict):
                raise ValueError("not an object")
            version = found.pop("format", None)
            if version is None and "methods" in found:
                raise self._format_error()
            if version != FORMAT:
                raise ValueError(f"format = {short_repr.repr(version)}, expected {FORMAT}")
        except FormatError:
            raise
        except (ValueError, RecursionError) as error:
            words = f"{self.path('benchmark.json')} is damaged ({error})"
            raise RecordError(f"{words}: put it back, or delete it and let `run` write it again") from None
        return found

    def write_benchmark(self, content: dict[str, Any]) -> None:
        """Keeps the configuration; the first time also the storage's own name."""
        if self.read_file("id") is None:
            self.write_file("id", uuid.uuid4().hex.encode())
        self._write("benchmark.json", {"format": FORMAT} | content)

    @property
    def identity(self) -> str:
        """What tells this storage from others, wherever it is moved to; its URL where it has no name of its own."""
        found = (self.read_file("id") or b"").decode(errors="replace").strip()
        return found if re.fullmatch("[0-9a-f]{32}", found) else self.url

    def write(self, record: TrialRecord, series: list[dict[str, float]]) -> None:
        """Keeps a trial: the series first, so that whoever finds the record finds its series."""
        rows = [{name: to_json_number(value) for name, value in row.items()} for row in series]
        self.write_file(f"series/{record.key}.json", json.dumps(rows, allow_nan=False).encode())
        self.write_file(f"records/{record.key}.json", record.to_json().encode())

    def write_run(self, started: str, content: dict[str, Any]) -> None:
        """Keeps the account of one call of `run`."""
        self._write(f"runs/{started}.json", content)

    def read(self, key: str) -> TrialRecord | None:
        """The record of that trial, or None. Raises RecordError where it is damaged."""
        name = f"records/{key}.json"
        content = self.read_file(name)
        return None if content is None else self._record(name, content)

    def records(self, damaged: list[str] | None = None) -> Iterator[TrialRecord]:
        """Every record, in the order of their keys.

        Args:
            damaged: where given, takes a line for each file that is not a record, and the rest is yielded.

        Raises:
            RecordError: a file that is not a record, named.
        """
        for name, content in self.read_files(self._list("records")):
            try:
                yield self._record(name, content)
            except RecordError as error:
                if damaged is None or isinstance(error, FormatError):
                    raise
                damaged.append(f"{error}: let `run` set it aside and run that trial again")

    def whole_records(self) -> tuple[list[TrialRecord], dict[str, str]]:
        """Every record that is whole and whose series is. The others are set aside, so that their trials run again:
        a line for each, by their trials' keys. Only for who holds the storage's lock."""
        self.sweep(("", *FILES))
        records, broken = [], dict[str, str]()
        for name, content in self.read_files(self._list("records")):
            try:
                records.append(self._record(name, content))
            except FormatError:
                raise
            except RecordError as error:
                broken[name] = str(error)
        for name, content in self.read_files(self._list("series")):
            try:
                if not isinstance(json.loads(content), list):  # its numbers are looked at when they are used
                    raise ValueError("not a list of rows")
            except (ValueError, RecursionError) as error:
                broken[name] = f"{self.path(name)} is damaged ({single_line(error)})"
        lines: dict[str, str] = {}
        for name, words in broken.items():
            file = posixpath.basename(name)
            if not self.exists(name):
                continue  # went with the other one
            lines[file.removesuffix(".json")] = f"{words}: set aside as {self.set_aside(name)}, its trial runs again"
            for other in (f"records/{file}", f"series/{file}"):  # what is left of the trial goes with it
                if self.exists(other):
                    self.set_aside(other)
        return [record for record in records if record.key not in lines], lines

    def series(self, key: str) -> list[dict[str, float]]:
        """A trial's rows over the epochs; none where it has none."""
        name = f"series/{key}.json"
        content = self.read_file(name)
        return [] if content is None else self._rows(name, content)

    def runs(self, damaged: list[str] | None = None) -> list[dict[str, Any]]:
        """The accounts of all calls of `run`, oldest first. ``damaged``: as in `records`."""
        accounts = []
        for name, content in self.read_files(self._list("runs")):
            try:
                account = json.loads(content)
                if not isinstance(account, dict) or not isinstance(account.get("account", ""), str):
                    raise ValueError("not the account of a run")
                accounts.append(account)
            except (ValueError, RecursionError) as error:
                words = f"{self.path(name)} is damaged ({single_line(error)}): delete it, no trial is lost with it"
                if damaged is None:
                    raise RecordError(words) from None
                damaged.append(words)
        return accounts

    def _record(self, name: str, content: bytes) -> TrialRecord:
        try:
            record = TrialRecord.from_json(content.decode())
            if name != f"records/{record.key}.json":
                raise ValueError(f"it holds the record of {record.key}")
        except FormatError:
            raise self._format_error() from None
        except ValueError as error:
            raise RecordError(f"{self.path(name)} is damaged ({single_line(error)})") from None
        return record

    def _rows(self, name: str, content: bytes) -> list[dict[str, float]]:
        try:
            return SERIES.validate_json(content, strict=True)
        except ValidationError as error:
            raise RecordError(f"{self.path(name)} is damaged ({single_line(describe_problem(error))})") from None

    def _format_error(self) -> FormatError:
        url = redact_url(self.url)
        return FormatError(
            f"{url} was written by an earlier version (format 1, not {FORMAT}): choose another --storage"
        )

    def _list(self, folder: str) -> list[str]:
        return [name for name in self.names(folder) if name.endswith(".json")]

    def _write(self, name: str, content: dict[str, Any]) -> None:
        self.write_file(name, json.dumps(content, indent=1).encode())


def open_benchmark(storage: str) -> tuple[RecordStore, Benchmark]:
    store = RecordStore(storage)
    content = store.read_benchmark()
    if content is None:
        raise RecordError(f"{storage} holds no benchmark: give the storage of a `run`")
    return store, parse_benchmark(content, store.path("benchmark.json"))
