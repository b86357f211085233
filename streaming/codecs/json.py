"""JSON: one object per payload, times as whole microseconds since 1970.

The whole batch is parsed as newline-delimited JSON. Alignment is proven, not hoped for: no payload holds a line break,
none is blank (each begins with a brace), the parser refuses a line with more than one document, so every line gives
exactly one row, and the count is checked. Only when the batch fails is it halved until the culprits stand alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from streaming.batch import Decoded, Rejection
from streaming.codecs.required import missing_field
from streaming.events import polars_schema

_LARGEST_BYTES = 1_000_000


class JsonCodec:
    """Implements interfaces.Codec. Fields that are not in the schema are ignored; optional ones may be absent."""

    name = "json"

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = polars_schema(schema)
        self._times = [name for name, kind in self._schema.items() if isinstance(kind, pl.Datetime)]
        self._wire = pl.Schema({name: pl.Int64 if name in self._times else kind for name, kind in self._schema.items()})
        self._missing = missing_field(schema)

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """See interfaces.Codec."""
        parsed: list[pl.DataFrame] = []
        places: list[int] = []
        rejections: list[Rejection] = []
        self._parse(values, 0, parsed, places, rejections)
        table = pl.concat(parsed) if parsed else pl.DataFrame(schema=self._wire)
        rows = np.asarray(places, dtype=np.int64)
        table = table.with_columns(pl.col(self._times).cast(pl.Datetime("us", "UTC")))
        missing = table.select(self._missing).to_series()
        if missing.null_count() < len(missing):
            bad = missing.is_not_null().to_numpy()
            found = zip(rows[bad].tolist(), missing.drop_nulls(), strict=True)
            rejections += [Rejection(index, f"{field} is missing") for index, field in found]
            table, rows = table.filter(missing.is_null()), rows[~bad]
        return Decoded(table, rows, tuple(sorted(rejections, key=lambda each: each.index)))

    def encode(self, table: pl.DataFrame) -> list[bytes]:
        """See interfaces.Codec."""
        wire = table.select(self._schema.names()).with_columns(pl.col(self._times).cast(pl.Int64))
        return wire.write_ndjson().encode().splitlines()

    def _parse(
        self,
        values: Sequence[bytes],
        first: int,
        parsed: list[pl.DataFrame],
        places: list[int],
        rejections: list[Rejection],
    ) -> None:
        if not values:
            return
        try:
            parsed.append(self._parse_all(values))
            places.extend(range(first, first + len(values)))
        except (pl.exceptions.PolarsError, ValueError) as error:
            if len(values) == 1:
                rejections.append(Rejection(first, str(error).splitlines()[0][:200]))
                return
            middle = len(values) // 2
            self._parse(values[:middle], first, parsed, places, rejections)
            self._parse(values[middle:], first + middle, parsed, places, rejections)

    def _parse_all(self, values: Sequence[bytes]) -> pl.DataFrame:
        if not all(value[:1] == b"{" for value in values):
            raise ValueError("not a JSON object")
        joined = b"\n".join(values)
        if joined.count(b"\n") != len(values) - 1 or b"\r" in joined:
            raise ValueError("a line break inside the payload")
        if len(values) == 1 and len(joined) > _LARGEST_BYTES:
            raise ValueError(f"{len(joined)} bytes: more than {_LARGEST_BYTES}")
        table = pl.read_ndjson(io.BytesIO(joined), schema=self._wire)
        if len(table) != len(values):
            raise ValueError("not exactly one JSON object")
        return table
