"""Strings that may have been something else: polars turns a JSON number, boolean, list or object into text.

Such text looks like JSON of another type, which few real strings do; only those payloads are looked at one by one.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
import polars as pl
import pyarrow as pa

_LOOKS_LIKE_JSON: Final = r"^(?:-?[0-9]|[\[{]|true$|false$)"


def may_be_no_text(schema: pa.Schema) -> pl.Expr:
    """For each row whether any of its strings may have been a JSON value of another type."""
    return pl.any_horizontal([found for field in schema for found in _doubts(pl.col(field.name), field.type)])


def field_that_is_no_text(payload: bytes, schema: pa.Schema) -> str | None:
    """The path of a string field that holds something else in this payload, a JSON object that polars has accepted."""
    try:
        return _first(orjson.loads(payload), list(schema), "")
    except orjson.JSONDecodeError:
        return "something"  # two parsers disagree, so what it holds is uncertain


def _doubts(value: pl.Expr, kind: pa.DataType) -> list[pl.Expr]:
    if pa.types.is_string(kind):
        return [value.str.contains(_LOOKS_LIKE_JSON).fill_null(value=False)]
    if pa.types.is_struct(kind):
        return [found for inner in kind for found in _doubts(value.struct.field(inner.name), inner.type)]
    if pa.types.is_list(kind):
        return [
            value.list.eval(each).list.any().fill_null(value=False) for each in _doubts(pl.element(), kind.value_type)
        ]
    return []


def _first(record: Any, fields: list[pa.Field], path: str) -> str | None:
    if not isinstance(record, dict):  # a repeated key: one parser took the first, the other one the last
        return path.rstrip(".")
    for field in fields:
        if found := _wrong(record.get(field.name), field.type, f"{path}{field.name}"):
            return found
    return None


def _wrong(value: Any, kind: pa.DataType, path: str) -> str | None:
    if value is None:
        return None
    if pa.types.is_string(kind):
        return None if isinstance(value, str) else path
    if pa.types.is_struct(kind):
        return _first(value, list(kind), f"{path}.")
    if pa.types.is_list(kind):
        if not isinstance(value, list):
            return path
        return next((bad for each in value if (bad := _wrong(each, kind.value_type, f"{path}[]"))), None)
    return None
