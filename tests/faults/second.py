"""A second `run` on the storage that another one works on."""

import re
import time

from tests.faults.place import Place
from tests.faults.processes import Run
from tests.faults.proof import contents, same_results, unchanged


def start_second(times: int, place: Place) -> str:
    """Each time one works, a second is refused, and the first is killed; the next takes over. The last one ends."""
    storage, config, more = place.folder / "storage", place.config(), ("--tracking-uri", place.database("mlflow"))
    before: dict[str, bytes] = {}
    killed = 0
    refused = []
    for time_ in range(times + 1):
        with Run(config, storage, f"first{time_}", *more) as first:
            if time_ < times:
                first.until_training()
                refused.append(refused_seconds(first, Run(config, storage, f"second{time_}", *more)))
                unchanged(before, storage)
                pid = first.pid
                first.kill()
            else:
                first.ends_well()
            if killed:
                words = f"the last run here was killed (process {killed} "
                assert words in first.said, f"it does not say {words!r}: {first.said[:400]}"
            killed = pid
        before = contents(storage)
    same_results(storage, place.reference, place.few)
    return (
        f"each refused in one line with owner and age, exit code 2, in at most {max(refused):.1f} s; the first went "
        f"on; {times} killed ones taken over"
    )


def refused_seconds(first: Run, second: Run) -> float:
    """Seconds that the second took to be refused."""
    since = time.monotonic()
    with second:
        second.stops(2)
        seconds = time.monotonic() - since
        lines = list(second.lines())
        assert len(lines) == 1, f"{len(lines)} lines: {second.complained}"
        expected = rf"in use by another `run` \(process {first.pid} on .+, since .+ UTC, last heartbeat .+ UTC\)"
        assert re.search(expected, lines[0]), lines[0]
    assert first.runs(), f"the first ended: {first.tail()}"
    return seconds
