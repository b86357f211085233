"""What trials send: the application's own messages, simulated or from a person's recording, encoded once and reused.

Invariant: row i has sequence i, on every call and in every trial, so a ledger of sequences is a ledger of messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streaming.events import POSITIONS, polars_schema
from streaming.generators import recording
from streaming.generators.fleet import Fleet
from streaming.generators.positions import Measured as Receivers
from streaming.interfaces import Codec

PRODUCER: Final = "lab"
RATE_HZ: Final = 10.0
BEGIN_US: Final = 1_767_225_600_000_000  # simulated time begins with the year 2026


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
        """The first `count` messages as rows of `positions`."""
        origin = {
            "producer": pl.lit(PRODUCER),
            "epoch": pl.lit(1, pl.Int64),
            "sequence": pl.int_range(pl.len(), dtype=pl.Int64),
        }
        return self.rows(count).head(count).with_columns(**origin).select(polars_schema(POSITIONS).names())

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


def fleet(codec: Codec, vehicles: int = 20, seed: int = 1) -> Workload:
    """The simulated fleet's positions, ten a second and vehicle in simulated time: the same bytes in every run."""
    receivers = Receivers(Fleet(seed, vehicles, RATE_HZ))

    def rows(count: int) -> pl.DataFrame:
        return receivers.rows(0, count, begin_us=BEGIN_US)

    return Workload(f"positions of {vehicles} simulated vehicles, {codec.name}, seed {seed}", codec, rows)


def recorded(codec: Codec, path: Path) -> Workload:
    """A person's recording (CSV, Parquet, GPX), from its beginning, again and again if it is too short."""
    table = recording.read(path).frame

    def rows(count: int) -> pl.DataFrame:
        return pl.concat([table] * -(-count // len(table)))

    return Workload(f"positions recorded in {path.name}, {codec.name}", codec, rows)
