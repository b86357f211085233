"""When the next ticks are due: an open loop by deadline.

Invariant: tick i is due at start + i / rate, whatever happened before it. No tick is skipped: ticks that are overdue
come at once, and how late the first of them was is kept. A pause of 1/rate between sends would add its own duration to
every interval (10 Hz becomes 9.75); a deadline cannot drift.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from streaming.errors import UsageError

LONGEST_WAIT_S: Final = 10.0  # for a producer's own earlier mark


class Clock(Protocol):
    """Time, so that a test can turn it by hand."""

    def monotonic_s(self) -> float:
        """Seconds that never step back."""
        ...

    def wall_us(self) -> int:
        """Microseconds since 1970, UTC."""
        ...

    def wait(self, stop: threading.Event, until_s: float) -> bool:
        """Return at monotonic `until_s`, or as soon as `stop` is set. True while not stopped."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        """CLOCK_MONOTONIC."""
        return time.monotonic()

    def wall_us(self) -> int:
        """CLOCK_REALTIME."""
        return time.time_ns() // 1_000

    def wait(self, stop: threading.Event, until_s: float) -> bool:
        """Sleep on the event, so that a signal handler that sets it ends the sleep."""
        left_s = until_s - time.monotonic()
        return not (stop.wait(left_s) if left_s > 0 else stop.is_set())


@dataclass(slots=True)
class ManualClock:
    """A clock for tests: it moves only when somebody waits, or sets `now_s`. Work costs what `advance()` says."""

    now_s: float = 0.0
    started_us: int = 1_700_000_000_000_000

    def monotonic_s(self) -> float:
        """Seconds since the clock was made."""
        return self.now_s

    def wall_us(self) -> int:
        """The start plus what has passed."""
        return self.started_us + round(self.now_s * 1e6)

    def advance(self, by_s: float) -> None:
        """Let time pass."""
        self.now_s += by_s

    def wait(self, stop: threading.Event, until_s: float) -> bool:
        """Jump to the deadline."""
        self.now_s = max(self.now_s, until_s)
        return not stop.is_set()


@dataclass(slots=True)
class Pacing:
    """Ticks at `rate_hz`, or as fast as they are taken when it is None; at most `block` of them at once."""

    rate_hz: float | None
    clock: Clock = field(default_factory=SystemClock)
    block: int = 1_000
    delay_s: float = 0.0  # how late the latest ticks were
    worst_delay_s: float = 0.0
    waited_s: float = 0.0  # in all, until ticks were due

    def due(self, stop: threading.Event) -> Iterator[range]:
        """The ticks that are due, in order and without gaps, until `stop` is set."""
        begin_s, tick = self.clock.monotonic_s(), 0
        while True:
            end = tick + self.block
            if self.rate_hz is not None:
                deadline_s = begin_s + tick / self.rate_hz
                if not self.wait(stop, deadline_s):
                    return
                now_s = self.clock.monotonic_s()
                end = min(end, max(tick, math.floor((now_s - begin_s) * self.rate_hz)) + 1)
            elif stop.is_set():
                return
            yield range(tick, end)
            tick = end

    def wait(self, stop: threading.Event, deadline_s: float) -> bool:
        """Wait until monotonic `deadline_s`; keep how long that took, how late it was, and the worst. True: go on."""
        before_s = self.clock.monotonic_s()
        goes_on = self.clock.wait(stop, deadline_s)
        now_s = self.clock.monotonic_s()
        self.waited_s += now_s - before_s
        if goes_on:
            self.delay_s = max(now_s - deadline_s, 0.0)
            self.worst_delay_s = max(self.worst_delay_s, self.delay_s)
        return goes_on


def wait_for_own_mark(clock: Clock, mark_us: int, producer: str, stop: threading.Event) -> bool:
    """Wait until the wall clock has reached what this producer's last life promised. True while not stopped.

    UsageError if that lies so far ahead that it was no promise of a few seconds: the producer ran on a simulated clock.
    """
    left_s = (mark_us - clock.wall_us()) / 1e6
    if left_s > LONGEST_WAIT_S:
        raise UsageError(
            f"producer {producer!r} has already sent events up to {left_s:,.0f} s in the future: whatever it sends now "
            f"would be late. Give this one another name (--producer)."
        )
    return clock.wait(stop, clock.monotonic_s() + left_s)
