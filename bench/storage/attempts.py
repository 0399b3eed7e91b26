"""The attempts at each trial: how many there were, and what those that came to nothing cost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterable
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from bench.storage.records import RecordStore
from bench.trials.json_fields import Seconds
from bench.trials.record import TrialRecord

__all__ = ["AttemptLog"]


ATTEMPT = TypeAdapter(dict[Literal["started", "ended"], Seconds])


class AttemptLog:
    """Kept by the driver, in the storage: ``attempts/KEY.K.json`` says when attempt K began, and when it ended where
    it gave no result.

    Args:
        store: where they are.
        records: those that there are. Nobody asks for a trial that has a result; one that failed made an attempt.
        set_aside: keys of the trials whose result was damaged: their last attempt was not in vain.
        died: when the last call that was killed gave its last sign of life, in seconds since 1970. What it was running
            ended then, as far as anybody knows.
    """

    def __init__(
        self,
        store: RecordStore,
        records: Iterable[TrialRecord] = (),
        set_aside: Collection[str] = (),
        died: float | None = None,
    ) -> None:
        self._store = store
        done, failed = set[str](), dict[str, int]()
        for record in records:
            if record.succeeded:
                done.add(record.key)
            else:
                failed[record.key] = record.attempt
        self._numbers: dict[str, list[int]] = {}
        for name in store.names("attempts"):
            found = re.fullmatch(r"attempts/(.+)\.(\d{1,9})\.json", name)
            if found and found[1] not in done:
                self._numbers.setdefault(found[1], []).append(int(found[2]))
        for key, numbers in self._numbers.items():
            numbers.sort()
            attempt = self._read(key, numbers[-1])
            if "ended" not in attempt and "started" in attempt:
                last = 0.0 if died is None or key in set_aside else died
                self._write(key, numbers[-1], attempt | {"ended": max(attempt["started"], last)})
        for key, number in failed.items():
            if number > self._numbers.setdefault(key, [0])[-1]:
                self._numbers[key].append(number)

    def next(self, key: str) -> tuple[int, float]:
        """The number of the next attempt at a trial, from 1, and how many seconds the earlier ones ran in vain."""
        numbers = self._numbers.get(key, [0])
        return numbers[-1] + 1, sum(self._lost(self._read(key, number)) for number in numbers)

    def begin(self, key: str) -> None:
        """The next attempt at a trial begins now."""
        numbers = self._numbers.setdefault(key, [])
        numbers.append(numbers[-1] + 1 if numbers else 1)
        self._write(key, numbers[-1], {"started": time.time()})

    def fail(self, key: str) -> None:
        """The attempt that was begun ended now, without a result."""
        if numbers := self._numbers.get(key):
            self._write(key, numbers[-1], self._read(key, numbers[-1]) | {"ended": time.time()})

    @staticmethod
    def _lost(attempt: dict[str, float]) -> float:
        return max(attempt.get("ended", 0.0) - attempt.get("started", 0.0), 0.0) if "started" in attempt else 0.0

    def _read(self, key: str, number: int) -> dict[str, float]:
        """Moments by name; none where the file is damaged: an account of lost time is nothing to stop for."""
        try:
            return ATTEMPT.validate_json(self._store.read_file(f"attempts/{key}.{number}.json") or b"")
        except ValidationError:
            return {}

    def _write(self, key: str, number: int, moments: dict[str, float]) -> None:
        self._store.write_file(f"attempts/{key}.{number}.json", json.dumps(moments).encode())
