"""Means joined with what is known of their vehicle, and judged against its limits.

Invariant: a mean of an unknown vehicle stays, with nulls for what is not known, and nothing is held against it.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from streaming.batch import Batch
from streaming.events import MARK, VEHICLES, polars_schema
from streaming.interfaces import Codec
from streaming.transformers.geodesy import haversine_m

REFERENCE: Final = (
    "vehicle",
    "model",
    "depot",
    "depot_latitude",
    "depot_longitude",
    "speed_limit_mps",
    "range_limit_m",
)


def enriched(means: pl.DataFrame, vehicles: pl.DataFrame) -> pl.DataFrame:
    """`means`, in order, plus the reference columns and depot_distance_m."""
    known = vehicles.select(REFERENCE)
    depot = haversine_m(
        pl.col("latitude"), pl.col("longitude"), pl.col("depot_latitude"), pl.col("depot_longitude")
    ).alias("depot_distance_m")
    return means.join(known, on="vehicle", how="left", maintain_order="left").with_columns(depot)


def latest(records: pl.DataFrame) -> pl.DataFrame:
    """The last record of each vehicle; `records` in offset order. Marks are none. Sorted by vehicle."""
    return (
        records.filter(pl.col("sequence") != MARK).unique("vehicle", keep="last", maintain_order=True).sort("vehicle")
    )


def reference_table(batches: list[Batch], codec: Codec) -> tuple[pl.DataFrame, int]:
    """The vehicles as the stream's records leave them, and the version: how far the stream was read (its end offsets).

    Undecodable records, tombstones among them, change nothing: a vehicle is never taken out of the table.
    """
    read = sorted((batch for batch in batches if len(batch)), key=lambda batch: batch.next_offset)
    schema = polars_schema(VEHICLES)
    frames = [codec.decode(batch.values).table.select(schema.names()) for batch in read]
    ends = {batch.partition: batch.next_offset for batch in read}
    return latest(pl.concat([pl.DataFrame(schema=schema), *frames])), sum(ends.values())
