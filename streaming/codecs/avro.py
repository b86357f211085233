"""Avro in its single-object encoding: two marker bytes, the schema's fingerprint, one datum.

The fingerprint (CRC-64-AVRO of the canonical form) makes each payload name its schema, so no registry is needed and a
foreign payload is rejected instead of misread. Datums are decoded one by one: Avro has no separators, so in a joined
block one datum that is too short or too long would shift all that follow without any error. A datum must also use up
its payload to the last byte.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

import fastavro
import numpy as np
import polars as pl
import pyarrow as pa
from fastavro.schema import fingerprint, to_parsing_canonical_form

from streaming.batch import Decoded, Rejection
from streaming.events import polars_schema

_MARKER: Final = b"\xc3\x01"
_FAILURES: Final = (ValueError, TypeError, EOFError, IndexError, OverflowError, KeyError, StopIteration, MemoryError)


class AvroCodec:
    """Implements interfaces.Codec for one writer schema, derived from the Arrow schema."""

    name = "avro"

    def __init__(self, schema: pa.Schema) -> None:
        self.schema: dict[str, Any] = {
            "type": "record",
            "name": "Event",
            "fields": [_field(field, field.name) for field in schema],
        }
        self._parsed = fastavro.parse_schema(self.schema)
        canonical = to_parsing_canonical_form(self._parsed)
        self._header = _MARKER + bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO"))
        self._schema = polars_schema(schema)
        self._times = [name for name, kind in self._schema.items() if isinstance(kind, pl.Datetime)]
        self._wire = pl.Schema({name: pl.Int64 if name in self._times else kind for name, kind in self._schema.items()})

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """See interfaces.Codec."""
        records: list[Any] = []
        rows: list[int] = []
        rejections: list[Rejection] = []
        for index, value in enumerate(values):
            try:
                records.append(self._datum(value))
                rows.append(index)
            except _FAILURES as error:
                rejections.append(Rejection(index, (str(error) or type(error).__name__)[:200]))
        table = pl.DataFrame(records, schema=self._wire, strict=True)
        table = table.with_columns(pl.col(self._times).cast(pl.Datetime("us", "UTC")))
        return Decoded(table, np.asarray(rows, dtype=np.int64), tuple(rejections))

    def encode(self, table: pl.DataFrame) -> list[bytes]:
        """See interfaces.Codec."""
        wire = table.select(self._schema.names()).with_columns(pl.col(self._times).cast(pl.Int64))
        return [self._payload(row) for row in wire.iter_rows(named=True)]

    def _datum(self, value: bytes) -> Any:
        if value[:10] != self._header:
            raise ValueError("not in single-object encoding of this stream's schema")
        body = io.BytesIO(value)
        body.seek(len(self._header))
        record = fastavro.schemaless_reader(body, self._parsed, None)
        if body.tell() != len(value):
            raise ValueError(f"{len(value) - body.tell()} bytes behind the datum")
        return record

    def _payload(self, row: dict[str, Any]) -> bytes:
        body = io.BytesIO(self._header)
        body.seek(len(self._header))
        fastavro.schemaless_writer(body, self._parsed, row)
        return body.getvalue()


def _field(field: pa.Field, path: str) -> dict[str, Any]:
    kind = _type(field.type, path)
    return {"name": field.name, "type": ["null", kind] if field.nullable else kind}


def _type(kind: pa.DataType, path: str) -> Any:
    if pa.types.is_struct(kind):
        return {"type": "record", "name": path, "fields": [_field(inner, f"{path}_{inner.name}") for inner in kind]}
    if pa.types.is_list(kind):
        return {"type": "array", "items": _type(kind.value_type, f"{path}_item")}
    if pa.types.is_timestamp(kind):
        return "long"  # microseconds since 1970; the logical type would cost a Python datetime a value
    return {pa.string(): "string", pa.int64(): "long", pa.float64(): "double"}[kind]
