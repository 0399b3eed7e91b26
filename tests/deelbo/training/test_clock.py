"""Tests of the phase clock, with a time that the test sets."""

import pytest

from deelbo import PhaseClock
from deelbo.training.clock import PHASES


class Hand:
    """The time in seconds, which does not start at zero."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def move(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def clock(hand: Hand) -> PhaseClock:
    return PhaseClock(now=hand)


def booked(clock: PhaseClock) -> dict[str, float]:
    return {name: seconds for name, seconds in clock.seconds.items() if seconds}


def test_starts_with_every_phase_at_zero(clock: PhaseClock) -> None:
    """A new clock has all phases with zero seconds, and changing the returned ones does not change the clock."""
    clock.seconds["train"] = 5.0
    assert clock.seconds == dict.fromkeys(PHASES, 0.0)


def test_books_only_inside_a_phase(clock: PhaseClock, hand: Hand) -> None:
    """Time between phases is booked nowhere, and times of the same phase add up."""
    for _ in range(2):
        with clock.phase("train"):
            hand.move(2)
        hand.move(50)
    assert booked(clock) == {"train": 4}


def test_an_inner_phase_takes_its_time_out_of_the_outer(clock: PhaseClock, hand: Hand) -> None:
    """Seconds of a nested phase are booked once, under the inner name, also if that is the outer one's."""
    with clock.phase("train"):
        hand.move(1)
        with clock.phase("evaluate"):
            hand.move(10)
            with clock.phase("checkpoint"):
                hand.move(100)
            hand.move(20)
        hand.move(2)
        with clock.phase("train"):
            hand.move(4)
    assert booked(clock) == {"train": 7, "evaluate": 30, "checkpoint": 100}


def test_paused_time_is_booked_nowhere(clock: PhaseClock, hand: Hand) -> None:
    """`paused` takes time out of the phase, and a phase inside it is still booked."""
    with clock.phase("train"):
        hand.move(1)
        with clock.paused():
            hand.move(10)
            with clock.phase("checkpoint"):
                hand.move(5)
            hand.move(10)
        hand.move(2)
    assert booked(clock) == {"train": 3, "checkpoint": 5}


def test_read_sees_the_running_phase(clock: PhaseClock, hand: Hand) -> None:
    """`read` includes the running phase up to now, and reading twice books nothing twice."""
    with clock.phase("train"):
        hand.move(3)
        assert (clock.read("train"), clock.read("train"), clock.read("test")) == (3, 3, 0)
        hand.move(1)
    hand.move(9)
    assert clock.read("train") == 4


def test_carried_seconds_add_up(clock: PhaseClock, hand: Hand) -> None:
    """Another clock's seconds are added by phase, also to the running phase."""
    with clock.phase("setup"):
        hand.move(2)
    with clock.phase("train"):
        hand.move(1)
        clock.carry({"setup": 0.5, "train": 40.0})
        hand.move(2)
        assert clock.read("train") == 43
    assert booked(clock) == {"setup": 2.5, "train": 43}


@pytest.mark.parametrize("wrong", [{"lunch": 1.0}, {"test": -1.0}, {"test": float("nan")}, {"test": float("inf")}])
def test_impossible_seconds_are_not_carried(clock: PhaseClock, wrong: dict[str, float]) -> None:
    """An unknown phase and impossible seconds raise a ValueError, and nothing is added."""
    with pytest.raises(ValueError, match="the seconds of a phase must be a number >= 0, got"):
        clock.carry({"train": 5.0} | wrong)
    assert booked(clock) == {}


def test_an_unknown_phase_is_refused(clock: PhaseClock) -> None:
    """A misspelled phase raises a ValueError that lists the phases."""
    with pytest.raises(ValueError, match=r"one of setup, .*got 'trian'"), clock.phase("trian"):
        pass


def test_an_exception_ends_its_phase(clock: PhaseClock, hand: Hand) -> None:
    """A phase that raises keeps its seconds, and the outer phase continues."""

    def fail() -> None:
        hand.move(10)
        raise ZeroDivisionError

    with clock.phase("train"):
        hand.move(1)
        with pytest.raises(ZeroDivisionError), clock.phase("evaluate"):
            fail()
        hand.move(2)
    hand.move(100)
    assert booked(clock) == {"train": 3, "evaluate": 10}
