"""Summaries of runs, on timelines made by hand."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from bench.config.benchmark import Benchmark
from bench.scheduling.run_summary import FinishedTrial, RunSummary, summarize_run

Timeline = Callable[..., list[FinishedTrial]]


@pytest.fixture
def timeline(tiny: Benchmark, play: Any, fake: Any) -> Timeline:
    """Trials that started and finished at the given times."""
    specs = [record.spec for record in play(tiny)]

    def make(*spans: tuple[float, float]) -> list[FinishedTrial]:
        timed = zip(specs, spans, strict=False)
        return [FinishedTrial.of(fake(spec, started=start, finished=end)) for spec, (start, end) in timed]

    return make


def test_a_full_house_is_always_busy(timeline: Timeline) -> None:
    """Two slots that work from the first to the last second are busy all the time."""
    summary = summarize_run(timeline((100, 110), (100, 105), (105, 110)), 0, 0, 2, 100)
    assert (summary.utilization, summary.wall_seconds, summary.idle_tail_seconds) == (1, 10, 0)
    assert (summary.start_up_seconds, summary.mean_gap_seconds) == (0, 0)


def test_start_up_hand_over_and_tail_are_told_apart(timeline: Timeline) -> None:
    """Slot-seconds outside trials are start-up, gaps or the end, whatever the order of the records."""
    records = timeline((104, 108), (104, 109), (109, 115), (110, 120))
    summary = summarize_run(records, 3, 1, 2, 100)
    assert summary.wall_seconds == 20
    assert summary.utilization == pytest.approx(25 / 40)
    assert summary.start_up_seconds == 4
    assert summary.idle_tail_seconds == 5
    assert summary.mean_gap_seconds == pytest.approx(1)
    assert (summary.ran, summary.reused, summary.failed, summary.left) == (4, 3, 0, 1)
    lost = 2 * summary.start_up_seconds + 2 * summary.mean_gap_seconds + summary.idle_tail_seconds
    assert 25 + lost == 2 * 20
    assert asdict(summarize_run(records[::-1], 3, 1, 2, 100)) == asdict(summary)


def test_failures_are_said_by_their_last_line(tiny: Benchmark, play: Any, fake: Any) -> None:
    """A failed trial is one line: what it was, and the last line of its error."""
    specs = [record.spec for record in play(tiny)]
    failed = [fake(specs[0], "failed"), fake(specs[1], "failed", error=None)]
    summary = summarize_run([FinishedTrial.of(record) for record in failed], 0, 0, 1, 0)
    assert summary.failed == 2
    assert summary.failures[0] == f"{specs[0].describe()}: RuntimeError: out of luck"
    assert summary.failures[1].endswith(": no error kept")
    assert "2 failed" in summary.describe()


def test_a_call_without_trials_says_what_is_done_and_left() -> None:
    """A call in which no trial ended says how many were done before, and how many are left or that none is."""
    summary = summarize_run([], 7, 0, 2, 0)
    assert (summary.ran, summary.reused, summary.utilization) == (0, 7, 0)
    assert summary.describe() == "nothing left to run, 7 trials done before"
    assert summarize_run([], 7, 3, 2, 0).describe() == "no trial ended in this call, 7 done before, 3 left"


def test_description_names_every_part() -> None:
    """For people: how many trials, how long, how busy, and what ate the rest."""
    text = RunSummary(5, 2, 1, ["x"], 0, 3, 185.0, 0.814, 4.21, 0.0123, 7.0).describe()
    assert text == (
        "5 trials in 3 min 5 s: 3 slots busy 81% of the time; start-up 4.2 s, 12 ms between two trials, "
        "7.0 s idle at the end; 2 done before, 1 failed"
    )
