"""Measuring from Dagster: an experiment's run as a process group of its own, followed line by line.

Invariant: when measure() is left, however, no process of that group is alive; when this process is killed, the kernel
ends the run's process with it, and that one's brokers and members with that.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from experiments.launch import FINE, FOUND_TROUBLE, Request, find
from experiments.run import Run
from streaming.cluster import tether
from streaming.errors import StreamgaugeError
from streaming.home import Home

GRACE_S: Final = 20.0  # for cleaning up after SIGTERM: topics, brokers, the partial table
TOLD_EVERY_S: Final = 5.0
_LAST_LINES: Final = 20


class NotMeasuredToTheEnd(StreamgaugeError):
    """The run's process has ended early; what it measured is kept as a partial run."""


def measure(request: Request, home: Home, say: Callable[[str], None]) -> Run:
    """Carry out the request in a process of its own and return the finished run.

    Raises NotMeasuredToTheEnd with the process's last words when the run is not complete. An exception in this thread
    (Dagster's interrupt when somebody terminates the run) ends the process, cleanly if it needs no longer than
    GRACE_S.
    """
    process = _start(request, home)
    try:
        run_id, last_words = _follow(process.stdout or (), say)
        code = process.wait()
    finally:
        _end(process)
    if code not in (FINE, FOUND_TROUBLE) or run_id is None:
        raise NotMeasuredToTheEnd(f"{request.experiment} ended with {code}: {last_words or 'it was interrupted'}")
    done = find(home, run_id)
    if not done.is_complete:
        raise NotMeasuredToTheEnd(f"{run_id} is partial: {done.provenance['reason']}")
    return done


def _start(request: Request, home: Home) -> subprocess.Popen[str]:
    return subprocess.Popen(
        tether.tethered([sys.executable, "-m", "experiments.launch", str(home.root), request.dump()]),
        env=tether.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _follow(lines: Iterable[str], say: Callable[[str], None]) -> tuple[str | None, str]:
    """Tell progress until the process closes its output; its run's id, and its last lines that were no progress."""
    run_id, told_at, phase = None, 0.0, ""
    others: deque[str] = deque(maxlen=_LAST_LINES)
    for line in lines:
        told = _parsed(line)
        if told is None:
            others.append(line.rstrip())
        elif "run" in told:
            run_id = str(told["run"])
        elif told["phase"] != phase or time.monotonic() - told_at >= TOLD_EVERY_S:
            phase, told_at = told["phase"], time.monotonic()
            say(_sentence(told))
    return run_id, "\n".join(others)


def _parsed(line: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return None


def _sentence(told: dict[str, Any]) -> str:
    if told["phase"] == "queued":
        return f"queued: {told['says']}"
    left = f", about {told['remaining_s']:.0f} s left" if told["remaining_s"] else ""
    return f"{told['phase']} {told['done']}/{told['total']}{left}: {told['says']}"


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM to the run's process, which cleans up; then SIGKILL to whatever is left of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()
