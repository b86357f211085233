"""Ending on a signal, whatever the main thread is about when it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from streaming.stopping import stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.timeout(30)
def test_a_signal_that_meets_the_main_thread_holding_the_events_lock_is_heard(number: signal.Signals) -> None:
    with stopping() as stop:
        with stop._cond:  # type: ignore[attr-defined]  # as within any wait()
            os.kill(os.getpid(), number)
        assert stop.wait(20)


def test_a_process_without_standard_error_is_stopped_too() -> None:
    code = (
        "import os, signal, sys; from streaming import stopping; stop = stopping.stop_on_signals(); sys.stderr = None\n"
        "os.kill(os.getpid(), signal.SIGTERM); print(stop.wait(20))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True\n"


def test_afterwards_the_signals_mean_what_they_did() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stopping() as stop:
        pass
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert stop.wait(20), "its thread waits for good"


def test_a_process_that_is_asked_says_where_it_is_and_goes_on() -> None:
    code = (
        "import os, signal; from streaming.stopping import answer_where_it_is as answer; answer()\n"
        "def deep_within(): os.kill(os.getpid(), signal.SIGUSR1)\n"
        "deep_within(); print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "deep_within" in done.stderr
    assert done.stdout == "went on\n"


def test_a_process_that_does_not_end_although_it_was_told_to_says_where_it_hangs() -> None:
    code = (
        "import os, signal, threading\nfrom streaming import stopping\nstopping._LATE_S = 0.1\n"
        "stop = stopping.stop_on_signals()\nos.kill(os.getpid(), signal.SIGTERM)\nstop.wait()\n"
        "def hangs():\n    threading.Event().wait()\nhangs()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert any("in hangs" in line for line in process.stderr)
    finally:
        process.kill()
        process.communicate()
