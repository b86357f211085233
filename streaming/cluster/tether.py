"""A launcher that ties a program's life to its parent's: `python -m streaming.cluster.tether -- PROGRAM ARGUMENTS…`.

Invariant: when the parent ends, by whatever signal, the kernel sends the program SIGKILL; there is no moment between
fork and exec in which the parent's end goes unnoticed. SIGKILL, because a program that may linger is not tied.

With `--pace FILE` it also slows a program down that keeps ending: before each start that follows a short life it waits,
twice as long each time. (A supervisor's own back-off knows failed starts only, not crashes.)

Two properties of the kernel's parent-death signal to know: it fires when the *thread* that started this process ends,
so start tethered programs from a thread that lives as long as they should; and a program's own children are not tied.

Started dozens of times, so it imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
# The parent's process id, by which the launcher sees that its parent had gone before it could ask for the signal.
PARENT: Final = "STREAMGAUGE_TETHERED_TO"
SHORT_LIFE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 30.0
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def tethered(command: Sequence[str], *, pace: Path | None = None) -> list[str]:
    """The command that runs `command` tethered. Its environment should be environment().

    `pace` is a file of this program's own that remembers its last start; delete it and the next start is immediate.
    """
    options = ["--pace", str(pace)] if pace else []
    return [sys.executable, "-m", "streaming.cluster.tether", *options, "--", *command]


def environment(more: Mapping[str, str] = _NOTHING) -> dict[str, str]:
    """For a tethered program that this process starts: this process's own, `more`, and its id in PARENT."""
    return {**os.environ, **more, PARENT: str(os.getpid())}


def starts_at(pace: Path) -> float:
    """When the program's last start was or will be (seconds since 1970): in the future while the launcher waits."""
    return _last_start(pace)[0]


def main(arguments: Sequence[str]) -> None:
    """Become the program. Ends with 1 when the parent has gone, 127 when there is no such program."""
    split = arguments.index("--")
    options, command = arguments[:split], list(arguments[split + 1 :])
    _tie(int(os.environ.pop(PARENT, None) or os.getppid()))
    if options:
        _pause(Path(options[1]))
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as error:
        print(f"tether: {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


def _tie(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"tether: prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("tether: the parent has gone")


def _pause(pace: Path) -> None:
    started_at, last_pause_s = _last_start(pace)
    now = time.time()
    is_short = now - started_at < SHORT_LIFE_S
    pause_s = min(max(1.0, 2 * last_pause_s), LONGEST_PAUSE_S) if is_short else 0.0
    pace.write_text(f"{now + pause_s} {pause_s}")
    if pause_s:
        print(
            f"tether: ended within {SHORT_LIFE_S:.0f} s, starting again in {pause_s:.0f} s", file=sys.stderr, flush=True
        )
        time.sleep(pause_s)


def _last_start(pace: Path) -> tuple[float, float]:
    try:
        started_at, pause_s = map(float, pace.read_text().split())
    except (OSError, ValueError):
        return 0.0, 0.0
    return started_at, pause_s


if __name__ == "__main__":
    main(sys.argv[1:])
