"""What the files say about themselves: one row a table, and the same numbers for anyone who asks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import dagster as dg
import polars as pl

from assets.audit import audit
from assets.keys import BROKER, summary_key, table_key
from assets.rates import RATES, latencies_s, rates, recent
from assets.store import Summary
from sinks.reader import Slot, scan_slots
from streaming.home import Home
from streaming.topology import ROLES, RoleKind

SINKS: Final = {str(role.table): role for role in ROLES.values() if role.kind is RoleKind.SINK}
STEADY: Final = {"positions": "positions-generator"}
"""Streams of a steady rate, and the producer that the rate is asked of: a recording has its own."""
COLUMNS: Final = pl.Schema(
    {
        "table": pl.String(),
        "rows": pl.Int64(),
        "files": pl.Int64(),
        "size_bytes": pl.Int64(),
        "duplicates": pl.Int64(),
        "gaps": pl.Int64(),
        "quarantined": pl.Int64(),
        "newest_commit": pl.Datetime("us", "UTC"),
        "latency_median_s": pl.Float64(),
        "latency_p99_s": pl.Float64(),
        "vehicles_timed": pl.Int64(),
        "rate_min_hz": pl.Float64(),
        "rate_median_hz": pl.Float64(),
        "jitter_p99_ms": pl.Float64(),
    }
)


@dg.asset(
    key=summary_key("quality"),
    deps=[table_key(table) for table in SINKS],
    group_name="summaries",
    kinds={"polars", "parquet"},
    owners=["team:analysis"],
    io_manager_key="summaries",
)
def quality(home: dg.ResourceParam[Home]) -> Summary:
    """One row a table: rows, files, bytes, duplicates, gaps, quarantined records, latency, rate and jitter.

    Latency is from event time to commit, over the slots of the last eight minutes. The rate is each simulated
    vehicle's, over at most the last five whole minutes; where nothing could be measured, the cell is null.
    """
    return Summary(pl.DataFrame([measured(home, table) for table in SINKS], schema=COLUMNS, orient="row"))


def measured(home: Home, table: str) -> dict[str, object]:
    """The row of one table."""
    account = audit(home, BROKER, table)
    extent = account.extent
    return {
        "table": table,
        "rows": extent.rows,
        "files": extent.files,
        "size_bytes": extent.size_bytes,
        "duplicates": account.duplicates,
        "gaps": len(account.gaps),
        "quarantined": account.quarantined,
        "newest_commit": datetime.fromtimestamp(extent.committed_at, UTC) if extent.files else None,
        **_times(table, recent(home, BROKER, table)),
    }


def steady_rates(table: str, chosen: Sequence[Slot]) -> pl.DataFrame:
    """rates() of the simulated vehicles in some slots; no row when the table's stream has no steady rate."""
    producer = STEADY.get(SINKS[table].reads[0])
    if producer is None or not chosen:
        return pl.DataFrame(schema=RATES)
    return rates(scan_slots(chosen).filter(producer=producer))


def _times(table: str, chosen: Sequence[Slot]) -> dict[str, object]:
    latency, steady = latencies_s(chosen), steady_rates(table, chosen)
    return {
        "latency_median_s": latency.median(),
        "latency_p99_s": latency.quantile(0.99),
        "vehicles_timed": steady["vehicle"].n_unique(),
        "rate_min_hz": steady["rate_hz"].min(),
        "rate_median_hz": steady["rate_hz"].median(),
        "jitter_p99_ms": steady["jitter_p99_ms"].max(),
    }
