"""What flows: deliveries of one partition in columns, and what a codec made of them.

Invariant: one delivery is exactly one row or exactly one rejection, and both know their place in the batch, so that
an offset can never slip to another record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Batch:
    """Deliveries of one partition of one stream, in offset order.

    `offsets` (int64) is as long as `values` and strictly rising; it has gaps where the broker keeps control records or
    has compacted. A tombstone's value is b"".
    """

    stream: str
    partition: int
    values: Sequence[bytes]
    offsets: NDArray[np.int64]

    @property
    def next_offset(self) -> int:
        """The position behind the batch: its last offset + 1."""
        return int(self.offsets[-1]) + 1

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A delivery that could not become a row: its place in the batch and why."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A codec's answer: `rows[i]` is the place in the input of the table's i-th row (rising, int64).

    len(table) + len(rejections) equals the number of payloads that were given.
    """

    table: pl.DataFrame
    rows: NDArray[np.int64]
    rejections: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Payloads for one stream, each with its key; the key decides the partition unless `partitions` is given."""

    stream: str
    values: Sequence[bytes]
    keys: Sequence[bytes]
    partitions: Sequence[int] | None = None
