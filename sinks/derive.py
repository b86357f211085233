"""What sinks compute before they store: columns derived from a record alone, whole tables at once.

Positions gain the hour (UTC), the geohash of seven characters (a cell of about 150 m) and the speed in km/h.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streaming.events import polars_schema
from streaming.topology import Role, stream

GEOHASH_CHARACTERS: Final = 7
_ALPHABET: Final = np.frombuffer(b"0123456789bcdefghjkmnpqrstuvwxyz", dtype=np.uint8)
_HOUR: Final = pl.Datetime("us", "UTC")

PLACE: Final = {
    "_partition": (pl.Int32(), "partition the record came from"),
    "_offset": (pl.Int64(), "its offset there: with the partition, the record's place on the broker"),
}
DERIVED: Final = {
    "positions": {
        "hour": (_HOUR, "event_time cut to the hour, UTC"),
        "geohash": (pl.String(), "cell of about 150 m by 150 m, seven characters"),
        "speed_kmh": (pl.Float64(), "speed_mps × 3.6"),
    },
}


def table_schema(role: Role) -> pl.Schema:
    """The columns of a sink's table: the stream's, the derived ones, the record's place."""
    return pl.Schema({**polars_schema(stream(role.reads[0]).schema), **{n: k for n, (k, _) in _added(role).items()}})


def table_descriptions(role: Role) -> dict[str, str]:
    """What each column of a sink's table means."""
    fields = {field.name: field.metadata[b"description"].decode() for field in stream(role.reads[0]).schema}
    return {**fields, **{name: says for name, (_, says) in _added(role).items()}}


def derive(name: str, table: pl.DataFrame) -> pl.DataFrame:
    """The stream's rows with its derived columns."""
    if name != "positions":
        return table
    return table.with_columns(
        pl.col("event_time").dt.truncate("1h").alias("hour"),
        geohash(table["latitude"], table["longitude"]).alias("geohash"),
        (pl.col("speed_mps") * 3.6).alias("speed_kmh"),
    )


def geohash(latitude: pl.Series, longitude: pl.Series) -> pl.Series:
    """Geohashes of seven characters; null where a coordinate is missing or out of range."""
    y, x = _numbers(latitude), _numbers(longitude)
    is_known = (np.abs(y) <= 90) & (np.abs(x) <= 180)
    bits = 5 * GEOHASH_CHARACTERS
    code = _interleaved(_cell(x, 180, is_known, (bits + 1) // 2), _cell(y, 90, is_known, bits // 2), bits)
    shifts = np.arange(bits - 5, -1, -5, dtype=np.uint64)
    letters = _ALPHABET[((code[:, None] >> shifts) & np.uint64(31)).astype(np.intp)]
    words = pl.Series(letters.view(f"S{GEOHASH_CHARACTERS}").ravel().tolist(), dtype=pl.Binary).cast(pl.String)
    return pl.select(pl.when(pl.Series(is_known)).then(words)).to_series()


def _added(role: Role) -> dict[str, tuple[pl.DataType, str]]:
    return {**DERIVED.get(role.reads[0], {}), **PLACE}


def _numbers(values: pl.Series) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return numbers


def _cell(values: NDArray[np.float64], bound: float, is_known: NDArray[np.bool_], bits: int) -> NDArray[np.uint64]:
    """Which of 2**bits equal cells of [-bound, bound] a value lies in."""
    share = np.where(is_known, (values + bound) / (2 * bound), 0.0)
    return np.asarray(np.minimum(np.floor(share * 2**bits), 2**bits - 1), dtype=np.uint64)


def _interleaved(even: NDArray[np.uint64], odd: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """The bits of two numbers in turn, beginning with the highest of `even`."""
    code = np.zeros(len(even), dtype=np.uint64)
    for place in range(bits):
        source, width = (even, (bits + 1) // 2) if place % 2 == 0 else (odd, bits // 2)
        bit = (source >> np.uint64(width - 1 - place // 2)) & np.uint64(1)
        code = (code << np.uint64(1)) | bit
    return code
