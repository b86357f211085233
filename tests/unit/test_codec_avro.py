"""Avro datums: byte for byte what Avro's own library writes, and the schema that says so."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import fastavro
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.codecs.avro import AvroCodec
from streaming.events import DIAGNOSTICS, POSITIONS, polars_schema
from streaming.generators.diagnostics import Gauges
from streaming.generators.fleet import Fleet

HEADER_BYTES = 10


def diagnostics() -> pl.DataFrame:
    rows = Gauges(Fleet(1, 20, 10)).rows(0, 50)
    numbered = rows.with_columns(
        producer=pl.lit("p"),
        epoch=pl.lit(1, pl.Int64),
        sequence=pl.int_range(pl.len(), dtype=pl.Int64),
        event_time=pl.lit(datetime(2026, 1, 1, tzinfo=UTC)).cast(pl.Datetime("us", "UTC")),
    )
    off = pl.when(pl.col("sequence") % 3 != 0)
    numbered = numbered.with_columns(off.then("engine").alias("engine"), off.then("trip").alias("trip"))
    return numbered.select(polars_schema(DIAGNOSTICS).names())


def by_the_library(codec: AvroCodec, table: pl.DataFrame) -> list[bytes]:
    datums = []
    for record in table.iter_rows(named=True):
        body = io.BytesIO()
        fastavro.schemaless_writer(body, codec.schema, record)
        datums.append(body.getvalue())
    return datums


def test_the_datums_are_those_of_the_library() -> None:
    codec = AvroCodec(DIAGNOSTICS)
    table = diagnostics()
    assert 0 < table["engine"].null_count() < len(table)
    assert [payload[HEADER_BYTES:] for payload in codec.encode(table)] == by_the_library(codec, table)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_integers_of_all_sizes_are_those_of_the_library(numbers: list[int]) -> None:
    codec = AvroCodec(pa.schema([pa.field("number", pa.int64(), nullable=False)]))
    table = pl.DataFrame({"number": numbers}, schema={"number": pl.Int64})
    payloads = codec.encode(table)
    assert [payload[HEADER_BYTES:] for payload in payloads] == by_the_library(codec, table)
    assert codec.decode(payloads).table.equals(table)


def test_the_payload_names_its_schema_as_the_specification_says() -> None:
    codec = AvroCodec(POSITIONS)
    canonical = fastavro.schema.to_parsing_canonical_form(codec.schema)
    fingerprint = bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
    blank = pl.DataFrame(
        [["v", "p", 1, 2, datetime(2026, 1, 1, tzinfo=UTC), *[None] * 6]], schema=polars_schema(POSITIONS), orient="row"
    )
    [payload] = codec.encode(blank)
    assert payload[:HEADER_BYTES] == b"\xc3\x01" + fingerprint
    times = next(field for field in codec.schema["fields"] if field["name"] == "event_time")
    assert times["type"] == {"type": "long", "logicalType": "timestamp-micros"}


def test_the_fingerprint_of_the_specification_is_little_endian() -> None:
    """The library gives the bytes in the order of the single-object encoding; CRC-64-AVRO of "int" is known."""
    canonical = fastavro.schema.to_parsing_canonical_form({"type": "int"})
    said = bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
    assert int.from_bytes(said, "little") == 0x7275D51A3F395C8F


def test_a_datum_that_shifts_its_neighbours_in_a_joined_block_is_found_out() -> None:
    """The count is kept and the block is sound, but the boundary lies elsewhere: both are rejected, nothing moves."""
    codec = AvroCodec(DIAGNOSTICS)
    payloads = codec.encode(diagnostics())
    header, first, second = payloads[0][:HEADER_BYTES], payloads[3][HEADER_BYTES:], payloads[4][HEADER_BYTES:]
    payloads[3:5] = [header + first + second[:4], header + second[4:]]
    decoded = codec.decode(payloads)
    assert [each.index for each in decoded.rejections] == [3, 4]
    assert decoded.table.equals(diagnostics()[[0, 1, 2, *range(5, len(payloads))]])


def test_a_foreign_writer_with_lists_in_several_blocks_is_understood() -> None:
    schema = pa.schema([pa.field("words", pa.list_(pa.string()), nullable=False)])
    codec = AvroCodec(schema)
    table = pl.DataFrame({"words": [["a", "b"]] * 20})
    [payload, *_] = payloads = codec.encode(table)
    payloads[7] = payload[:HEADER_BYTES] + b"\x02\x02a" + b"\x01\x04\x02b" + b"\x00"  # one item, then one with its size
    decoded = codec.decode(payloads)
    assert decoded.rejections == ()
    assert decoded.table.equals(table)


def test_a_required_field_that_is_null_is_refused_when_encoding() -> None:
    table = diagnostics().with_columns(vehicle=pl.lit(None, pl.String))
    with pytest.raises(ValueError, match="vehicle is required"):
        AvroCodec(DIAGNOSTICS).encode(table)


def test_numbers_that_are_none_survive() -> None:
    codec = AvroCodec(pa.schema([pa.field("x", pa.float64(), nullable=False)]))
    table = pl.DataFrame({"x": [np.nan, np.inf, -np.inf, -0.0] * 5})
    back = codec.decode(codec.encode(table)).table["x"].to_numpy()
    assert back.tobytes() == table["x"].to_numpy().tobytes()
