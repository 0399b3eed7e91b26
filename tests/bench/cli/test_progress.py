"""What a person sees while a benchmark runs."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from bench.cli.progress import ProgressDisplay
from bench.config.benchmark import Benchmark, make_methods
from bench.scheduling.queue import TrialQueue
from bench.trials.record import TrialRecord
from bench.trials.spec import TrialSpec

Fake = Callable[..., TrialRecord]


def terminal(is_terminal: bool = False) -> tuple[ProgressDisplay, io.StringIO]:
    out = io.StringIO()
    return ProgressDisplay(Console(file=out, width=200, force_terminal=is_terminal)), out


def play(callback: ProgressDisplay, queue: TrialQueue, fake: Fake, status: str = "completed") -> None:
    while (spec := queue.ask()) is not None:
        callback.on_trial_start(spec)
        record = fake(spec, status if spec.stage == "run" else "completed")
        queue.tell(record)
        callback.on_trial_end(record)


def test_the_first_line_says_how_much_there_is(tiny: Benchmark) -> None:
    """Before anything runs: how many trials, how many of them are done, how many at a time."""
    callback, out = terminal()
    callback.on_run_start(TrialQueue(make_methods(tiny)), 2)
    assert out.getvalue() == "9 trials, 2 at a time\n"


def test_what_was_done_before_is_said(tiny: Benchmark, fake: Fake) -> None:
    """A benchmark that goes on says how many trials were done before."""
    first = make_methods(tiny)[1].ask()
    assert first is not None
    callback, out = terminal()
    callback.on_run_start(TrialQueue(make_methods(tiny), [fake(first)]), 2)
    assert out.getvalue() == "9 trials, 1 done before, 2 at a time\n"


def test_status_counts_running_left_and_time(tiny: Benchmark, fake: Fake) -> None:
    """Nothing running counts as left; one trial of 14 s done on two slots leaves 8 x 14 / 2 = 56 s."""
    callback, _ = terminal()
    queue = TrialQueue(make_methods(tiny))
    callback.on_run_start(queue, 2)
    specs: list[TrialSpec] = []
    for _ in range(3):
        spec = queue.ask()
        assert spec is not None
        specs.append(spec)
        callback.on_trial_start(spec)
    assert callback.status() == "2 running, 7 left"
    record = fake(specs[0])
    queue.tell(record)
    callback.on_trial_end(record)
    assert callback.status() == "2 running, 6 left, about 56 s to go"


def test_the_last_line_says_that_all_is_done(tiny: Benchmark, fake: Fake) -> None:
    """The end is always said, however short the time since the line before."""
    callback, out = terminal()
    queue = TrialQueue(make_methods(tiny))
    callback.on_run_start(queue, 2)
    play(callback, queue, fake)
    callback.close()
    assert out.getvalue().splitlines()[-1] == "9/9 done, 0 running, 0 left"


def test_lines_are_few(tiny: Benchmark, fake: Fake) -> None:
    """Where there is no terminal, a log is not flooded: a line every ten seconds, and the last."""
    callback, out = terminal()
    queue = TrialQueue(make_methods(tiny))
    callback.on_run_start(queue, 2)
    play(callback, queue, fake)
    assert len(re.findall(r"\d/9 done", out.getvalue())) <= 2


WHERE = "mnist-digits digits-resnet l2-sp n=100 seed=1001"


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_what_went_wrong_is_said_at_once(tiny: Benchmark, fake: Fake, status: str) -> None:
    """A trial that diverged or failed has a line of its own."""
    callback, out = terminal()
    queue = TrialQueue(make_methods(tiny))
    callback.on_run_start(queue, 2)
    play(callback, queue, fake, status)
    assert out.getvalue().count(f"{status}: {WHERE} elbo run lr 0.1\n") == 1


def test_a_terminal_gets_a_bar(tiny: Benchmark, fake: Fake) -> None:
    """On a terminal a bar moves to the end, and closing twice leaves the terminal as it was."""
    callback, out = terminal(is_terminal=True)
    queue = TrialQueue(make_methods(tiny))
    callback.on_run_start(queue, 2)
    play(callback, queue, fake)
    assert callback.bar is not None
    callback.close()
    callback.close()
    assert callback.bar is None
    assert "9/9" in out.getvalue()
