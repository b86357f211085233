"""Every codec, on every stream's schema: exactly one row or one rejection per payload, each in its place."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.codecs import CODECS, codec
from streaming.errors import UsageError
from streaming.events import SCHEMAS, polars_schema

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MOMENT_US = st.integers(-(10**15), 4 * 10**15)
WHOLE = st.integers(-(2**63), 2**63 - 1)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
JUNK = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"",
            b"{}",
            b"{}{}",
            b"[]",
            b"null",
            b"1",
            b"\n",
            b"{\n}",
            b'{"vehicle":"v"}',
            b"\xc3\x01",
            b"{" * 200,
            b"{}\r{}",
        ]
    ),
)
PATIENT = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_struct(kind):
        return st.fixed_dictionaries({field.name: field_of(field) for field in kind})
    if pa.types.is_list(kind):
        return st.lists(values_of(kind.value_type), max_size=3)
    return {pa.string(): TEXT, pa.int64(): WHOLE, pa.float64(): NUMBER}.get(kind, MOMENT_US)


def field_of(field: pa.Field) -> st.SearchStrategy[Any]:
    return st.none() | values_of(field.type) if field.nullable else values_of(field.type)


def tables_of(schema: pa.Schema) -> st.SearchStrategy[pl.DataFrame]:
    kinds = polars_schema(schema)
    wire = {name: pl.Int64 if isinstance(kind, pl.Datetime) else kind for name, kind in kinds.items()}
    row = st.fixed_dictionaries({field.name: field_of(field) for field in schema})
    return st.lists(row, min_size=1, max_size=6).map(lambda rows: pl.DataFrame(rows, schema=wire).cast(kinds))


@pytest.mark.parametrize("stream", SCHEMAS)
@pytest.mark.parametrize("name", CODECS)
@PATIENT
@given(data=st.data())
def test_what_is_encoded_comes_back_the_same(name: str, stream: str, data: st.DataObject) -> None:
    table = data.draw(tables_of(SCHEMAS[stream]))
    made = codec(name, SCHEMAS[stream])
    payloads = made.encode(table)
    assert len(payloads) == len(table)
    decoded = made.decode(payloads)
    assert decoded.rejections == ()
    assert decoded.table.schema == polars_schema(SCHEMAS[stream])
    assert decoded.table.equals(table)


@pytest.mark.parametrize("stream", ["positions", "diagnostics"])
@pytest.mark.parametrize("name", CODECS)
@PATIENT
@given(data=st.data())
def test_junk_among_good_payloads_moves_none_of_them(name: str, stream: str, data: st.DataObject) -> None:
    table = data.draw(tables_of(SCHEMAS[stream]))
    made = codec(name, SCHEMAS[stream])
    marked = [(payload, index) for index, payload in enumerate(made.encode(table))]
    mixed = data.draw(st.permutations([*marked, *((junk, None) for junk in data.draw(st.lists(JUNK, max_size=6)))]))
    decoded = made.decode([payload for payload, _ in mixed])
    places = decoded.rows.tolist()
    assert places == sorted(places)
    assert sorted([*places, *(each.index for each in decoded.rejections)]) == list(range(len(mixed)))
    assert places == [place for place, (_, index) in enumerate(mixed) if index is not None]
    kept = [index for _, index in mixed if index is not None]
    assert decoded.table.equals(table[kept])
    assert all(each.reason for each in decoded.rejections)


@st.composite
def damaged(draw: st.DrawFn, payloads: list[bytes]) -> bytes:
    """A good payload with a piece cut out, put in or doubled: what a broken producer sends."""
    payload = draw(st.sampled_from(payloads))
    start = draw(st.integers(0, len(payload)))
    end = draw(st.integers(start, min(start + 12, len(payload))))
    return payload[:start] + draw(st.one_of(st.binary(max_size=6), st.just(payload[start:] * 2))) + payload[end:]


@pytest.mark.parametrize("stream", ["positions", "diagnostics"])
@pytest.mark.parametrize("name", CODECS)
@PATIENT
@given(data=st.data())
def test_what_becomes_of_a_payload_does_not_depend_on_its_neighbours(
    name: str, stream: str, data: st.DataObject
) -> None:
    made = codec(name, SCHEMAS[stream])
    good = made.encode(data.draw(tables_of(SCHEMAS[stream])))
    batch = data.draw(st.permutations(good + data.draw(st.lists(damaged(good), min_size=1, max_size=20))))
    together = made.decode(batch)
    alone = [made.decode([payload]) for payload in batch]
    assert together.rows.tolist() == [place for place, each in enumerate(alone) if len(each.table)]
    assert together.table.equals(pl.concat([each.table for each in alone]))
    reasons = [(place, why.reason) for place, each in enumerate(alone) for why in each.rejections]
    assert [(each.index, each.reason) for each in together.rejections] == reasons


def position(**changes: object) -> bytes:
    fields: dict[str, object] = {"vehicle": '"v"', "producer": '"p"', "epoch": 1, "sequence": 2, "event_time": 3}
    fields |= changes
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items() if value is not None) + "}").encode()


@pytest.mark.parametrize(
    "payload",
    [
        position(vehicle=None),
        position(sequence="null"),
        position(sequence='"2"'),
        position(sequence=2.5),
        position(sequence=2**63),
        position(latitude='"north"'),
        position(latitude="NaN"),
        position(latitude="1e999"),
        position(latitude="[1]"),
        position(latitude="true"),
        position(vehicle=7),
        position(vehicle="true"),
        position(vehicle='{"a":1}'),
        position(event_time=2**62),
        position(event_time='"2026-01-01T00:00:00Z"'),
        position(more="[" * 5_000 + "]" * 5_000),
        position() + position(),
        position() + b" " + position(),
        position() + b"\n",
        position()[:-1],
        b" " + position(),
        b"\xef\xbb\xbf" + position(),
    ],
)
def test_json_that_is_not_exactly_one_valid_event_is_rejected(payload: bytes) -> None:
    made = codec("json", SCHEMAS["positions"])
    decoded = made.decode([position(), payload, position(sequence=9)])
    assert [each.index for each in decoded.rejections] == [1]
    assert decoded.table["sequence"].to_list() == [2, 9]


@pytest.mark.parametrize("vehicle", ["7", "true", "[x]", "{", "-1", "null"])
def test_strings_that_look_like_other_json_are_strings(vehicle: str) -> None:
    decoded = codec("json", SCHEMAS["positions"]).decode([position(vehicle=f'"{vehicle}"')])
    assert decoded.table["vehicle"].to_list() == [vehicle]


def test_nested_strings_that_are_none_are_rejected_with_their_path() -> None:
    made = codec("json", SCHEMAS["diagnostics"])
    front, bad = '{"wheel":"front_left","pressure_kpa":1}', '{"wheel":7,"pressure_kpa":1}'
    nested = {"battery": '{"voltage_v":1}', "tyres": f"[{front}]", "trouble_codes": '["P0420"]'}
    payloads = [
        position(**nested),
        position(**nested | {"tyres": f"[{front},{bad}]"}),
        position(**nested | {"trouble_codes": "[{}]"}),
        position(**nested | {"trip": '{"trip_id":1,"distance_m":1}'}),
        position(**nested | {"trip": '{"trip_id":"1"}'}),
        position(**nested | {"tyres": "[null]"}),
    ]
    decoded = made.decode(payloads)
    assert [each.reason for each in decoded.rejections] == [
        "tyres[].wheel is no string",
        "trouble_codes[] is no string",
        "trip.trip_id is no string",
        "trip.distance_m is missing",
        "tyres[] is missing",
    ]
    assert decoded.rows.tolist() == [0]


def test_json_fields_that_a_later_schema_may_add_are_ignored_and_absent_ones_are_null() -> None:
    decoded = codec("json", SCHEMAS["positions"]).decode([position(colour='"red"')])
    assert decoded.rejections == ()
    assert decoded.table["latitude"].to_list() == [None]
    assert decoded.table["event_time"].to_list() == [datetime(1970, 1, 1, 0, 0, 0, 3, tzinfo=UTC)]


def test_avro_of_another_schema_or_with_a_byte_too_many_is_rejected() -> None:
    made, other = codec("avro", SCHEMAS["positions"]), codec("avro", SCHEMAS["vehicles"])
    one = codec("json", SCHEMAS["positions"]).decode([position()]).table
    good = made.encode(one)[0]
    foreign = other.encode(pl.DataFrame([_blank()], schema=polars_schema(SCHEMAS["vehicles"])))[0]
    decoded = made.decode([good, good + b"\0", good[:-1], foreign, good])
    assert [each.index for each in decoded.rejections] == [1, 2, 3]
    assert decoded.table.equals(pl.concat([one, one]))


def test_numbers_that_are_none_do_not_become_numbers() -> None:
    table = codec("json", SCHEMAS["positions"]).decode([position(latitude=1.5)]).table
    made = codec("json", SCHEMAS["positions"])
    back = made.decode(made.encode(table.with_columns(pl.lit(math.nan).alias("latitude"))))
    assert back.table["latitude"].to_list() == [None]


def test_an_unknown_codec_names_those_that_are_there() -> None:
    with pytest.raises(UsageError, match="json, avro"):
        codec("morse", SCHEMAS["positions"])


def _blank() -> dict[str, Any]:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    text = dict.fromkeys(["vehicle", "producer", "model", "depot"], "x")
    numbers = dict.fromkeys(["depot_latitude", "depot_longitude", "speed_limit_mps", "range_limit_m"], 1.0)
    return {**text, **numbers, "epoch": 1, "sequence": 1, "event_time": moment}
