"""SIGTERM and SIGINT as an event, so that loops end in order; SIGUSR1 as a question where a process is."""

from __future__ import annotations

import _thread
import faulthandler
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Final

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_NO_SIGNAL: Final = 0
_LATE_S: Final = 40.0  # before a supervisor's patience ends with SIGKILL


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set, from now on and for good. On the main thread only.

    A process that is still there long after that writes to standard error where it is.
    """
    stop = threading.Event()
    _handle(stop)
    return stop


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """The same for a block; what handled the signals before does so again afterwards."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in _ENDING}
    end = _handle(stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        end()
        faulthandler.cancel_dump_traceback_later()


def answer_where_it_is() -> None:
    """On SIGUSR1 write every thread's stack to standard error, whatever the process waits for, and go on."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def _handle(stop: threading.Event) -> Callable[[], None]:
    # A handler runs between any two steps of the main thread, which may hold the event's lock just then: set() would
    # wait for itself for good. So the handler leaves word for a thread that may wait; SimpleQueue.put() is reentrant.
    told: SimpleQueue[int] = SimpleQueue()

    def wait() -> None:
        try:
            if told.get() != _NO_SIGNAL:
                faulthandler.dump_traceback_later(_LATE_S)  # fails without a real standard error; the end comes first
        finally:
            stop.set()

    # No threading.Thread: profilers follow those, and would count this one's waiting as the role's time.
    _thread.start_new_thread(wait, ())
    for number in _ENDING:
        signal.signal(number, lambda caught, _: told.put(caught))
    return lambda: told.put(_NO_SIGNAL)
