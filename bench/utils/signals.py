"""How a run is stopped: by Ctrl-C, SIGTERM or SIGHUP, or by itself where it cannot go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

__all__ = ["ignore_signals", "same_handlers", "stopped_by_signals"]


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the block, in the main thread; one that was ignored, as
    nohup has it, stays so. Elsewhere nothing is changed."""
    with same_handlers():
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, _interrupt)
        yield


def ignore_signals() -> None:
    """From now on: who has stopped, and says so, is not to be killed for leaving too slowly."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def same_handlers() -> Iterator[None]:
    """After the block signals are handled as before it: Ray sets its own, and sets them back to the kernel's."""
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items() if here else ():
            signal.signal(number, handler)
