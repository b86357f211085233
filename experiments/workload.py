"""What trials send: the application's own messages, simulated or from a person's recording, encoded once and reused.

Invariant: row i has sequence i, on every call and in every trial, so a ledger of sequences is a ledger of messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streaming.interfaces import Codec


@dataclass(frozen=True, slots=True)
class Messages:
    """Encoded messages with sequences from `first` on."""

    vehicles: list[str]
    values: list[bytes]
    first: int = 0

    @property
    def keys(self) -> list[bytes | None]:
        """The application's key: the vehicle."""
        return [vehicle.encode() for vehicle in self.vehicles]

    def __len__(self) -> int:
        return len(self.values)


@dataclass
class Workload:
    """Messages of one stream. `rows(n)` gives at least the first n rows of it, in the order of sending."""

    says: str
    codec: Codec
    rows: Callable[[int], pl.DataFrame]
    _vehicles: list[str] = field(default_factory=list)
    _values: list[bytes] = field(default_factory=list)

    def messages(self, count: int, first: int = 0) -> Messages:
        """`count` messages from sequence `first` on."""
        end = first + count
        if end > len(self._values):
            self._extend(end)
        return Messages(self._vehicles[first:end], self._values[first:end], first)

    def table(self, count: int) -> pl.DataFrame:
        """The first `count` messages as rows, sequence included."""
        return (
            self.rows(count)
            .head(count)
            .with_columns(sequence=pl.int_range(count, dtype=pl.Int64), epoch=pl.lit(1, pl.Int64))
        )

    def sequences(self, values: Sequence[bytes]) -> NDArray[np.int64]:
        """Who these messages are; ValueError when one of them can't be read."""
        decoded = self.codec.decode(values)
        if decoded.rejections:
            raise ValueError(f"{len(decoded.rejections)} messages can't be decoded: {decoded.rejections[0].reason}")
        found: NDArray[np.int64] = decoded.table["sequence"].to_numpy()
        return found

    def _extend(self, end: int) -> None:
        table = self.table(max(end, 2 * len(self._values)))
        self._vehicles = table["vehicle"].to_list()
        self._values = self.codec.encode(table)
