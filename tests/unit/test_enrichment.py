"""The reference table: the last record of each vehicle, and how far the stream was read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from streaming.batch import Batch, Decoded, Rejection
from streaming.events import MARK, VEHICLES, polars_schema
from streaming.transformers.flows import reference_table


class _Lines:
    """The smallest codec: b"vehicle sequence model"; anything else is a rejection."""

    name = "lines"

    def decode(self, values: Sequence[bytes]) -> Decoded:
        good = [place for place, value in enumerate(values) if value.count(b" ") == 2]
        parts = [values[place].decode().split(" ") for place in good]
        rows = [{"vehicle": name, "sequence": int(number), "model": model} for name, number, model in parts]
        bad = tuple(Rejection(place, "not a line") for place in range(len(values)) if place not in good)
        return Decoded(pl.DataFrame(rows, schema=polars_schema(VEHICLES)), np.array(good, dtype=np.int64), bad)

    def encode(self, table: pl.DataFrame) -> list[bytes]:
        raise NotImplementedError


def _batch(first_offset: int, *values: bytes) -> Batch:
    return Batch("vehicles", 0, values, np.arange(first_offset, first_offset + len(values)))


def test_the_last_record_of_a_vehicle_by_offset_counts() -> None:
    later, earlier = _batch(10, b"b 3 lorry", b"a 4 bus"), _batch(2, b"a 0 van", b"b 1 van", b"c 2 van")
    table, version = reference_table([later, earlier], _Lines())
    assert table.select("vehicle", "model").rows() == [("a", "bus"), ("b", "lorry"), ("c", "van")]
    assert version == 12


def test_tombstones_marks_and_broken_records_change_nothing_but_the_version() -> None:
    table, version = reference_table([_batch(0, b"a 0 van", b"", b"broken", f" {MARK} ".encode())], _Lines())
    assert table["vehicle"].to_list() == ["a"]
    assert version == 4


def test_an_empty_stream_is_an_empty_table_of_version_zero() -> None:
    table, version = reference_table([], _Lines())
    assert (len(table), version) == (0, 0)
    assert table.schema == polars_schema(VEHICLES)
