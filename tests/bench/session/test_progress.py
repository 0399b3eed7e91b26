"""The progress of a run on the terminal."""

import io
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bench.config.benchmark import Benchmark, make_methods
from bench.config.loading import parse_benchmark
from bench.scheduling.queue import TrialQueue
from bench.session.progress import ProgressDisplay
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec
from bench.utils.text import format_duration

Fake = Callable[..., TrialRecord]


def terminal(is_terminal: bool = False) -> tuple[ProgressDisplay, io.StringIO]:
    out = io.StringIO()
    return ProgressDisplay(Console(file=out, width=200, force_terminal=is_terminal)), out


class Clock:
    """Seconds as the display sees them."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("bench.session.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def play(display: ProgressDisplay, queue: TrialQueue, fake: Fake, status: str = "completed") -> None:
    while (spec := queue.ask()) is not None:
        display.on_trial_start(spec)
        record = fake(spec, status if spec.stage == "run" else "completed")
        queue.tell(record)
        display.on_trial_end(record)


def test_the_first_line_says_how_much_there_is(tiny: Benchmark) -> None:
    """Before anything runs: how many trials, how many of them are done, how many at a time."""
    display, out = terminal()
    display.on_run_start(TrialQueue(make_methods(tiny)), 2)
    assert out.getvalue() == "9 trials, 2 at a time\n"


def test_what_was_done_before_is_said(tiny: Benchmark, fake: Fake) -> None:
    """A benchmark that goes on says how many trials were done before."""
    first = make_methods(tiny)[1].ask()
    assert first is not None
    display, out = terminal()
    display.on_run_start(TrialQueue(make_methods(tiny), [fake(first)]), 2)
    assert out.getvalue() == "9 trials, 1 done before, 2 at a time\n"


def simulate(
    display: ProgressDisplay, clock: Clock, queue: TrialQueue, fake: Fake, seconds: float, slots: int = 2
) -> None:
    """Run a whole queue on that many slots, each trial of which takes that long; starts follow ends at once."""
    running: list[tuple[float, TrialSpec]] = []
    while not queue.finished:
        while len(running) < slots and (spec := queue.ask()) is not None:
            running.append((clock.now + seconds * (1 + len(running)) / slots, spec))
            display.on_trial_start(spec)
        clock.now, spec = running.pop(0)
        record = fake(spec)
        queue.tell(record)
        display.on_trial_end(record)


def test_lines_count_the_slots_that_work(tiny: Benchmark, fake: Fake, clock: Clock) -> None:
    """While two slots work every line says so, although each line follows the end of a trial; time left is by the
    trials per second that were seen: one each 20 s."""
    display, out = terminal()
    queue = TrialQueue(make_methods(tiny))
    display.on_run_start(queue, 2)
    simulate(display, clock, queue, fake, 40.0)
    assert out.getvalue().splitlines()[1:] == [
        "1/9 done, 2 running, 6 left",
        *[f"{n}/9 done, 2 running, {7 - n} left, about {format_duration(20 * (9 - n))} to go" for n in range(2, 8)],
        "8/9 done, 1 running, 0 left, about 20 s to go",
        "9/9 done, 0 running, 0 left",
    ]


def test_time_left_of_trials_that_take_none(content: dict[str, Any], fake: Fake, clock: Clock) -> None:
    """If trials say that they took no time, the time left is that of the trials per second that were seen."""
    display, out = terminal()
    queue = TrialQueue(make_methods(parse_benchmark(content | {"seeds": list(range(1, 101))}, "x")))
    display.on_run_start(queue, 2)
    simulate(display, clock, queue, lambda spec: fake(spec, started=1000.0, finished=1000.0), 0.1)
    line = out.getvalue().splitlines()[1]
    match = re.match(r"(\d+)/(\d+) done, 2 running, \d+ left, about ([0-9.]+) s to go", line)
    assert match is not None, line
    done, total, left = int(match[1]), int(match[2]), float(match[3])
    assert left == pytest.approx(0.05 * (total - done), rel=0.05)


def test_slots_that_stay_free_hold_up_no_line(tiny: Benchmark, fake: Fake, clock: Clock) -> None:
    """If one of two slots is lost, lines go on, and say that one trial runs."""
    display, out = terminal()
    queue = TrialQueue(make_methods(tiny))
    display.on_run_start(queue, 2)
    simulate(display, clock, queue, fake, 25.0, slots=1)
    lines = out.getvalue().splitlines()[1:]
    assert len(lines) == 9
    assert all(", 1 running, " in line for line in lines[:-1])


def test_the_last_line_says_that_all_is_done(tiny: Benchmark, fake: Fake) -> None:
    """The end is always said, however short the time since the line before."""
    display, out = terminal()
    queue = TrialQueue(make_methods(tiny))
    display.on_run_start(queue, 2)
    play(display, queue, fake)
    display.close()
    assert out.getvalue().splitlines()[-1] == "9/9 done, 0 running, 0 left"


def test_lines_are_few(tiny: Benchmark, fake: Fake, clock: Clock) -> None:
    """Without a terminal a log is not flooded: a line every ten seconds, and the last."""
    display, out = terminal()
    queue = TrialQueue(make_methods(tiny))
    display.on_run_start(queue, 2)
    simulate(display, clock, queue, fake, 4.4)
    assert re.findall(r"\d/9 done", out.getvalue()) == ["5/9 done", "9/9 done"]


WHERE = "mnist-digits digits-resnet l2-sp n=100 seed=1001"


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_what_went_wrong_is_said_at_once(tiny: Benchmark, fake: Fake, status: str) -> None:
    """A trial that diverged or failed has a line of its own."""
    display, out = terminal()
    queue = TrialQueue(make_methods(tiny))
    display.on_run_start(queue, 2)
    play(display, queue, fake, status)
    assert out.getvalue().count(f"{status}: {WHERE} elbo run lr 0.1\n") == 1


def test_a_terminal_gets_a_bar(tiny: Benchmark, fake: Fake) -> None:
    """On a terminal a bar moves to the end, and closing twice leaves the terminal as it was."""
    display, out = terminal(is_terminal=True)
    queue = TrialQueue(make_methods(tiny))
    display.on_run_start(queue, 2)
    play(display, queue, fake)
    assert display.bar is not None
    display.close()
    display.close()
    assert display.bar is None
    assert "9/9" in out.getvalue()


def test_time_left_counts_parts_of_runs(content: dict[str, Any], fake: Fake, clock: Clock) -> None:
    """Halving's first trial is an eighth of a run: the rest of its run and a half takes eleven times as long."""
    display, _ = terminal()
    queue = TrialQueue(make_methods(parse_benchmark(content | {"methods": {"deelbo-halving": {}}}, "x")))
    display.on_run_start(queue, 1)
    spec = queue.ask()
    assert spec is not None
    display.on_trial_start(spec)
    clock.now += 8.0
    queue.tell(record := fake(spec))
    display.on_trial_end(record)
    assert display.status().endswith(f"about {format_duration(11 * 8.0)} to go")
    clock.now += 30.0  # a long trial: the time runs down
    assert display.status().endswith(f"about {format_duration(58.0)} to go")
    clock.now += 60.0
    assert "to go" not in display.status()
