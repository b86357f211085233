"""What sinks compute before they store: columns derived from a record alone, whole tables at once.

Positions gain the hour (UTC), the geohash of seven characters (a cell of about 150 m) and the speed in km/h.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from streaming.events import polars_schema
from streaming.topology import Role, stream

GEOHASH_CHARACTERS: Final = 7
_ALPHABET: Final = np.frombuffer(b"0123456789bcdefghjkmnpqrstuvwxyz", dtype=np.uint8)
_SPREADING: Final = tuple(
    (np.uint64(shift), np.uint64(kept))
    for shift, kept in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    )
)
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
    east, north = _cell(x, 180, is_known, (bits + 1) // 2), _cell(y, 90, is_known, bits // 2)
    code = _spread(east) | (_spread(north) << np.uint64(1))  # bits in turn, the highest and the lowest are the east's
    shifts = np.arange(bits - 5, -1, -5, dtype=np.uint64)
    letters = _ALPHABET[((code[:, None] >> shifts) & np.uint64(31)).astype(np.uint8)]
    return pl.select(pl.when(pl.Series(is_known)).then(_words(letters))).to_series()


def _added(role: Role) -> dict[str, tuple[pl.DataType, str]]:
    return {**DERIVED.get(role.reads[0], {}), **PLACE}


def _numbers(values: pl.Series) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return numbers


def _cell(values: NDArray[np.float64], bound: float, is_known: NDArray[np.bool_], bits: int) -> NDArray[np.uint64]:
    """Which of 2**bits equal cells of [-bound, bound] a value lies in."""
    share = np.where(is_known, (values + bound) / (2 * bound), 0.0)
    return np.asarray(np.minimum(np.floor(share * 2**bits), 2**bits - 1), dtype=np.uint64)


def _spread(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The bits of numbers below 2**32 with a zero above each."""
    for shift, kept in _SPREADING:
        number = (number | (number << shift)) & kept
    return number


def _words(letters: NDArray[np.uint8]) -> pl.Series:
    """Each row of ASCII letters as a string, without a Python object for it."""
    rows, characters = letters.shape
    ends = pa.py_buffer(np.arange(rows + 1, dtype=np.int64) * characters)
    text = pa.py_buffer(np.ascontiguousarray(letters))
    return pl.Series(pa.LargeStringArray.from_buffers(rows, ends, text), dtype=pl.String)
