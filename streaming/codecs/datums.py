"""Arrow columns → Avro datums, whole columns at once.

Invariant: a value has exactly one encoding here (shortest varints, one block a list), so a datum that decodes to a row
and is what that row encodes to belongs to it, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def datums(columns: Sequence[pa.Array], fields: Sequence[pa.Field], prefix: bytes) -> list[bytes]:
    """One record a row, each behind `prefix`. ValueError when a required field is null; times come as integers."""
    encoded = [_field(column, field) for column, field in zip(columns, fields, strict=True)]
    return _as_list(_joined(prefix, *encoded))


def _field(values: pa.Array, field: pa.Field) -> pa.Array:
    if not field.nullable:
        if values.null_count:
            raise ValueError(f"{field.name} is required, and null in {values.null_count} rows")
        return _value(values, field.type)
    if not values.null_count:
        return _joined(b"\x02", _value(values, field.type))
    present = _joined(b"\x02", _value(values.drop_null(), field.type))
    is_present = values.is_valid().to_numpy(zero_copy_only=False)
    return present.take(pa.array(np.cumsum(is_present) - 1, mask=~is_present)).fill_null(b"\x00")


def _value(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values without nulls."""
    if pa.types.is_struct(kind):
        return _joined(*[_field(part, inner) for part, inner in zip(values.flatten(), kind, strict=True)])
    if pa.types.is_list(kind):
        return _list(values, kind.value_type)
    if pa.types.is_string(kind):
        octets = values.cast(pa.large_binary())
        return _joined(_varints(_numbers(pc.binary_length(octets), np.int64)), octets)
    numbers = _numbers(values, np.float64 if pa.types.is_floating(kind) else np.int64)
    return _fixed(numbers) if pa.types.is_floating(kind) else _varints(numbers)


def _list(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """One block: how many, the items, a zero; an empty list is the zero alone."""
    lengths = _numbers(pc.list_value_length(values), np.int64)
    items = _field(values.flatten(), pa.field("an item of a list", kind, nullable=False))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]))
    block = _joined(
        _varints(lengths),
        pc.binary_join(pa.LargeListArray.from_arrays(offsets, items), pa.scalar(b"", pa.large_binary())),
        b"\x00",
    )
    return pc.if_else(pa.array(lengths == 0), pa.scalar(b"\x00", pa.large_binary()), block)


def _varints(numbers: NDArray[np.int64]) -> pa.Array:
    """Zigzag, then seven bits a byte, lowest first, the high bit set on all but the last."""
    zigzag = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    lengths = np.ones(len(numbers), dtype=np.int64)
    for bits in range(7, 64, 7):
        lengths += zigzag >= np.uint64(1 << bits)
    place = np.arange(lengths.max(initial=1))
    octets = ((zigzag[:, None] >> (7 * place).astype(np.uint64)) & np.uint64(0x7F)).astype(np.uint8)
    octets |= (place < lengths[:, None] - 1).astype(np.uint8) << 7
    return _binary(octets[place < lengths[:, None]], np.concatenate([[0], np.cumsum(lengths)]))


def _fixed(numbers: NDArray[np.float64]) -> pa.Array:
    return _binary(numbers.astype("<f8").view(np.uint8), np.arange(len(numbers) + 1) * 8)


def _numbers(values: pa.Array, kind: type) -> NDArray[Any]:
    return np.ascontiguousarray(values.to_numpy(zero_copy_only=False), dtype=kind)


def _binary(octets: NDArray[np.uint8], offsets: NDArray[np.int64]) -> pa.Array:
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(octets)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _joined(*parts: Any) -> pa.Array:
    whole = [pa.scalar(part, pa.large_binary()) if isinstance(part, bytes) else part for part in parts]
    return pc.binary_join_element_wise(*whole, pa.scalar(b"", pa.large_binary()))


def _as_list(values: pa.Array) -> list[bytes]:
    """Slices of one buffer: twice as fast as to_pylist()."""
    offsets = np.frombuffer(values.buffers()[1], dtype=np.int64)[values.offset : values.offset + len(values) + 1]
    octets = values.buffers()[2].to_pybytes() if values.buffers()[2] else b""
    return [octets[start:end] for start, end in pairwise(offsets.tolist())]
