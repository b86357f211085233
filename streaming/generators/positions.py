"""The fleet's positions as a receiver reports them: the truth plus an error that is kept apart from it.

A receiver's error is a slow drift of a few metres, larger while the dilution of precision is high, and a jitter of
centimetres from fix to fix. Drift moves so slowly that distances between fixes stay right.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import polars as pl

from streaming.generators.fleet import Fleet, Floats, Integers, hashed, uniform
from streaming.generators.pacing import Clock, Pacing, SystemClock
from streaming.generators.run import Chunk

UTC_TIME: Final = pl.Datetime("us", "UTC")
DAY_US: Final = 86_400_000_000
ROWS_AT_ONCE: Final = 20_000
DRIFT_M: Final = 1.5  # amplitude at a dilution of 1, per axis and wave
JITTER_M: Final = 0.02  # standard deviation per axis
_TRIANGULAR: Final = np.sqrt(6.0) / 65_536  # (a - b) of two 16-bit numbers, to a standard deviation of 1


class Receiver:
    """What the vehicles' receivers make of the truth; the error is a pure function of (seed, vehicle, time)."""

    def __init__(self, seed: int, vehicles: int) -> None:
        number = np.arange(vehicles)
        self._period_s = 90.0 + 200.0 * uniform(seed, 201, number)
        self._turn = 2 * np.pi * uniform(seed, 202, number)
        self._key = hashed(seed, 203, number)

    def dilution(self, time_s: Floats, vehicle: Integers) -> Floats:
        """Horizontal dilution of precision, 0.7 to 1.9."""
        return 1.3 + 0.6 * np.sin(time_s / 41.0 + self._turn[vehicle])

    def error(self, time_s: Floats, vehicle: Integers, dilution: Floats) -> tuple[Floats, Floats, Floats]:
        """Metres east and north, and metres per second of the speed."""
        angle = 2 * np.pi * time_s / self._period_s[vehicle] + self._turn[vehicle]
        millisecond = np.rint(time_s * 1e3).astype(np.uint64)
        noise = _mixed_once(self._key[vehicle] + millisecond * np.uint64(0x9E3779B97F4A7C15))
        parts = noise.view(np.uint16).reshape(-1, 4).astype(np.float64)
        jitter_east = (parts[:, 0] - parts[:, 1]) * (_TRIANGULAR * JITTER_M)
        jitter_north = (parts[:, 2] - parts[:, 3]) * (_TRIANGULAR * JITTER_M)
        jitter_speed = (parts[:, 0] - parts[:, 2]) * (_TRIANGULAR * 0.05)
        drift = DRIFT_M * dilution
        return drift * np.sin(angle) + jitter_east, drift * np.cos(1.3 * angle) + jitter_north, jitter_speed


def _mixed_once(words: Any) -> Any:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return words ^ (words >> np.uint64(29))


class Positions:
    """A generator of `positions`: `vehicles` at `rate_hz` each.

    Paced, an event's time is the machine's clock when the event is made. Not paced, it is the simulated second, so that
    an hour of driving is made in seconds; then every run needs a producer name of its own (ledger.fresh_name).
    """

    stream = "positions"

    def __init__(
        self, seed: int, vehicles: int, rate_hz: float, *, is_paced: bool = True, clock: Clock | None = None
    ) -> None:
        self.seed, self.vehicles, self.rate_hz, self.is_live = seed, vehicles, rate_hz, is_paced
        self.clock = clock or SystemClock()
        slots = Fleet(seed, vehicles, rate_hz).slots
        block = max(1, ROWS_AT_ONCE * slots // vehicles)
        self.pacing = Pacing(rate_hz * slots if is_paced else None, self.clock, block)

    @property
    def parameters(self) -> dict[str, Any]:
        """What a ledger should know to make the same truth again."""
        return {"vehicles": self.vehicles, "rate_hz": self.rate_hz, "is_paced": self.is_live}

    def chunks(self, after_us: int, stop: threading.Event) -> Iterator[Chunk]:
        """Positions as they fall due."""
        begin_us = max(self.clock.wall_us(), after_us)
        source = Measured(Fleet(self.seed, self.vehicles, self.rate_hz, begin_us % DAY_US / 1e6))
        source.rows(0, 1)  # the way since midnight takes a moment: before the first deadline, not after it
        for slots in self.pacing.due(stop):
            first, end = source.fleet.row_of_slot(slots.start), source.fleet.row_of_slot(slots.stop)
            yield Chunk(source.rows(first, end, self.clock.wall_us() if self.is_live else None, begin_us))


class Measured:
    """A fleet seen through its receivers, by row number."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._receiver = Receiver(fleet.seed, fleet.vehicles)
        self._next_row = 0

    def advance(self, ticks: int) -> pl.DataFrame:
        """The next ticks of all vehicles, as rows() with simulated times from 1970 on."""
        first, self._next_row = self._next_row, self._next_row + ticks * self.fleet.vehicles
        return self.rows(first, self._next_row)

    def rows(self, first_row: int, end_row: int, now_us: int | None = None, begin_us: int = 0) -> pl.DataFrame:
        """The columns of `positions` without origin. Event times: `now_us`, or what is simulated from `begin_us` on."""
        state = self.fleet.state(*self.fleet.places(first_row, end_row))
        vehicle = state.vehicle
        dilution = self._receiver.dilution(state.time_s, vehicle)
        east, north, faster = self._receiver.error(state.time_s, vehicle, dilution)
        latitude, longitude = self.fleet.degrees(vehicle, state.x_m + east, state.y_m + north)
        return pl.DataFrame(
            {
                "vehicle": self.fleet.names.gather(vehicle),
                "event_time": event_times(self.fleet, state.time_s, now_us, begin_us),
                "latitude": latitude.round(7),
                "longitude": longitude.round(7),
                "altitude_m": (state.altitude_m + 2 * east).round(2),
                "speed_mps": np.maximum(state.speed_mps + faster, 0.0).round(3),
                "heading_deg": state.heading_deg.round(2) % 360.0,
                "dilution": dilution.round(2),
            }
        )


def event_times(fleet: Fleet, time_s: Floats, now_us: int | None, begin_us: int) -> pl.Series:
    """The moment the rows are made, for all of them; or, for a simulated clock, each row's own second."""
    if now_us is not None:
        return pl.Series(np.full(len(time_s), now_us)).cast(UTC_TIME)
    return pl.Series(np.rint((time_s - fleet.begin_s) * 1e6).astype(np.int64) + begin_us).cast(UTC_TIME)
