"""A launcher that ties a program's life to its parent's: `python -m streaming.cluster.tether -- PROGRAM ARGUMENTS…`.

Invariant: when the parent ends, by whatever signal, the kernel sends the program SIGKILL; there is no moment between
fork and exec in which the parent's end goes unnoticed. SIGKILL, because a program that may linger is not tied.

Two properties of the kernel's parent-death signal to know: it fires when the *thread* that started this process ends,
so start tethered programs from a thread that lives as long as they should; and a program's own children are not tied.

Started dozens of times, so it imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
# The parent's process id, by which the launcher sees that its parent had gone before it could ask for the signal.
PARENT = "STREAMGAUGE_TETHERED_TO"


def tethered(command: Sequence[str]) -> list[str]:
    """The command that runs `command` tethered. Its environment should name the parent's process id in PARENT."""
    return [sys.executable, "-m", "streaming.cluster.tether", "--", *command]


def main(arguments: Sequence[str]) -> None:
    """Become the program. Ends with 1 when the parent has gone, 127 when there is no such program."""
    command = list(arguments[1:])
    expected = int(os.environ.pop(PARENT, None) or os.getppid())
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"tether: prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != expected:
        sys.exit("tether: the parent has gone")
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as error:
        print(f"tether: {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
