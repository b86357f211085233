"""The same fleet's diagnostics: nested, with optional parts, once a second, and in bursts while a fault is new.

A vehicle's values follow its truth: revolutions and load its speed and acceleration, the coolant the time since its
engine started, the tyres the way it has driven. While it is parked there is neither engine nor trip. A fault sets a
trouble code until the leg ends and makes the vehicle report at every tick, ten times a second, for BURST_S.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streaming.generators.fleet import BURST_S, LEG_S, Fleet, Integers, State, acceleration, uniform
from streaming.generators.pacing import Clock, Pacing, SystemClock
from streaming.generators.positions import DAY_US, ROWS_AT_ONCE, event_times
from streaming.generators.run import Chunk

TICKS_HZ: Final = 10
TICKS_A_REPORT: Final = 10
CODES: Final = ("P0301", "P0217", "P0128", "C0750")  # misfire, too hot, thermostat, tyre pressure
_TOO_HOT: Final = 1
_LOW_TYRE: Final = 3
_WHEELS: Final = ("front_left", "front_right", "rear_left", "rear_right")
_GEAR_MPS: Final = np.array([0.0, 4.0, 8.0, 12.5, 17.0])  # from which speed on each gear is used
_RPM_A_MPS: Final = np.array([420.0, 240.0, 170.0, 130.0, 105.0])
_AMBIENT_C: Final = 15.0


class Diagnostics:
    """A generator of `diagnostics` for the fleet of this seed; paced and not paced as Positions."""

    stream = "diagnostics"

    def __init__(self, seed: int, vehicles: int, *, is_paced: bool = True, clock: Clock | None = None) -> None:
        self.seed, self.vehicles, self.is_live = seed, vehicles, is_paced
        self.clock = clock or SystemClock()
        block = max(1, ROWS_AT_ONCE * TICKS_A_REPORT // vehicles)
        self.pacing = Pacing(TICKS_HZ if is_paced else None, self.clock, block)

    @property
    def parameters(self) -> dict[str, Any]:
        """What a ledger should know to make the same values again."""
        return {"vehicles": self.vehicles, "is_paced": self.is_live}

    def chunks(self, after_us: int, stop: threading.Event) -> Iterator[Chunk]:
        """Diagnostics as they fall due."""
        begin_us = max(self.clock.wall_us(), after_us)
        gauges = Gauges(Fleet(self.seed, self.vehicles, TICKS_HZ, begin_us % DAY_US / 1e6))
        gauges.rows(0, 1)  # see Positions.chunks()
        for ticks in self.pacing.due(stop):
            now_us = self.clock.wall_us() if self.is_live else None
            rows = gauges.rows(ticks.start, ticks.stop, now_us, begin_us)
            if rows.height:
                yield Chunk(rows)


class Gauges:
    """A fleet's instruments, by tick (ten a second)."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._charge = 0.6 + 0.35 * uniform(fleet.seed, 301, np.arange(fleet.vehicles))

    def rows(self, first_tick: int, end_tick: int, now_us: int | None = None, begin_us: int = 0) -> pl.DataFrame:
        """Who reports in these ticks: the columns of `diagnostics` without origin; event times as Measured.rows()."""
        size = self.fleet.vehicles
        tick, vehicle = np.divmod(np.arange(first_tick * size, end_tick * size), size)
        state = self.fleet.state(self.fleet.begin_s + tick / TICKS_HZ, vehicle)
        is_due = (tick + vehicle) % TICKS_A_REPORT == 0
        since_s = state.way_s - state.leg["fault_s"]
        is_new = (since_s >= 0) & (since_s < BURST_S)
        reports = _chosen(state, np.flatnonzero(is_due | is_new))
        return self._read(reports, event_times(self.fleet, reports.time_s, now_us, begin_us))

    def _read(self, state: State, event_time: pl.Series) -> pl.DataFrame:
        is_on = state.leg["cruises"] > 0
        code = np.where(state.way_s >= state.leg["fault_s"], state.leg["fault_code"], -1).astype(np.int64)
        return (
            pl.DataFrame({"vehicle": self.fleet.names.gather(state.vehicle), "event_time": event_time, "is_on": is_on})
            .with_columns(
                engine=_only_when_on(_engine(state, code)),
                battery=_struct(
                    voltage_v=np.where(is_on, 14.1, 12.5).round(2), charge=self._charge[state.vehicle].round(3)
                ),
                tyres=_tyres(state, code),
                trouble_codes=_codes(code),
                trip=_only_when_on(self._trip(state)),
            )
            .drop("is_on")
        )

    def _trip(self, state: State) -> pl.Expr:
        leg = state.leg
        number = pl.lit(pl.Series(leg["trip"].astype(np.int64))).cast(pl.String)
        name = pl.col("vehicle") + pl.lit("-trip-") + number
        metres = pl.lit(pl.Series((leg["road"] + state.way_m - leg["trip_road"]).round(1)))
        return pl.struct(name.alias("trip_id"), metres.alias("distance_m"))


def _chosen(state: State, places: Integers) -> State:
    """The state at some places of its arrays."""
    return State(**{name: getattr(state, name)[places] for name in State.__slots__})


def _engine(state: State, code: Integers) -> pl.Expr:
    gear = np.searchsorted(_GEAR_MPS, state.speed_mps, side="right") - 1
    rpm = np.maximum(850.0, state.speed_mps * _RPM_A_MPS[gear])
    load = np.clip(0.18 + 0.012 * state.speed_mps + 0.28 * acceleration(state), 0.0, 1.0)
    warm = 1.0 - np.exp((state.leg["trip_began_s"] - state.own_s) / 240.0)
    coolant = _AMBIENT_C + 75.0 * warm + 6.0 * load + np.where(code == _TOO_HOT, 18.0, 0.0)
    return _struct(rpm=rpm.round(0), coolant_c=coolant.round(1), load=load.round(3))


def _tyres(state: State, code: Integers) -> pl.Expr:
    """Four entries a row, laid out flat and cut afterwards: joining four columns of structs costs twenty times more."""
    share = state.way_s / LEG_S
    warmth = state.leg["warmth"] * (1 - share) + state.leg["warmth_after"] * share
    celsius = _AMBIENT_C + warmth[:, None] * np.array([1.4, 1.4, 1.3, 1.3])
    is_flat = (code == _LOW_TYRE)[:, None] & (state.vehicle[:, None] % 4 == np.arange(4))
    kilopascals = 230.0 + 0.8 * (celsius - _AMBIENT_C) - np.where(is_flat, 70.0, 0.0)
    flat = pl.DataFrame(
        {
            "wheel": pl.Series(_WHEELS).gather(np.tile(np.arange(4), len(code))),
            "pressure_kpa": kilopascals.ravel().round(1),
            "temperature_c": celsius.ravel().round(1),
        }
    )
    return pl.lit(flat.to_struct("tyres").reshape((-1, 4)).arr.to_list())


def _codes(code: Integers) -> pl.Expr:
    names = pl.lit(pl.Series(CODES, dtype=pl.String).gather(np.maximum(code, 0)))
    none = pl.lit([], dtype=pl.List(pl.String))
    return pl.when(pl.lit(pl.Series(code >= 0))).then(pl.concat_list(names)).otherwise(none)


def _struct(**fields: NDArray[np.float64] | str) -> pl.Expr:
    """A struct column from arrays and constants."""
    return pl.struct(
        pl.lit(value if isinstance(value, str) else pl.Series(value)).alias(name) for name, value in fields.items()
    )


def _only_when_on(value: pl.Expr) -> pl.Expr:
    return pl.when(pl.col("is_on")).then(value)
