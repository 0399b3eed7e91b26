"""Follows a race in MLflow, from a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.scheduling.callbacks import RunCallback
from bench.scheduling.queue import TrialQueue
from bench.tracking.client import is_gone, is_refusal
from bench.tracking.mirror import MLflowMirror
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.text import redact_url, single_line

__all__ = ["Tracker"]


LONGEST_PAUSE = 10.0
SHORT_PAUSE = 1.0  # at the end
TO_TIDY = 0.4  # of the seconds that a killed race has
TRIES = 3
ENDS = ("finish", "resend")
LONGEST_PROBLEM = 200


@dataclass(eq=False)
class _Event:
    """A method of the mirror to call, and what for; how often it failed, and how many requests its best try began."""

    name: str
    arguments: tuple[Any, ...] = ()
    key: str = ""
    failures: int = 0
    best: int = 1

    @property
    def what(self) -> tuple[str, str]:
        """What it sends, by whichever method."""
        return "finish" if self.name in ENDS else self.name, self.key


class Tracker(RunCallback):
    """Follows a race in MLflow from a thread of its own. Nothing here waits for a server, and nothing raises.

    What a server does not take is tried again after ``pause`` seconds, then less and less often, those behind it
    waiting; after three tries it queues up again at the end, in case it alone is at fault. What a server refuses for
    good is skipped. Where runs are gone, all that this call had sent is sent again.

    Args:
        make_mirror: connects; called in the thread, and again where runs are gone.
        pause: seconds.
        grace: seconds without progress after which `stop` gives up.
        hurry: seconds that `stop` takes at most when the race was killed.
    """

    def __init__(
        self, make_mirror: Callable[[], MLflowMirror], pause: float = 5.0, grace: float = 30.0, hurry: float = 5.0
    ) -> None:
        self._make_mirror, self._pause, self._grace, self._hurry = make_mirror, pause, grace, hurry
        self._mirror: MLflowMirror | None = None
        self._changed = threading.Condition()  # guards all that follows, and is held for moments only
        self._events = deque[_Event]()
        self._ended: dict[str, float] = {}  # when, by key: the records themselves are in the storage
        self._begun: dict[str, _Event] = {}
        self._last: list[_Event] = []
        self._current: _Event | None = None
        self._requests = self._failures = 0
        self._progress = time.monotonic()
        self._renewed = set[tuple[str, str]]()
        self._refused: dict[tuple[str, str], str] = {}
        self._trouble: str | None = None
        self._dropped = 0
        self._connected = self._killed = self._cut = self._abort = self._given_up = self._done = False
        self._thread = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._thread.start()

    @property
    def left(self) -> int:
        """How many events wait to be sent."""
        return len(self._events) + (self._current is not None)

    @property
    def problem(self) -> str | None:
        """Why something is not in MLflow, in one line."""
        words = self._trouble
        if self._refused:
            words = f"{len(self._refused)} refused, the first: {next(iter(self._refused.values()))}"
        if words is None or len(words) <= LONGEST_PROBLEM:
            return words
        return f"{words[: LONGEST_PROBLEM // 2]} ... {words[5 - LONGEST_PROBLEM // 2 :]}"  # the cause comes last

    def on_run_start(self, race: TrialQueue, slots: int) -> None:
        with self._changed:
            self._ended |= {record.key: record.finished for record in race.reused}
            self._events.append(_Event("open"))
            self._events.extend(map(_finish, race.reused))  # an interrupted call may not have sent them
            self._events.append(_Event("publish"))
            self._changed.notify()

    def on_trial_start(self, spec: TrialSpec) -> None:
        with self._changed:
            self._begun[spec.key] = event = _Event("start", (spec, time.time()), spec.key)
            self._events.append(event)
            self._changed.notify()

    def on_trial_end(self, record: TrialRecord) -> None:
        with self._changed:
            self._ended[record.key] = record.finished
            self._begun.pop(record.key, None)
            self._events.append(_finish(record))
            self._changed.notify()

    def stop(self, status: str, metrics: dict[str, float], report: Path | None = None) -> bool:
        """Sends what is left as long as it gets through, and closes the benchmark's run; whether all was sent.

        Where the status is KILLED, the run is closed first, and the rest sent as far as ``hurry`` seconds go.
        """
        asked = time.monotonic()
        with self._changed:
            ended = max(self._ended.values(), default=0.0)
            self._last = [_Event("close", (status, metrics, ended)), _Event("tidy"), _Event("publish", (report,))]
            self._killed = self._abort = status == "KILLED"
            if not self._killed:
                self._last.append(_Event("choose"))
            self._events = self._in_order(event for event in self._events if event.name in ENDS)
            self._changed.notify()
        try:
            while self._thread.is_alive():
                until = asked + self._hurry if self._killed else max(asked, self._progress) + self._grace
                if (rest := until - time.monotonic()) <= 0:
                    break
                if self._killed and rest < TO_TIDY * self._hurry:
                    self._cut_short()
                self._thread.join(min(rest, 0.1))
        except KeyboardInterrupt:
            if not self._killed:  # asked to hurry
                return self.stop("KILLED", metrics)
            self._trouble = self._trouble or "interrupted"
        with self._changed:
            self._given_up = True
            self._changed.notify()
            left = self.left + self._dropped
            if left:
                self._trouble = f"{left} not sent in time: {self._trouble or 'the answer took too long'}"
            return self._done and not left and not self._refused

    def _cut_short(self) -> None:
        """Leaves out trials' ends, so that none of their runs is left half-way."""
        with self._changed:
            kept = deque(event for event in self._events if event.name not in ENDS)
            self._dropped += len(self._events) - len(kept)
            self._events = kept
            self._cut, self._abort = True, self._current is not None and self._current.name in ENDS

    def _in_order(self, finishes: Iterable[_Event]) -> deque[_Event]:
        """What is to be sent at the end. A killed race's run is closed first."""
        first = self._last[:1] if self._killed else []
        return deque([*first, *finishes, *self._last[len(first) :]])

    def _work(self) -> None:
        while (event := self._next()) is not None:
            try:
                if self._mirror is None:
                    self._mirror = self._make_mirror()
                    self._mirror.before_call = self._request
                getattr(self._mirror, event.name)(*event.arguments)
            except Exception as error:
                self._failed(event, error)
            else:
                with self._changed:
                    self._progress, self._trouble, self._failures = time.monotonic(), None, 0
                    self._connected = True
                    self._refused.pop(event.what, None)

    def _next(self) -> _Event | None:
        """The next event, once there is one; None at the end."""
        with self._changed:
            self._current = None
            while not self._given_up:
                self._abort = False
                if self._events:
                    event = self._events.popleft()
                    if event.name == "start" and event.key in self._ended:
                        continue  # its end has come, and makes the run
                    self._current, self._requests = event, 0
                    return event
                if self._last:
                    self._done = True
                    return None
                self._changed.wait()
            return None

    def _request(self) -> None:
        """Before each request: counts as progress where no earlier try of the event came that far."""
        if self._abort or self._given_up:
            raise InterruptedError("put aside: the race was killed")
        self._requests += 1
        if (event := self._current) is not None and self._requests > event.best:
            event.best, self._progress = self._requests, time.monotonic()

    def _failed(self, event: _Event, error: Exception) -> None:
        with self._changed:
            if self._abort or self._given_up:
                self._put_back(event, last=True)
                return
            self._trouble = single_line(redact_url(str(error)))  # MLflow's client names its address
            what, gone, connected = event.what, is_gone(error), self._connected
            if gone:
                if self._mirror is not None:
                    self._mirror.leave()
                self._mirror, self._connected = None, False
            if connected and gone and what not in self._renewed:
                self._renewed.add(what)
                self._replay()
                return
            if connected and (gone or is_refusal(error)):
                self._refused[what] = self._trouble
                return
            event.failures += 1
            self._put_back(event, last=event.failures % TRIES == 0)
            pause = min(self._pause * 2 ** min(self._failures, 10), max(self._pause, LONGEST_PAUSE))
            self._failures += 1
            self._changed.wait_for(lambda: bool(self._last), pause if not self._last else 0)
            if self._last and not self._given_up:
                self._changed.wait(min(self._pause, SHORT_PAUSE))

    def _put_back(self, event: _Event, last: bool) -> None:
        self._current = None
        if self._last and event.name in ("open", "start"):
            return  # too late
        if self._cut and event.name in ENDS:
            self._dropped += 1
        elif last:
            self._events.append(event)
        else:
            self._events.appendleft(event)

    def _replay(self) -> None:
        """All that this call knows, again: what is in MLflow already takes no request."""
        ends = [_Event("resend", (key,), key) for key in self._ended]
        if self._last:
            self._events = self._in_order(ends)
            return
        self._events = deque([_Event("open", (list(self._begun),)), *ends, *self._begun.values()])


def _finish(record: TrialRecord) -> _Event:
    return _Event("finish", (record,), record.key)
