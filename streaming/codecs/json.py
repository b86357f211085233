"""JSON: one object per payload on one line, times as whole microseconds since 1970.

The whole batch is parsed as newline-delimited JSON. Alignment is proven, not hoped for: each payload begins with a
brace and holds no line break, the parser refuses a line that is not exactly one object, so every line is one row.
What becomes of a payload never depends on its neighbours; only the speed does.

JSON has no NaN and no infinity: they are refused on the way in and become null on the way out.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from streaming.batch import Decoded, Rejection
from streaming.codecs.texts import field_that_is_no_text, may_be_no_text
from streaming.codecs.validity import problem
from streaming.events import polars_schema

_REASON_CHARACTERS: Final = 200
_BREAK: Final = ord("\n")
_REFUSALS: Final = (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError)


class JsonCodec:
    """Implements interfaces.Codec. Fields that are not in the schema are ignored; optional ones may be absent."""

    name = "json"

    def __init__(self, schema: pa.Schema) -> None:
        self._arrow = schema
        self._schema = polars_schema(schema)
        self._times = [name for name, kind in self._schema.items() if isinstance(kind, pl.Datetime)]
        self._wire = pl.Schema({name: pl.Int64 if name in self._times else kind for name, kind in self._schema.items()})
        self._checks = (problem(schema), may_be_no_text(schema).alias("is_doubtful"))

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """See interfaces.Codec."""
        parsed = _Parsed(self._wire, values)
        parsed.parse(range(len(values)))
        table, rows = parsed.in_order()
        wrong = self._wrong(table, rows, values)
        if wrong:
            is_right = np.isin(rows, [each.index for each in wrong], invert=True)
            table, rows = table.filter(is_right), rows[is_right]
        table = table.with_columns(pl.col(self._times).cast(pl.Datetime("us", "UTC")))
        rejections = sorted([*parsed.rejections, *wrong], key=lambda each: each.index)
        return Decoded(table, rows, tuple(rejections))

    def encode(self, table: pl.DataFrame) -> list[bytes]:
        """See interfaces.Codec."""
        wire = table.select(self._schema.names()).with_columns(pl.col(self._times).cast(pl.Int64))
        lines = io.BytesIO()  # without it polars would make a str, to be made bytes again: a third of the time
        wire.write_ndjson(lines)
        return lines.getvalue().splitlines()

    def _wrong(
        self, table: pl.DataFrame, rows: np.typing.NDArray[np.int64], values: Sequence[bytes]
    ) -> list[Rejection]:
        """Rows that were parsed, but are no events of this schema."""
        found = table.select(self._checks)
        if found["problem"].null_count() == len(found) and not found["is_doubtful"].any():
            return []
        found = found.with_columns(place=rows)
        wrong = [
            Rejection(place, says) for place, says in found.drop_nulls("problem").select("place", "problem").iter_rows()
        ]
        doubtful = found.filter("is_doubtful", pl.col("problem").is_null())["place"]
        no_text = [(place, field_that_is_no_text(values[place], self._arrow)) for place in doubtful]
        return wrong + [Rejection(place, f"{path} is no string") for place, path in no_text if path]


class _Parsed:
    """The payloads of a batch that could be parsed, in pieces, and those that could not."""

    def __init__(self, wire: pl.Schema, values: Sequence[bytes]) -> None:
        self._wire, self._values = wire, values
        self._pieces: list[tuple[Sequence[int], pl.DataFrame]] = []
        self.rejections: list[Rejection] = []

    def parse(self, places: Sequence[int]) -> None:
        """Parse these payloads at once; if that fails, those that are no JSON alone and the others in halves."""
        if self._parse_at_once(places) or len(places) <= 1:
            return
        healthy = [place for place in places if _is_json(self._values[place])]
        self._halve(healthy, is_new=len(healthy) < len(places))
        for place in set(places).difference(healthy):
            self._parse_at_once([place])

    def in_order(self) -> tuple[pl.DataFrame, np.typing.NDArray[np.int64]]:
        """All rows, and each one's place in the batch."""
        if not self._pieces:
            return pl.DataFrame(schema=self._wire), np.empty(0, dtype=np.int64)
        if len(self._pieces) == 1:
            return self._pieces[0][1], _numbers(self._pieces[0][0])
        rows = np.concatenate([_numbers(places) for places, _ in self._pieces])
        order = np.argsort(rows)
        return pl.concat([piece for _, piece in self._pieces])[order], rows[order]

    def _halve(self, places: Sequence[int], *, is_new: bool) -> None:
        if not places or (is_new and self._parse_at_once(places)) or len(places) == 1:
            return
        middle = len(places) // 2
        self._halve(places[:middle], is_new=True)
        self._halve(places[middle:], is_new=True)

    def _parse_at_once(self, places: Sequence[int]) -> bool:
        """Whether all of them are rows now. A single one that can't be parsed is rejected."""
        try:
            is_whole = len(places) == len(self._values)
            piece = _rows(self._values if is_whole else [self._values[place] for place in places], self._wire)
        except _REFUSALS as error:
            if len(places) == 1:
                self.rejections.append(Rejection(places[0], str(error).partition("\n")[0][:_REASON_CHARACTERS]))
            return False
        if places:
            self._pieces.append((places, piece))
        return True


def _numbers(places: Sequence[int]) -> np.typing.NDArray[np.int64]:
    if isinstance(places, range):  # without an object for each number
        return np.arange(places.start, places.stop, places.step, dtype=np.int64)
    return np.asarray(places, dtype=np.int64)


def _rows(values: Sequence[bytes], wire: pl.Schema) -> pl.DataFrame:
    joined = b"\n".join(values)
    if np.count_nonzero(np.frombuffer(joined, np.uint8) == _BREAK) != max(len(values) - 1, 0) or b"\r" in joined:
        raise ValueError("a line break inside the payload")
    if {value[:1] for value in values} != {b"{"}:  # three times as fast as counting b"\n{"
        raise ValueError("not a JSON object")
    table = pl.read_ndjson(io.BytesIO(joined), schema=wire)
    if len(table) != len(values):
        raise ValueError("not exactly one JSON object")
    return table


def _is_json(value: bytes) -> bool:
    """Only a guess, to find the culprits sooner: polars has the last word on each."""
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    return True
