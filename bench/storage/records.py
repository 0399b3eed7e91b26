"""A benchmark's storage, the single source of truth; docs/records.md lists its files."""

import json
import posixpath
import re
import uuid
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bench.config.benchmark import Benchmark
from bench.config.loading import parse_benchmark
from bench.exceptions import FormatError, RecordError
from bench.storage.files import PARTIAL, Storage
from bench.trials.json_fields import Numbers, describe_problem, to_json_number
from bench.trials.record import FORMAT, TrialRecord
from bench.utils.text import redact_url, short_repr, single_line

T = TypeVar("T")
FOLDERS = ("records", "series", "attempts", "checkpoints", "models", "rungs", "runs")
OWN_NAMES = {*FOLDERS, "damaged", "lock", "id", "report", "replay", "mlflow.db", "mlartifacts"}
SERIES = TypeAdapter(list[Numbers])


class RecordStore(Storage):
    """A benchmark's storage."""

    def read_benchmark(self) -> dict[str, Any] | None:
        """Return the configuration; None if the storage does not exist, is empty, or has records without one.

        Raises:
            RecordError: it is damaged, or the storage holds something else; FormatError: an earlier version wrote it.
        """
        content = self.read_file("benchmark.json")
        if content is None:
            names = {name for name in self.names() if not name.startswith("lease-")}
            if ("records" in names or names <= OWN_NAMES) and self.kind() in (None, "directory"):
                return None
            raise RecordError(f"{self.url} exists and holds no benchmark: choose another --storage, or an empty folder")
        try:
            settings = _load_json(content, dict)
            version = settings.pop("format", 1 if "methods" in settings else None)
            if version not in (1, FORMAT):
                raise ValueError(f"format = {short_repr.repr(version)}, expected {FORMAT}")
        except ValueError as error:
            advice = "restore it, or delete it and let `run` write it again"
            raise RecordError(f"{self.path('benchmark.json')} is damaged ({error}): {advice}") from None
        if version == 1:
            raise self._format_error()
        return settings

    def write_benchmark(self, content: dict[str, Any]) -> None:
        """Write the configuration, and the storage's id if it has none."""
        if self.read_file("id") is None:
            self.write_file("id", uuid.uuid4().hex.encode())
        self._write("benchmark.json", {"format": FORMAT} | content)

    @property
    def identity(self) -> str:
        """The storage's id, which stays wherever it is moved to; its URL if it has none."""
        identity = (self.read_file("id") or b"").decode(errors="replace").strip()
        return identity if re.fullmatch("[0-9a-f]{32}", identity) else self.url

    def write(self, record: TrialRecord, series: list[dict[str, float]]) -> None:
        """Write a trial: the series first, so that every record that exists has its series."""
        rows = [{name: to_json_number(value) for name, value in row.items()} for row in series]
        self.write_file(f"series/{record.key}.json", json.dumps(rows, allow_nan=False).encode())
        self.write_file(f"records/{record.key}.json", record.to_json().encode())

    def write_run(self, started: str, content: dict[str, Any]) -> None:
        """Write the summary of one `run`."""
        self._write(f"runs/{started}.json", content)

    def read(self, key: str) -> TrialRecord | None:
        """Return a trial's record; None if there is none. Raises RecordError if it is damaged."""
        name = f"records/{key}.json"
        content = self.read_file(name)
        return None if content is None else self._parse(name, content)

    def records(self, damaged: list[str] | None = None) -> Iterator[TrialRecord]:
        """Yield every record, in the order of their keys. Raises FormatError if an earlier version wrote them.

        Args:
            damaged: takes one line for each file that is not a record; without it the first one raises RecordError.
        """
        for _, record in self._read_records():
            if isinstance(record, TrialRecord):
                yield record
            elif damaged is None:
                raise record
            else:
                damaged.append(f"{record}: let `run` quarantine it and run that trial again")

    def recover_records(self) -> tuple[list[TrialRecord], dict[str, str]]:
        """Quarantine damaged records and series, so that their trials run again. The caller must hold the lock.

        Returns:
            the records that are valid and whose series is, and one line for each other trial, by key.
        """
        for name in [name for folder in ("", *FOLDERS) if self.local for name in self.names(folder)]:
            if name.endswith(PARTIAL):  # a temporary file of a process that was killed
                self.remove(name)
        records, damaged = [], dict[str, str]()
        for name, record in self._read_records():
            if isinstance(record, TrialRecord):
                records.append(record)
            else:
                damaged[name] = str(record)
        for name, content in self._read_json_files("series"):
            try:
                _load_json(content, list)  # rows are checked when they are used
            except ValueError as error:
                damaged[name] = f"{self.path(name)} is damaged ({single_line(error)})"
        lines: dict[str, str] = {}
        for name, problem in damaged.items():
            key = posixpath.basename(name).removesuffix(".json")
            if key not in lines:
                files = [file for file in (f"records/{key}.json", f"series/{key}.json") if self.exists(file)]
                moved = {file: self.quarantine(file) for file in files}
                lines[key] = f"{problem}: moved to {moved[name]}, its trial runs again"
        return [record for record in records if record.key not in lines], lines

    def _read_records(self) -> Iterator[tuple[str, TrialRecord | RecordError]]:
        for name, content in self._read_json_files("records"):
            try:
                yield name, self._parse(name, content)
            except FormatError:
                raise
            except RecordError as error:
                yield name, error

    def series(self, key: str) -> list[dict[str, float]]:
        """Return a trial's rows over the epochs; none if it has none. Raises RecordError if they are damaged."""
        name = f"series/{key}.json"
        if (content := self.read_file(name)) is None:
            return []
        try:
            return SERIES.validate_json(content, strict=True)
        except ValidationError as error:
            raise RecordError(f"{self.path(name)} is damaged ({single_line(describe_problem(error))})") from None

    def runs(self, damaged: list[str] | None = None) -> list[dict[str, Any]]:
        """Return the summaries of all `run`s, oldest first. ``damaged``: as for `records`."""
        summaries = []
        for name, content in self._read_json_files("runs"):
            try:
                summary = _load_json(content, dict)
                if not isinstance(summary.get("account", ""), str):
                    raise ValueError("not the summary of a run")
                summaries.append(summary)
            except ValueError as error:
                line = f"{self.path(name)} is damaged ({single_line(error)}): delete it, no trial is lost with it"
                if damaged is None:
                    raise RecordError(line) from None
                damaged.append(line)
        return summaries

    def _parse(self, name: str, content: bytes) -> TrialRecord:
        try:
            record = TrialRecord.from_json(content.decode())
            if name != f"records/{record.key}.json":
                raise ValueError(f"it holds the record of {record.key}")
        except FormatError:
            raise self._format_error() from None
        except ValueError as error:
            raise RecordError(f"{self.path(name)} is damaged ({single_line(error)})") from None
        return record

    def _format_error(self) -> FormatError:
        problem = f"{redact_url(self.url)} is of format 1, expected {FORMAT}"
        return FormatError(f"{problem}: an earlier version wrote it, choose another --storage")

    def _read_json_files(self, folder: str) -> Iterator[tuple[str, bytes]]:
        return self.read_files(name for name in self.names(folder) if name.endswith(".json"))

    def _write(self, name: str, content: dict[str, Any]) -> None:
        self.write_file(name, json.dumps(content, indent=1).encode())


def _load_json(content: bytes, kind: type[T]) -> T:
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if not isinstance(value, kind):
        raise ValueError("not an object" if kind is dict else "not a list")
    return value


def open_benchmark(storage: str) -> tuple[RecordStore, Benchmark]:
    """Return the storage of an earlier `run` and its benchmark. Raises RecordError if there is none."""
    store = RecordStore(storage)
    content = store.read_benchmark()
    if content is None:
        raise RecordError(f"{storage} holds no benchmark: give the storage of a `run`")
    return store, parse_benchmark(content, store.path("benchmark.json"))
