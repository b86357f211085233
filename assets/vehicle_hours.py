"""What each vehicle did in each hour.

Invariant: the table equals one computed from all landed positions at once. Only hours that newer slots touch are
computed again, and those from all of their rows.
"""

from __future__ import annotations

from typing import Final

import dagster as dg
import polars as pl

from assets.chains import look
from assets.keys import BROKER, summary_key, table_key
from assets.store import Summary, read_summary
from sinks.reader import scan, scan_slots
from streaming.home import Home
from streaming.transformers.geodesy import haversine_m

SOURCE: Final = "positions_parquet"
NAME: Final = "vehicle_hours"
FASTEST_MPS: Final = 100.0
_MOMENT: Final = pl.Datetime("us", "UTC")
COLUMNS: Final = pl.Schema(
    {
        "vehicle": pl.String(),
        "hour": _MOMENT,
        "positions": pl.Int64(),
        "distance_km": pl.Float64(),
        "speed_mean_kmh": pl.Float64(),
        "speed_max_kmh": pl.Float64(),
        "first": _MOMENT,
        "last": _MOMENT,
    }
)


@dg.asset(
    key=summary_key(NAME),
    deps=[table_key(SOURCE)],
    group_name="summaries",
    kinds={"polars", "parquet"},
    owners=["team:analysis"],
    io_manager_key="summaries",
)
def vehicle_hours(home: dg.ResourceParam[Home]) -> Summary:
    """Each vehicle's hours (UTC): positions, kilometres, mean and highest speed, first and last position.

    Kilometres are measured along one fix a second, so that the receivers' jitter does not add up; steps faster than
    100 m/s are jumps (a recording that begins again), not ways.
    """
    before = read_summary(home, NAME, COLUMNS)
    growth = look(home, BROKER, SOURCE, before.covers)
    if not growth.newer:
        return Summary(before.rows, growth.extent)
    hours = scan_slots(growth.newer).select(pl.col("hour").unique()).collect().to_series()
    touched = scan(home, BROKER, SOURCE).filter(pl.col("hour").is_between(hours.min(), hours.max()))
    fresh = summarised(touched.filter(pl.col("hour").is_in(hours.implode())))
    kept = before.rows.clear() if growth.is_afresh else before.rows.filter(~pl.col("hour").is_in(hours.implode()))
    return Summary(pl.concat([kept, fresh]).sort("hour", "vehicle"), growth.extent)


def summarised(positions: pl.LazyFrame) -> pl.DataFrame:
    """Rows of positions_parquet to one row a vehicle and hour, columns COLUMNS."""
    keys = ["vehicle", "hour"]
    facts = positions.group_by(keys).agg(
        positions=pl.len().cast(pl.Int64),
        speed_mean_kmh=pl.col("speed_kmh").mean(),
        speed_max_kmh=pl.col("speed_kmh").max(),
        first=pl.col("event_time").min(),
        last=pl.col("event_time").max(),
    )
    ways = _steps(positions).group_by(keys).agg(distance_km=pl.col("metres").sum() / 1000)
    return (
        facts.join(ways, on=keys, how="left")
        .with_columns(pl.col("distance_km").fill_null(0.0))
        .select(COLUMNS.names())
        .sort("hour", "vehicle")
        .collect()
    )


def _steps(positions: pl.LazyFrame) -> pl.LazyFrame:
    """The metres between consecutive fixes, one fix a second, of each vehicle's lives within an hour."""
    life = ["producer", "epoch", "vehicle", "hour"]
    latitude, longitude = pl.col("latitude"), pl.col("longitude")
    seconds = pl.col("event_time").diff().over(life).dt.total_microseconds() / 1e6
    return (
        positions.filter(latitude.is_not_null(), longitude.is_not_null())
        .sort(*life, "event_time", "sequence")
        .unique([*life, pl.col("event_time").dt.truncate("1s")], keep="first", maintain_order=True)
        .with_columns(
            metres=haversine_m(latitude.shift().over(life), longitude.shift().over(life), latitude, longitude),
            seconds=seconds,
        )
        .filter(pl.col("metres") <= FASTEST_MPS * pl.col("seconds"))
    )
