"""A sink's process for the crash tests: lands a fixed input, and dies at the moment its arguments name.

    python landing.py HOME CHECKPOINT:TIMES FORMAT [PROTECTION…]

The input is the same at every start: what is read begins where the committed files end, like after a real crash.
PROTECTION names a protection to switch off, for the controls that must find the damage.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl

from orchestration.injection import checkpoint_of
from sinks.files import FileSink, Rotation
from sinks.slots import SlotChain
from streaming.batch import Batch
from streaming.codecs import codec
from streaming.events import POSITION_MEANS, POSITIONS, polars_schema
from streaming.home import Home
from streaming.interfaces import Identity
from streaming.topology import ROLES, Role

RECORDS = 200  # of each partition
BATCH = 7
PARTITIONS = (0, 1)
POISON = 50  # every so many-th record of the input is no JSON


def payloads(name: str) -> list[bytes]:
    """The partition's records, in offset order."""
    schema = POSITIONS if name == "positions" else POSITION_MEANS
    kinds = polars_schema(schema)
    sequence = pl.int_range(RECORDS, dtype=pl.Int64, eager=True)
    columns = {
        field: sequence.alias(field) if field == "sequence" else _constant(kind).alias(field)
        for field, kind in kinds.items()
    }
    values = codec("json", schema).encode(pl.DataFrame(columns))
    return [b"poison" if index % POISON == POISON - 1 else value for index, value in enumerate(values)]


def _constant(kind: pl.DataType) -> pl.Series:
    if kind == pl.String:
        return pl.Series(["x"] * RECORDS)
    return pl.Series([1] * RECORDS).cast(kind)


def role_for(file_format: str) -> Role:
    """The sink under test."""
    return ROLES["positions-parquet" if file_format == "parquet" else "position-means-csv"]


def table_for(file_format: str) -> str:
    """Its table."""
    return f"{role_for(file_format).reads[0]}_{file_format}"


def sink_for(home: Path, file_format: str, writer: str = "test", crash_at: str = "") -> FileSink:
    """A sink on the home, that dies at `crash_at`."""
    role = role_for(file_format)
    schema = POSITIONS if file_format == "parquet" else POSITION_MEANS
    return FileSink(
        Home(home),
        "kafka",
        role,
        codec("json", schema),
        Identity("cluster", "topic"),
        rotation=Rotation(rows=3 * BATCH, seconds=1e9),
        writer=writer,
        checkpoint=checkpoint_of({"STREAMGAUGE_CRASH_AT": crash_at}),
    )


def batches(name: str, partition: int, start: int) -> list[Batch]:
    """What a broker delivers from `start` on."""
    values = payloads(name)
    return [
        Batch(name, partition, values[at : at + BATCH], np.arange(at, min(at + BATCH, RECORDS), dtype=np.int64))
        for at in range(start, RECORDS, BATCH)
    ]


def land(sink: FileSink, name: str) -> None:
    """Everything from where the files end."""
    queues = {partition: batches(name, partition, sink.resume(partition) or 0) for partition in PARTITIONS}
    while any(queues.values()):
        for waiting in queues.values():
            if waiting:
                sink.write(waiting.pop(0))
        if sink.is_due:
            sink.commit()
    sink.commit()


def main() -> None:
    """See the module."""
    home, crash_at, file_format, *off = sys.argv[1:]
    role = role_for(file_format)
    with mock.patch("os.link", os.rename if "exclusive" in off else os.link):
        if "position" in off:  # the slot says it ends one record earlier than it does
            append = SlotChain.append
            mock.patch.object(SlotChain, "append", lambda chain, table, end: append(chain, table, end - 1)).start()
        land(sink_for(Path(home), file_format, crash_at=crash_at), role.reads[0])


if __name__ == "__main__":
    main()
