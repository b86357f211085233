"""Reference data: what each vehicle is and what it may do, published anew at each start of the compacted topic's role.

The values follow from the seed, so a republished record says what the earlier one said. A recorded vehicle gets a depot
where its recording begins, and limits from what it drove, a little below its fastest, so that it too raises alerts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import polars as pl

from streaming.generators.fleet import DEPOTS, Character, uniform, vehicle_names
from streaming.generators.pacing import Clock, Pacing, SystemClock
from streaming.generators.positions import UTC_TIME
from streaming.generators.run import Chunk

MODELS: Final = ("Volvo FH Electric", "Mercedes-Benz eSprinter", "Ford E-Transit", "Renault Master", "DAF XF")
USUAL_LIMIT_MPS: Final = 13.9  # 50 km/h, where a recording has no speeds
_REST_S: Final = 5.0


def reference_data(seed: int, vehicles: int) -> pl.DataFrame:
    """The simulated fleet's columns of `vehicles`, without origin and event time."""
    character = Character.of(seed, vehicles)
    depots = pl.DataFrame(DEPOTS, schema=["depot", "depot_latitude", "depot_longitude"], orient="row")
    model = np.floor(len(MODELS) * uniform(seed, 401, np.arange(vehicles))).astype(np.int64)
    return pl.DataFrame(
        {
            "vehicle": vehicle_names(vehicles),
            "model": pl.Series(MODELS).gather(model),
            **depots[character.depot].to_dict(),
            "speed_limit_mps": character.speed_limit_mps,
            "range_limit_m": character.range_limit_m,
        }
    )


def recorded_reference_data(positions: pl.DataFrame) -> pl.DataFrame:
    """The same columns for the vehicles of a recording (a Recording's frame)."""
    here = pl.col("latitude").is_not_null() & pl.col("longitude").is_not_null()
    return (
        positions.sort("event_time", maintain_order=True)
        .group_by("vehicle", maintain_order=True)
        .agg(
            pl.lit("recorded").alias("model"),
            pl.lit("start of the recording").alias("depot"),
            pl.col("latitude").filter(here).first().fill_null(0.0).alias("depot_latitude"),
            pl.col("longitude").filter(here).first().fill_null(0.0).alias("depot_longitude"),
            (pl.col("speed_mps").max() * 0.9).fill_null(USUAL_LIMIT_MPS).alias("speed_limit_mps"),
            pl.lit(50_000.0).alias("range_limit_m"),
        )
    )


class Vehicles:
    """A generator of `vehicles`: publishes `rows` once, then rests until it is stopped."""

    stream = "vehicles"
    is_live = True

    def __init__(self, rows: pl.DataFrame, *, clock: Clock | None = None) -> None:
        self.rows = rows
        self.clock = clock or SystemClock()
        self.pacing = Pacing(None, self.clock)

    @property
    def parameters(self) -> dict[str, Any]:
        """What a ledger should know."""
        return {"vehicles": self.rows.height}

    def chunks(self, after_us: int, stop: threading.Event) -> Iterator[Chunk]:
        """All vehicles, valid from now on; then nothing until the end, said again and again.

        So what a slow broker has not confirmed at first is asked for again, and the loop is seen to turn.
        """
        now_us = max(self.clock.wall_us(), after_us)
        yield Chunk(self.rows.with_columns(pl.lit(now_us).cast(UTC_TIME).alias("event_time")))
        while True:
            yield Chunk(self.rows.clear())
            if stop.wait(_REST_S):
                return
