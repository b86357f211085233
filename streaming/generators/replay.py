"""A recording sent again: its intervals divided by a speed, open loop, its times moved to now unless they are kept.

With times moved to now, event time runs with the wall clock: an event at t seconds of the recording is sent, and says
it happened, t / speed seconds after the start. At speed None events go out as fast as they can, their times moved but
not squeezed. Each replay is a producer of its own (producer_name()), so no replay is late against an earlier one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streaming.errors import UsageError
from streaming.generators.columns import UTC_TIME
from streaming.generators.ledger import fresh_name
from streaming.generators.pacing import Clock, Pacing, SystemClock
from streaming.generators.recording import Recording
from streaming.generators.run import Chunk

ROWS_AT_ONCE: Final = 20_000
IDLE_S: Final = 5.0  # a longer pause is announced by a mark, so that windows need not wait for its end
CLOSEST_S: Final = 0.01  # chunks are at least this far apart, so that a dense recording goes out in batches
SHIPPED: Final = Path(__file__).resolve().parent.parent / "recordings" / "around-visnjan-with-car.gpx"


class Rebase(StrEnum):
    """What becomes of the recording's times."""

    NOW = "now"
    KEEP = "keep"


def producer_name(path: Path) -> str:
    """A producer name for one replay of this file: replay-<file>-<time>."""
    return fresh_name(f"replay-{path.name.split('.')[0]}")


class Replay:
    """A generator of `positions` from a recording, `speed` times as fast as it was (None: as fast as possible)."""

    stream = "positions"
    is_live = False

    def __init__(
        self,
        recording: Recording,
        *,
        speed: float | None = 1.0,
        rebase: Rebase = Rebase.NOW,
        is_looped: bool = False,
        clock: Clock | None = None,
    ) -> None:
        if speed is not None and not speed > 0:
            raise UsageError(f"speed {speed}: above 0")
        self.recording, self.speed, self.rebase, self.is_looped = recording, speed, rebase, is_looped
        self.clock = clock or SystemClock()
        self.pacing = Pacing(None, self.clock)
        times = recording.frame["event_time"].to_physical().to_numpy()
        self._since_us: NDArray[np.int64] = times - times[0]  # of the recording, from its first event on
        self._first_us = int(times[0])

    @property
    def parameters(self) -> dict[str, Any]:
        """What a ledger should know."""
        return {
            "recording": self.recording.path.name,
            "rows": self.recording.frame.height,
            "speed": self.speed,
            "rebase": self.rebase.value,
            "is_looped": self.is_looped,
        }

    def chunks(self, after_us: int, stop: threading.Event) -> Iterator[Chunk]:
        """The recording's rows as they fall due, again and again if it is looped."""
        begin_us = self._first_us if self.rebase is Rebase.KEEP else max(self.clock.wall_us(), after_us)
        if begin_us < after_us:
            raise UsageError(
                "this producer has already promised to send nothing as old as this recording: "
                "leave out --producer, or do not --rebase keep"
            )
        begin_s, lap = self.clock.monotonic_s(), 0
        while not stop.is_set():
            yield from self._lap(lap * self._lap_us, begin_s, begin_us, stop)
            lap += 1
            if not self.is_looped:
                return

    @property
    def _lap_us(self) -> int:
        """How long a lap lasts: the recording and one interval of ordinary length behind it."""
        steps = np.diff(self._since_us)
        return int(self._since_us[-1]) + (int(np.median(steps[steps > 0])) if (steps > 0).any() else 1_000_000)

    def _lap(self, skipped_us: int, begin_s: float, begin_us: int, stop: threading.Event) -> Iterator[Chunk]:
        since_us = self._since_us + skipped_us
        said_us = begin_us + self._said(since_us)
        row, sent_s = 0, begin_s - CLOSEST_S
        while row < len(since_us):
            if self.speed is None:
                end = row + ROWS_AT_ONCE
                if stop.is_set():
                    return
            else:
                due_s = max(begin_s + since_us[row] / 1e6 / self.speed, sent_s + CLOSEST_S)
                if due_s - self.clock.monotonic_s() > IDLE_S:
                    yield Chunk(self.recording.frame.clear(), int(said_us[row]))
                if not self.pacing.wait(stop, due_s):
                    return
                sent_s = self.clock.monotonic_s()
                passed_us = (sent_s - begin_s) * 1e6 * self.speed
                end = min(max(row + 1, int(np.searchsorted(since_us, passed_us, side="right"))), row + ROWS_AT_ONCE)
            times = pl.Series("event_time", said_us[row:end]).cast(UTC_TIME)
            yield Chunk(self.recording.frame.slice(row, end - row).with_columns(times))
            row = end

    def _said(self, since_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """How long after the first event's time each event says it happened."""
        if self.rebase is Rebase.KEEP or self.speed is None:
            return since_us
        return np.floor(since_us / self.speed).astype(np.int64)
