"""Faults that a test asks a role's process for, at named moments of its sink's commits. Without the variables: none.

* STREAMGAUGE_CRASH_AT=after_link:3: SIGKILL when that moment comes for the third time.
* STREAMGAUGE_DROP_AT=after_high_water:3: the first three times, every connection of the process is cut, so that what
  was just committed is never acknowledged.
* STREAMGAUGE_FILE_SECONDS=0.3: commit this often, so that there are many such moments.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

import psutil

from sinks.files import Rotation
from streaming.errors import UsageError

DROPPED: Final = "connections were cut at"  # a line of the role's log for each time
_log = logging.getLogger(__name__)
Checkpoint = Callable[[str], None]


def checkpoint_of(environ: Mapping[str, str], last_words: Callable[[], None] = lambda: None) -> Checkpoint:
    """What a sink calls at each moment of its commits; `last_words` is called before it kills itself."""

    def die(_: str) -> None:
        with contextlib.suppress(OSError):  # the other thread may be writing the same file at this moment
            last_words()
        os.kill(os.getpid(), signal.SIGKILL)

    drop = _at(environ.get("STREAMGAUGE_DROP_AT"), _drop, each_time=True)
    crash = _at(environ.get("STREAMGAUGE_CRASH_AT"), die, each_time=False)

    def checkpoint(reached: str) -> None:
        drop(reached)
        crash(reached)

    return checkpoint


def rotation_of(environ: Mapping[str, str], rows: int | None = None) -> Mapping[str, Any]:
    """The rotation as a sink's option, if another one than the sink's own is asked for."""
    wanted = environ.get("STREAMGAUGE_FILE_SECONDS")
    if wanted:
        return {"rotation": Rotation(rows=rows or 30_000, seconds=float(wanted))}
    return {"rotation": Rotation(rows=rows)} if rows else {}


def cut_connections() -> int:
    """Shut down every TCP connection of this process, as a network that fails; returns how many there were."""
    cut = 0
    for connection in psutil.Process().net_connections(kind="tcp"):
        if connection.status != psutil.CONN_ESTABLISHED or connection.fd < 0:
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as same:
            same.shutdown(socket.SHUT_RDWR)
            cut += 1
    return cut


def _drop(reached: str) -> None:
    cut = cut_connections()
    _log.warning("%s %s: %d", DROPPED, reached, cut)


def _at(wanted: str | None, act: Checkpoint, *, each_time: bool) -> Checkpoint:
    """Acts when the moment comes for the last of the times asked for, or each time until then."""
    name, left = _parsed(wanted)

    def checkpoint(reached: str) -> None:
        nonlocal left
        if reached == name and left:
            left -= 1
            if each_time or not left:
                act(reached)

    return checkpoint


def _parsed(wanted: str | None) -> tuple[str, int]:
    """`after_link:3`: the moment, and how often."""
    name, _, times = (wanted or "").partition(":")
    try:
        return name, int(times or 1)
    except ValueError:
        raise UsageError(f"{wanted}: a moment and a number, such as after_link:3") from None
