"""How a loop spends its time: seconds of waiting and of work in each turn, and the records it took in.

Invariant: turns follow each other without a gap, so their seconds add up to the loop's own time. A turn costs two
looks at the clock and three numbers in an array; they are written out about once a second.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final

import polars as pl

COLUMNS: Final = ("wait_s", "work_s", "records")
SUFFIX: Final = ".turns"


class Turns:
    """One loop's turns, appended to a file of raw float64. For one thread."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        self._path = path
        self._clock = clock
        self._numbers = array("d")
        self._ended_s = clock()
        self._waited_s = 0.0
        self._records = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    def beside(self, thread: str) -> Turns:
        """The turns of another thread's loop in the same process, in a file beside this one."""
        return Turns(self._path.with_suffix(f".{thread}{SUFFIX}"), self._clock)

    def begin(self, waited_s: float, records: int) -> None:
        """The loop begins now; `waited_s` and `records` are what its counters have reached before."""
        self._ended_s = self._clock()
        self._waited_s, self._records = waited_s, records

    def end(self, waited_s: float, records: int) -> None:
        """A turn is over: the counters, which never fall, have come to this."""
        now_s = self._clock()
        wait_s = waited_s - self._waited_s
        self._numbers.extend((wait_s, now_s - self._ended_s - wait_s, records - self._records))
        self._ended_s, self._waited_s, self._records = now_s, waited_s, records

    def write(self) -> None:
        """Append to the file what is not in it yet."""
        numbers, self._numbers = self._numbers, array("d")
        with self._path.open("ab") as file:
            file.write(numbers.tobytes())


def read(path: Path) -> pl.DataFrame:
    """A loop's turns in their order: wait_s, work_s (Float64), records (Int64). A torn end is left out."""
    numbers = array("d")
    raw = path.read_bytes()
    numbers.frombytes(raw[: len(raw) // 24 * 24])
    columns = {name: pl.Series(numbers[place::3], dtype=pl.Float64) for place, name in enumerate(COLUMNS)}
    return pl.DataFrame(columns).with_columns(pl.col("records").cast(pl.Int64))
