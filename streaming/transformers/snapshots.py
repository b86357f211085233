"""A step's state as bytes and back: Arrow IPC streams (zstd), one after the other, the first carrying the header.

Invariant: equal states give equal bytes. So no column has nulls (what lies under a null is not defined), every frame is
one chunk, strings are written with offsets, never as views into buffers that remember their history, and truth values
are packed anew, because the bits behind the last one are not defined either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl
import pyarrow as pa

from streaming.errors import DataError

_HEADER: Final = b"streamgauge.state"
_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression="zstd")
_PLAIN: Final = pl.CompatLevel.oldest()


def dump_state(kind: str, version: int, numbers: Mapping[str, int], frames: Sequence[pl.DataFrame]) -> bytes:
    """The frames and a header {kind, version, numbers}. Frames must not hold nulls."""
    header = json.dumps({"kind": kind, "version": version, **numbers}, sort_keys=True).encode()
    out = pa.BufferOutputStream()
    for frame in frames:
        table = frame.rechunk().to_arrow(compat_level=_PLAIN).combine_chunks()
        for at, field in enumerate(table.schema):
            if pa.types.is_boolean(field.type):
                table = table.set_column(at, field, pa.array(frame[field.name].to_numpy(), pa.bool_()))
        table = table.replace_schema_metadata({_HEADER: header})
        with pa.ipc.new_stream(out, table.schema, options=_OPTIONS) as writer:
            writer.write_table(table)
    return bytes(out.getvalue().to_pybytes())


def load_state(
    kind: str, version: int, snapshot: bytes, schemas: Sequence[pl.Schema]
) -> tuple[dict[str, int], list[pl.DataFrame]]:
    """The inverse of dump_state(). DataError when the snapshot is another step's, another version's or unreadable."""
    try:
        reader = pa.BufferReader(snapshot)
        tables = [pa.ipc.open_stream(reader).read_all() for _ in schemas]
        header = json.loads(tables[0].schema.metadata[_HEADER])
        found = (header.pop("kind"), header.pop("version"))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"the snapshot of {kind} can't be read: {error}") from error
    if found != (kind, version):
        raise DataError(
            f"the snapshot is of {found[0]} version {found[1]}; this program reads {kind} version {version}"
        )
    frames = [pl.DataFrame(table) for table in tables]
    for frame, schema in zip(frames, schemas, strict=True):
        if frame.schema != schema:
            raise DataError(f"the snapshot of {kind} has columns {frame.schema}, not {schema}")
    return header, frames
