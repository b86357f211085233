"""Required fields: which of a schema's non-nullable fields a row lacks, nested ones included."""

from __future__ import annotations

import polars as pl
import pyarrow as pa


def missing_field(schema: pa.Schema) -> pl.Expr:
    """For each row the path of a required field that is null, or null when nothing is missing."""
    checks = [check for field in schema for check in _checks(pl.col(field.name), field, field.name)]
    return pl.coalesce([pl.when(is_missing).then(pl.lit(path)) for is_missing, path in checks]).alias("missing")


def _checks(value: pl.Expr, field: pa.Field, path: str) -> list[tuple[pl.Expr, str]]:
    found = [] if field.nullable else [(value.is_null(), path)]
    if pa.types.is_struct(field.type):
        for inner in field.type:
            for is_missing, where in _checks(value.struct.field(inner.name), inner, f"{path}.{inner.name}"):
                found.append((is_missing & value.is_not_null(), where))
    elif pa.types.is_list(field.type):
        element = field.type.value_field
        for is_missing, where in _checks(pl.element(), element.with_nullable(nullable=False), f"{path}[]"):
            found.append((value.list.eval(is_missing).list.any().fill_null(value=False), where))
    return found
