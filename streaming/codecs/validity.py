"""What makes a row no event: a required field that is null, nested ones included, or a time no calendar has.

Works on the wire's columns, where times are whole microseconds since 1970.
"""

from __future__ import annotations

from typing import Final

import polars as pl
import pyarrow as pa

FIRST_US: Final = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z, the first moment that every library can hold
LAST_US: Final = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z


def problem(schema: pa.Schema) -> pl.Expr:
    """For each row what is wrong with it, or null when nothing is."""
    checks = [check for field in schema for check in _missing(pl.col(field.name), field, field.name)]
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    checks += [(~pl.col(name).is_between(FIRST_US, LAST_US), f"{name} is out of range") for name in times]
    return pl.coalesce([pl.when(is_wrong).then(pl.lit(says)) for is_wrong, says in checks]).alias("problem")


def _missing(value: pl.Expr, field: pa.Field, path: str) -> list[tuple[pl.Expr, str]]:
    found = [] if field.nullable else [(value.is_null(), f"{path} is missing")]
    if pa.types.is_struct(field.type):
        for inner in field.type:
            for is_missing, says in _missing(value.struct.field(inner.name), inner, f"{path}.{inner.name}"):
                found.append((is_missing & value.is_not_null(), says))
    elif pa.types.is_list(field.type):
        element = pa.field("element", field.type.value_type, nullable=False)
        for is_missing, says in _missing(pl.element(), element, f"{path}[]"):
            found.append((value.list.eval(is_missing).list.any().fill_null(value=False), says))
    return found
