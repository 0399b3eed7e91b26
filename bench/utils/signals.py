"""Signal handling: SIGINT, SIGTERM and SIGHUP stop a run in the same way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block on SIGINT, SIGTERM and SIGHUP.

    A signal that is ignored, as SIGHUP under nohup, stays ignored. Outside the main thread nothing changes.
    """
    with preserve_handlers():
        if in_main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, _interrupt)
        yield


def in_main_thread() -> bool:
    """Return whether this is the main thread, the only one that may handle signals."""
    return threading.current_thread() is threading.main_thread()


def ignore_signals() -> None:
    """Ignore the signals from now on: a process that has already stopped is not killed while it exits."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def preserve_handlers() -> Iterator[None]:
    """Restore the signal handlers after the block: Ray installs its own and then resets them to the default."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items() if in_main_thread() else ():
            signal.signal(number, handler)
