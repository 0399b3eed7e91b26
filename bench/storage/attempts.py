"""Log of the attempts at each trial: how many there were, and how long those without a result ran."""

import json
import re
import time
from collections.abc import Collection, Sequence

from pydantic import TypeAdapter, ValidationError

from bench.storage.records import RecordStore
from bench.trials.json_fields import Seconds, Text
from bench.trials.record import TrialRecord

ATTEMPT = TypeAdapter(dict[Text, Seconds])


class AttemptLog:
    """The driver's log in ``attempts/KEY.K.json``: when attempt K began and, if it gave no result, when it ended.

    Args:
        store: the storage of the log.
        records: its records. A failed one counts as an attempt.
        quarantined: keys of the trials whose result was damaged: their last attempt was not wasted.
        died: last heartbeat of the run that was killed, in seconds since 1970: its attempts ended then.
    """

    def __init__(
        self,
        store: RecordStore,
        records: Sequence[TrialRecord] = (),
        quarantined: Collection[str] = (),
        died: float | None = None,
    ) -> None:
        self._store = store
        self._numbers: dict[str, list[int]] = {}
        done = {record.key for record in records if record.succeeded}
        for name in store.names("attempts"):
            match = re.fullmatch(r"attempts/(.+)\.(\d{1,9})\.json", name)
            if match and match[1] not in done:
                self._numbers.setdefault(match[1], []).append(int(match[2]))
        for key, numbers in self._numbers.items():
            numbers.sort()
            attempt = self._read(key, numbers[-1])
            if "ended" not in attempt and "started" in attempt:
                ended = 0.0 if died is None or key in quarantined else died
                self._write(key, numbers[-1], attempt | {"ended": max(attempt["started"], ended)})
        for record in records:
            if not record.succeeded and record.attempt > self._numbers.setdefault(record.key, [0])[-1]:
                self._numbers[record.key].append(record.attempt)

    def next(self, key: str) -> tuple[int, float]:
        """Return the number of a trial's next attempt, from 1, and the seconds that earlier ones wasted."""
        numbers = self._numbers.get(key, [0])
        attempts = [self._read(key, number) for number in numbers]
        wasted = (max(times.get("ended", 0.0) - times["started"], 0.0) for times in attempts if "started" in times)
        return numbers[-1] + 1, sum(wasted)

    def begin(self, key: str) -> None:
        """Log that a trial's next attempt begins now."""
        numbers = self._numbers.setdefault(key, [0])
        numbers.append(numbers[-1] + 1)
        self._write(key, numbers[-1], {"started": time.time()})

    def fail(self, key: str) -> None:
        """Log that a trial's last attempt ended now, without a result."""
        if numbers := self._numbers.get(key):
            self._write(key, numbers[-1], self._read(key, numbers[-1]) | {"ended": time.time()})

    def _read(self, key: str, number: int) -> dict[str, float]:
        """Return the times by name; none if the file is damaged, which only makes wasted time look shorter."""
        try:
            return ATTEMPT.validate_json(self._store.read_file(f"attempts/{key}.{number}.json") or b"")
        except ValidationError:
            return {}

    def _write(self, key: str, number: int, times: dict[str, float]) -> None:
        self._store.write_file(f"attempts/{key}.{number}.json", json.dumps(times).encode())
