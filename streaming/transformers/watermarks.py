"""How far each producer's event time has come in one partition, and which rows came too late for that.

A watermark is the highest event time seen from a producer, marks included, over all its epochs. It is kept per
(partition, producer), so an old recording does not wait for the live fleet, nor make it late. Everything here depends
on a row and the rows before it alone, never on where a batch ends.

A clock that runs ahead moves its own producer's watermark ahead: that producer's later rows are late in that partition
until its event time catches up. They go to the late stream, whole; other producers are not touched. There is no guess
at which times are absurd, because a step has no clock and a recording may well pause for a day.
"""

from __future__ import annotations

from typing import Final

import polars as pl

UNSEEN: Final = -(2**63)  # the watermark of a producer not heard of yet
WATERMARKS: Final = pl.Schema({"producer": pl.String, "watermark_us": pl.Int64})


def with_watermarks(rows: pl.DataFrame, watermarks: pl.DataFrame) -> pl.DataFrame:
    """`rows` (producer, event_time_us, in offset order) plus before_us and after_us: the watermark around each row."""
    known = rows.join(watermarks, on="producer", how="left", maintain_order="left")
    start = pl.col("watermark_us").fill_null(UNSEEN)
    after = pl.max_horizontal(pl.col("event_time_us").cum_max().over("producer"), start)
    return known.with_columns(after_us=after).with_columns(
        before_us=pl.coalesce(pl.col("after_us").shift(1).over("producer"), start)
    )


def advanced(watermarks: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The watermarks after `rows` (with after_us), sorted by producer."""
    seen = rows.group_by("producer").agg(pl.col("after_us").max().alias("watermark_us"))
    return pl.concat([watermarks, seen]).group_by("producer").agg(pl.col("watermark_us").max()).sort("producer")
