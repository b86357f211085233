"""What the application must make of a recording, worked out without any broker, and what it has made, to be compared.

Only what the domain says is compared: who sent it, in which life and under which number, and which version of the
reference data judged it, differ between brokers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import polars as pl

from sinks.reader import scan
from streaming.events import MARK, ORIGIN, POSITIONS, SCHEMAS, polars_schema
from streaming.generators.recording import read
from streaming.generators.run import SETTLE_US, blank_row
from streaming.home import Home
from streaming.topology import ROLES
from streaming.transformers.flows import step_for

TABLES: Final = ("positions", "position_means", "alerts")
_NOT_COMPARED: Final = frozenset({*ORIGIN, "source", "vehicles_version"})


def columns(stream: str) -> list[str]:
    """The domain's columns of a stream."""
    return [name for name in SCHEMAS[stream].names if name not in _NOT_COMPARED]


def worked_out(recording: Path, vehicles: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Positions, means and alerts of one replay of the recording, by stream; `vehicles` as reference_table() gives it.

    By the application's own steps, over the whole at once: no batches, no restarts, no broker.
    """
    frame = read(recording).frame
    mark = frame["event_time"].to_physical()[-1] + SETTLE_US
    rows = frame.with_columns(producer=pl.lit("offline"), epoch=pl.lit(1, pl.Int64)).with_row_index("sequence")
    ends = blank_row(POSITIONS).with_columns(
        event_time=pl.lit(mark).cast(pl.Datetime("us", "UTC")),
        producer=pl.lit("offline"),
        epoch=pl.lit(1, pl.Int64),
        sequence=pl.lit(MARK, pl.Int64),
    )
    kinds = polars_schema(POSITIONS)
    positions = pl.concat([rows.select(kinds.names()).cast(kinds), ends.select(kinds.names()).cast(kinds)])
    means = _advanced("means-transformer", positions, vehicles)["position_means"]
    alerts = _advanced("alerts-transformer", means, vehicles)["alerts"]
    found = {"positions": positions.filter(pl.col("sequence") != MARK), "position_means": means, "alerts": alerts}
    return {stream: domain(stream, table) for stream, table in found.items()}


def landed(home: Home, broker: str) -> dict[str, pl.DataFrame]:
    """The same of what is in the files."""
    return {stream: domain(stream, scan(home, broker, f"{stream}_parquet").collect()) for stream in TABLES}


def domain(stream: str, table: pl.DataFrame) -> pl.DataFrame:
    """The domain's columns, sorted."""
    names = columns(stream)
    return table.select(names).sort(names)


def differences(found: Mapping[str, pl.DataFrame], wanted: Mapping[str, pl.DataFrame]) -> list[str]:
    """Which streams differ, and how; empty when all is equal."""
    said = []
    for stream in TABLES:
        if not found[stream].equals(wanted[stream], null_equal=True):
            missing = wanted[stream].join(found[stream], on=columns(stream), how="anti", nulls_equal=True)
            more = found[stream].join(wanted[stream], on=columns(stream), how="anti", nulls_equal=True)
            said.append(
                f"{stream}: {len(found[stream]):,} rows where {len(wanted[stream]):,} are wanted; "
                f"{len(missing):,} of these are missing, {len(more):,} are others"
            )
    return said


def _advanced(role: str, rows: pl.DataFrame, vehicles: pl.DataFrame) -> Mapping[str, pl.DataFrame]:
    step = step_for(ROLES[role], vehicles=(vehicles, 0))
    _, made = step.advance(step.initial(0), rows)
    return made
