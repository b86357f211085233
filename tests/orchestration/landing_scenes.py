"""What the control room's tests look at: tables landed by the real sinks, from rows made here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from sinks.files import FileSink
from streaming.batch import Batch
from streaming.codecs import codec
from streaming.events import polars_schema
from streaming.home import Home
from streaming.interfaces import Identity
from streaming.topology import ROLES, stream

START = datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)
METRE = 1 / 111_195.08  # degrees of latitude


def positions(
    count: int,
    *,
    hz: float = 10.1,
    vehicle: str = "v1",
    first: int = 0,
    producer: str = "positions-generator",
    start: datetime = START,
) -> pl.DataFrame:
    """A vehicle that drives north at 10 m/s; events `first` to `first + count` of its producer's life."""
    number = np.arange(first, first + count)
    seconds = number / hz
    return pl.DataFrame(
        {
            "vehicle": vehicle,
            "producer": producer,
            "epoch": 1,
            "sequence": number,
            "event_time": pl.Series(np.rint(seconds * 1e6).astype(np.int64)).cast(pl.Duration("us")) + start,
            "latitude": 52.0 + 10 * seconds * METRE,
            "longitude": 4.9,
            "altitude_m": None,
            "speed_mps": 10.0,
            "heading_deg": 0.0,
            "dilution": 1.0,
        },
        schema=polars_schema(stream("positions").schema),
    )


def means(count: int, *, vehicle: str = "v1", source: str = "positions-generator") -> pl.DataFrame:
    """Windows of a vehicle that drives north at 10 m/s."""
    number = np.arange(count)
    window = pl.Series(number * 2_000_000).cast(pl.Duration("us")) + START
    return pl.DataFrame(
        {
            "vehicle": vehicle,
            "producer": f"means-{vehicle}",
            "epoch": 0,
            "sequence": number,
            "source": source,
            "window_start": window,
            "window_end": window + timedelta(seconds=2),
            "count": 20,
            "latitude": 52.0 + 20 * number * METRE,
            "longitude": 4.9,
            "speed_mps": 10.0,
            "distance_m": 20.0,
        },
        schema=polars_schema(stream("position_means").schema),
    )


def alerts(of: pl.DataFrame, kind: str = "speeding") -> pl.DataFrame:
    """An alert for each of some means."""
    return of.select(
        *("vehicle", "producer", "epoch", "sequence", "source", "window_start", "window_end"),
        kind=pl.lit(kind),
        value=pl.lit(20.0),
        limit=pl.lit(10.0),
        model=pl.lit("van"),
        depot=pl.lit("North"),
        vehicles_version=pl.lit(1, pl.Int64),
    )


def vehicles(*names: str) -> pl.DataFrame:
    """Reference data, all of one depot."""
    rows = [
        (name, "vehicles-generator", 1, number, START, "van", "North", 52.001, 4.9, 15.0, 5000.0)
        for number, name in enumerate(names)
    ]
    return pl.DataFrame(rows, schema=polars_schema(stream("vehicles").schema), orient="row")


def land(home: Home, role: str, *slots: pl.DataFrame, partition: int = 0, bad: int = 0) -> None:
    """Commit each frame as a slot of the role's table, after what is there; `bad` undecodable records before each."""
    chosen = ROLES[role]
    coding = codec("json", stream(chosen.reads[0]).schema)
    sink = FileSink(home, "kafka", chosen, coding, Identity("cluster", "topic"), writer="test")
    position = sink.resume(partition) or 0
    for rows in slots:
        values = [b"no event"] * bad + coding.encode(rows)
        offsets = np.arange(position, position + len(values), dtype=np.int64)
        sink.write(Batch(chosen.reads[0], partition, values, offsets))
        sink.commit()
        position += len(values)


def land_fleet(home: Home) -> None:
    """A little of everything that the summaries read."""
    land(home, "positions-parquet", *(positions(1500, first=1500 * part) for part in range(3)))
    land(home, "positions-parquet", positions(900, vehicle="drive", producer="replay-drive-abc123xyz"), partition=1)
    land(home, "vehicles-parquet", vehicles("v1", "drive"))
    windows = means(200)
    land(home, "position-means-parquet", windows[:120], windows[120:])
    land(home, "position-means-csv", windows)
    land(home, "alerts-parquet", alerts(windows[10:20]), alerts(windows[100:103], "geofence"))
