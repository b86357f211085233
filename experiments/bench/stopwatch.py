"""Time, processor time and memory of a contender, measured inside its own process; prints them as one line of JSON.

The clock runs from the return of the first poll that had records to the last record durable. The records of that poll
are not counted, for nobody: a client has fetched them before, while it was assigned. Imports nothing heavy, because
what is imported counts as the contender's memory.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

_KIB = 1024
_MB = 1e6


@dataclass(slots=True)
class Stopwatch:
    """Told of records taken in and done; knows the first moment of the former and the last of the latter."""

    skipped: int = 0
    done: int = 0
    began_s: float | None = None
    ended_s: float = 0.0
    cpu_began_s: float = 0.0
    cpu_ended_s: float = 0.0

    def begin(self) -> None:
        """Start the clock without skipping records."""
        self.began_s, self.cpu_began_s = time.monotonic(), time.process_time()

    def takes(self, records: int) -> None:
        """Records were taken in: the first ones start the clock."""
        if records and self.began_s is None:
            self.skipped = records
            self.begin()

    def finishes(self, records: int) -> None:
        """Records are done for good (durable, where that applies)."""
        self.done += records
        self.ended_s, self.cpu_ended_s = time.monotonic(), time.process_time()

    def report(self, *, above_bytes: int = 0) -> None:
        """Print the result; memory is the peak of this process, or what it lies above `above_bytes`."""
        began_s = self.ended_s if self.began_s is None else self.began_s
        print(
            json.dumps(
                {
                    "done": self.done,
                    "timed": self.done - self.skipped,
                    "seconds": self.ended_s - began_s,
                    "cpu_s": self.cpu_ended_s - self.cpu_began_s,
                    "peak_mb": (peak_bytes() - above_bytes) / _MB,
                }
            ),
            flush=True,
        )


def peak_bytes() -> int:
    """The most resident memory since this program began (not ru_maxrss: that one remembers the parent's)."""
    return _status("VmHWM")


def forget_peak() -> int:
    """Let peak_bytes() begin anew; the resident memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * _KIB for line in lines if line.startswith(f"{name}:"))
