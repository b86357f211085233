"""How far a stream had come, by partition: an offset, or on queues, which have none, the events themselves."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from streaming.events import ORIGIN
from streaming.identities import Identities

End = int | Identities
Ends = Mapping[int, End]  # partition → end


def is_below(end: End) -> pl.Expr:
    """Whether a row of this partition lies below the end. Needs `_offset`, or ORIGIN for a set of events."""
    if isinstance(end, int):
        return pl.col("_offset") < end
    return pl.struct(ORIGIN).map_batches(
        lambda rows: pl.Series(end.known(rows.struct.unnest()), dtype=pl.Boolean), return_dtype=pl.Boolean
    )


def without(events: Identities, others: Identities) -> Identities:
    """The events that are in the first set and not in the second."""
    rest = {
        life: ranges - others.lives[life] if life in others.lives else ranges for life, ranges in events.lives.items()
    }
    return Identities({life: ranges for life, ranges in rest.items() if len(ranges)})


def joined(events: Identities, others: Identities) -> Identities:
    """The events that are in either set."""
    both = dict(events.lives)
    for life, ranges in others.lives.items():
        both[life] = both[life] | ranges if life in both else ranges
    return Identities(both)
