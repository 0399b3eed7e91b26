"""How many trials run at once, as each is told when it begins and ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.config.benchmark import Benchmark, make_methods
from bench.ray_backend.concurrency import Counter, Running
from bench.ray_backend.trainable import TrialTrainable
from bench.trials.record import TrialRecord

FakeRecord = Callable[..., TrialRecord]


def test_each_counts_itself_and_those_beside_it() -> None:
    """The count at a begin and at an end holds the one that asks, and all that are inside."""
    counter = Counter()
    assert counter.begin("a") == 1
    assert counter.begin("b") == 2
    assert counter.end("a") == 2
    assert counter.end("b") == 1


def test_messages_may_come_twice_or_too_late() -> None:
    """One that begins twice is there once, one that was forgotten still ends, and forgetting nobody does nothing."""
    counter = Counter()
    counter.begin("a")
    assert counter.begin("a") == 1
    counter.forget("a")
    assert counter.begin("b") == 1
    assert counter.end("a") == 2
    counter.forget("c")
    assert counter.end("b") == 1


def test_without_a_counter_nothing_is_counted(tiny: Benchmark, fake: FakeRecord) -> None:
    """Where there is no counter the record stays as it is."""
    record = fake(next(iter(make_methods(tiny)[0].first())))
    running = Running()
    running.meet()
    running.begin("a")
    assert running.end("a", record) is record
    running.forget("a")
    running.stop()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_counter_that_died_costs_nothing(tiny: Benchmark, fake: FakeRecord) -> None:
    """A trial whose counter died keeps its record, without a count and without waiting, and so does the next."""
    import ray

    record = fake(next(iter(make_methods(tiny)[0].first())))
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        running = Running.start()
        running.meet()  # a trial would wait for 1 s only
        running.begin("a")
        counted = running.end("a", record)
        assert (counted.concurrency_start, counted.concurrency_end) == (1, 1)
        running.begin("b")
        running.stop()
        since = time.monotonic()
        for name in "bcd":
            running.begin(name)
            assert running.end(name, record) is record
        running.forget("e")
        running.meet()
        assert time.monotonic() - since < 20
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_counter_that_starts_late_is_waited_for(tiny: Benchmark, fake: FakeRecord) -> None:
    """A counter that takes longer to start than three short trials do counts all the same, from the first on."""
    import ray

    class Late(Counter):
        def __init__(self) -> None:
            time.sleep(5)
            super().__init__()

    record = fake(next(iter(make_methods(tiny)[0].first())))
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        running = Running(ray.remote(Late).options(num_cpus=0).remote())
        running.meet()
        for name in "abcd":
            running.begin(name)
            assert running.end(name, record).concurrency_start == 1
    finally:
        ray.shutdown()


def test_a_process_meets_the_counter_before_its_first_trial(tiny: Benchmark, tmp_path: Path) -> None:
    """A slot's process has met the counter once it is set up, when no trial has begun."""
    calls: list[str] = []

    class Noted(Running):
        def __getattribute__(self, name: str) -> Any:
            calls.append(name)
            return super().__getattribute__(name)

    actor = object.__new__(TrialTrainable)
    actor.setup({}, {}, str(tmp_path), "token", tiny, 1, None, lambda: None, Noted())
    assert calls[0] == "meet"


def test_a_message_that_cannot_be_sent_is_no_error(tiny: Benchmark, fake: FakeRecord) -> None:
    """A counter to which nothing can be sent leaves the record alone."""

    def refuse(name: str) -> None:
        raise ConnectionError(name)

    call = SimpleNamespace(remote=refuse)
    record = fake(next(iter(make_methods(tiny)[0].first())))
    running = Running(SimpleNamespace(here=call, begin=call, end=call, forget=call))
    running.meet()
    running.begin("a")
    assert running.end("a", record) is record
    running.forget("a")
