"""What roles are given to work on while they are profiled: the application's own records, the same in every run.

Invariant: rows follow from stream, count, vehicles and seed alone. Derived streams are made by the application's own
steps from its own positions; where those give too few, the same rows come again, later in event time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import polars as pl

from experiments import workload
from experiments.workload import BEGIN_US, PRODUCER
from streaming.codecs import codec
from streaming.events import polars_schema
from streaming.generators.diagnostics import Gauges
from streaming.generators.fleet import Fleet
from streaming.generators.vehicles import reference_data
from streaming.interfaces import Step
from streaming.topology import ROLES, stream
from streaming.transformers.flows import step_for

POSITIONS_A_MEAN: Final = 20  # ten a second, for two seconds
MADE_AT_MOST: Final = 100_000  # positions that derived rows are computed from
_TICKS_A_DIAGNOSIS: Final = 10
_TIMES: Final = ("event_time", "window_start", "window_end")


@lru_cache(maxsize=8)
def rows(name: str, count: int, vehicles: int, seed: int) -> pl.DataFrame:
    """`count` rows of the stream `name`, in its schema, in the order of sending. KeyError for a state stream."""
    made = {
        "positions": _positions,
        "late_positions": _positions,
        "diagnostics": _diagnostics,
        "vehicles": _vehicles,
        "position_means": _means,
        "alerts": _alerts,
    }[name](count, vehicles, seed)
    return _numbered(_repeated(made, count)).select(polars_schema(stream(name).schema).names())


@lru_cache(maxsize=4)
def encoded(name: str, count: int, vehicles: int, seed: int, codec_name: str) -> tuple[list[bytes], list[bytes]]:
    """The same rows as payloads and keys."""
    table = rows(name, count, vehicles, seed)
    keys = table[stream(name).key].cast(pl.Binary).to_list()
    return codec(codec_name, stream(name).schema).encode(table), keys


def _positions(count: int, vehicles: int, seed: int) -> pl.DataFrame:
    json = codec("json", stream("positions").schema)  # for the type only: nothing is encoded here
    return workload.fleet(json, vehicles, seed).table(count)


def _diagnostics(count: int, vehicles: int, seed: int) -> pl.DataFrame:
    ticks = -(-count * _TICKS_A_DIAGNOSIS // vehicles) + _TICKS_A_DIAGNOSIS
    return Gauges(Fleet(seed, vehicles, 10.0)).rows(0, ticks, begin_us=BEGIN_US)


def _vehicles(count: int, vehicles: int, seed: int) -> pl.DataFrame:  # noqa: ARG001 - as many as there are
    since = pl.lit(BEGIN_US).cast(pl.Datetime("us", "UTC"))
    return reference_data(seed, vehicles).with_columns(event_time=since)


def _means(count: int, vehicles: int, seed: int) -> pl.DataFrame:
    positions = min((count + vehicles) * POSITIONS_A_MEAN, MADE_AT_MOST)
    return _advanced(step_for(ROLES["means-transformer"]), _positions(positions, vehicles, seed), "position_means")


def _alerts(count: int, vehicles: int, seed: int) -> pl.DataFrame:  # noqa: ARG001 - as many as there are
    judge = step_for(ROLES["alerts-transformer"], vehicles=(_numbered(_vehicles(vehicles, vehicles, seed)), 1))
    return _advanced(judge, _numbered(_means(MADE_AT_MOST, vehicles, seed)), "alerts")


def _advanced(step: Step[object], given: pl.DataFrame, output: str) -> pl.DataFrame:
    _, made = step.advance(step.initial(0), given)
    return made[output]


def _numbered(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(
        producer=pl.lit(PRODUCER), epoch=pl.lit(1, pl.Int64), sequence=pl.int_range(pl.len(), dtype=pl.Int64)
    )


def _repeated(table: pl.DataFrame, count: int) -> pl.DataFrame:
    """As many rows: the same ones again, each lap later than the last by how long the lap lasted."""
    laps = -(-count // max(len(table), 1))
    if laps <= 1:
        return table.head(count)
    times = [name for name in _TIMES if name in table.columns]
    span = pl.max_horizontal(pl.col(name).max() for name in times) - pl.min_horizontal(
        pl.col(name).min() for name in times
    )
    lap_us = table.select(span.dt.total_microseconds()).item() + 2_000_000
    lap = pl.int_range(pl.len(), dtype=pl.Int64) // len(table) * lap_us
    moved = (pl.col(name) + lap.cast(pl.Duration("us")) for name in times)
    return pl.concat([table] * laps).with_columns(*moved).head(count)
