"""Signals that stop a run, and the handlers of other libraries."""

import os
import signal

import pytest

from bench.exceptions import RunAborted
from bench.utils.signals import interrupt_on_signals, preserve_handlers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_interrupts_the_block(number: signal.Signals) -> None:
    """Each signal raises KeyboardInterrupt in the block; afterwards the former handler is back."""
    outside = signal.signal(number, signal.default_int_handler)  # the tests themselves may run under nohup
    try:
        with pytest.raises(KeyboardInterrupt) as stop, interrupt_on_signals():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, outside)
    assert not isinstance(stop.value, RunAborted)
    assert stop.traceback[-1].name == "_interrupt"


def test_ignored_signal_stays_ignored() -> None:
    """A run that was started under nohup survives SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_of_other_libraries_are_removed() -> None:
    """A handler that a library installs in the block, the default one included, does not outlast it."""
    with interrupt_on_signals():
        mine = signal.getsignal(signal.SIGTERM)
        for theirs in (signal.SIG_DFL, lambda number, frame: None):
            with preserve_handlers():
                signal.signal(signal.SIGTERM, theirs)
            assert signal.getsignal(signal.SIGTERM) is mine
