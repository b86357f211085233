"""What landed rows say about time: the rate of each vehicle, its jitter, and how long rows took to become durable.

Invariant: a rate is taken over whole minutes only. A minute counts for a vehicle when the vehicle was heard before it
began and after it ended; both ends are read from the same chain of slots, so everything in between has landed as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import polars as pl

from sinks.derive import table_schema
from sinks.reader import Slot, bases, role_of, scan_slots, slots
from streaming.home import Home

DEMANDED_HZ: Final = 10.0
MINUTES: Final = 5
RECENT: Final = timedelta(minutes=MINUTES + 3)  # a window, the open minutes at its ends, and a rotation
NEWEST: Final = 100
LIFE: Final = ["producer", "epoch", "vehicle"]
RATES: Final = pl.Schema(
    {
        "producer": pl.String(),
        "epoch": pl.Int64(),
        "vehicle": pl.String(),
        "minutes": pl.Int64(),
        "rate_hz": pl.Float64(),
        "slowest_hz": pl.Float64(),
        "gap_median_ms": pl.Float64(),
        "jitter_p99_ms": pl.Float64(),
    }
)
_MINUTE: Final = "1m"


def recent(home: Home, broker: str, table: str) -> list[Slot]:
    """The slots with rows of the minutes before the newest commit, at most NEWEST of each partition."""
    since = {partition: found[-NEWEST:][0] for partition, found in bases(home, broker, table).items()}
    newest = slots(home, broker, table, since)
    begin = max((slot.committed_at for slot in newest), default=datetime.now(UTC)) - RECENT
    return [slot for slot in newest if slot.rows and slot.committed_at >= begin]


def rates(events: pl.LazyFrame, minutes: int = MINUTES) -> pl.DataFrame:
    """One row a producer's life and vehicle, columns RATES; slowest_hz is that of its slowest minute.

    Over at most the last `minutes` whole minutes of each; who has no whole minute is not in the answer. gap_median_ms
    is the median time between events, jitter_p99_ms the 99th percentile of the deviation from it.
    """
    minute = pl.col("event_time").dt.truncate(_MINUTE)
    first, last = minute.min().over(LIFE), minute.max().over(LIFE)
    begin = pl.max_horizontal(first.dt.offset_by(_MINUTE), last.dt.offset_by(f"-{minutes}m"))
    whole = (
        events.select(*LIFE, "sequence", "event_time")
        .with_columns(minute=minute, begin=begin, minutes=(last - begin).dt.total_minutes())
        .filter(minute >= begin, minute < last)
        .sort(*LIFE, "sequence")
        .with_columns(gap_ms=pl.col("event_time").diff().over(LIFE).dt.total_microseconds() / 1000)
    )
    per_minute = whole.group_by(*LIFE, "minute").len().group_by(LIFE).agg(pl.len().alias("heard"), pl.col("len").min())
    return (
        whole.group_by(LIFE)
        .agg(
            pl.col("minutes").first(),
            rate_hz=pl.len() / (60 * pl.col("minutes").first()),
            gap_median_ms=pl.col("gap_ms").median(),
            jitter_p99_ms=(pl.col("gap_ms") - pl.col("gap_ms").median()).abs().quantile(0.99),
        )
        .join(per_minute, on=LIFE)
        .with_columns(slowest_hz=pl.when(pl.col("heard") < pl.col("minutes")).then(0.0).otherwise(pl.col("len") / 60))
        .select(RATES.names())
        .sort(LIFE)
        .collect()
    )


def latencies_s(chosen: Sequence[Slot]) -> pl.Series:
    """For each row of some slots, the seconds from its event time (or window's end) to the commit of its slot."""
    frames = [scan_slots([slot]).select(seconds=pl.lit(slot.committed_at) - _moment(slot.table)) for slot in chosen]
    if not frames:
        return pl.Series("seconds", dtype=pl.Float64)
    return pl.concat(frames).collect().to_series().dt.total_microseconds() / 1e6


def _moment(table: str) -> pl.Expr:
    names = table_schema(role_of(table)).names()
    return pl.col("event_time" if "event_time" in names else "window_end")
