"""Signals that stop a run, and those that others handle."""

from __future__ import annotations

import os
import signal

import pytest

from bench.exceptions import RunAborted
from bench.utils.signals import same_handlers, stopped_by_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_what_runs(number: signal.Signals) -> None:
    """Each of the signals raises KeyboardInterrupt in the block; after it they are handled as before."""
    outside = signal.signal(number, signal.default_int_handler)  # nohup, say, has the tests ignore one
    try:
        with pytest.raises(KeyboardInterrupt) as stop, stopped_by_signals():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, outside)
    assert not isinstance(stop.value, RunAborted)
    assert stop.traceback[-1].name == "_interrupt"


def test_what_was_ignored_stays_ignored() -> None:
    """A run that was started to outlive its terminal does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_others_leave_no_handler() -> None:
    """A library that sets its own handler, or the kernel's, has no say after the block."""
    with stopped_by_signals():
        mine = signal.getsignal(signal.SIGTERM)
        for theirs in (signal.SIG_DFL, lambda number, frame: None):
            with same_handlers():
                signal.signal(signal.SIGTERM, theirs)
            assert signal.getsignal(signal.SIGTERM) is mine
