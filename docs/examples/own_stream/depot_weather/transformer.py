"""Frost: FrostStep, from depot_weather to frosts.

Invariant: one row for each change of side of 0 °C, in the order of the readings and numbered on, so that neither
content nor identity of a row depends on how the readings were cut into batches. A depot's first reading is no change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from streaming.events import MARK, polars_schema
from streaming.transformers.snapshots import dump_state, load_state

from .declaration import FROSTS

_FROSTS: Final = polars_schema(FROSTS)
_LAST: Final = pl.Schema({"depot": pl.String, "was_freezing": pl.Boolean})


@dataclass(frozen=True, slots=True)
class FrostState:
    """One partition's memory: rows emitted so far, and each depot's last side of 0 °C, sorted by depot."""

    partition: int
    emitted: int
    last: pl.DataFrame


class FrostStep:
    """A streaming.interfaces.Step. Its rows' producer is the role's name without its ending, and the partition."""

    def initial(self, partition: int) -> FrostState:
        """No depot seen."""
        return FrostState(partition, 0, pl.DataFrame(schema=_LAST))

    def advance(self, state: FrostState, rows: pl.DataFrame) -> tuple[FrostState, Mapping[str, pl.DataFrame]]:
        """`rows` in offset order, marks among them."""
        read = rows.filter(pl.col("sequence") != MARK).with_columns(is_freezing=pl.col("temperature_c") < 0)
        known = read.join(state.last, on="depot", how="left", maintain_order="left")
        before = pl.col("is_freezing").shift(1).over("depot").fill_null(pl.col("was_freezing"))
        frosts = known.filter(pl.col("is_freezing") != before).with_columns(
            producer=pl.lit(f"frosts-{state.partition}"),
            epoch=pl.lit(0, pl.Int64),
            sequence=pl.int_range(pl.len(), dtype=pl.Int64) + state.emitted,
        )
        newest = pl.concat([state.last, read.select("depot", was_freezing="is_freezing")])
        last = newest.unique("depot", keep="last").sort("depot")
        return FrostState(state.partition, state.emitted + len(frosts), last), {
            "frosts": frosts.select(_FROSTS.names())
        }

    def dump(self, state: FrostState) -> bytes:
        """The same state gives the same bytes."""
        return dump_state("frosts", 1, {"partition": state.partition, "emitted": state.emitted}, (state.last,))

    def load(self, snapshot: bytes) -> FrostState:
        """DataError when it is not a snapshot of this step and version."""
        numbers, (last,) = load_state("frosts", 1, snapshot, (_LAST,))
        return FrostState(numbers["partition"], numbers["emitted"], last)
