"""File formats of slots: how a table becomes a file, and how the file alone tells where it ends.

Invariant: `next` of a slot is knowable from its own bytes: from Parquet's footer, or from the last row of a CSV.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import polars as pl
import pyarrow.parquet as pq

PREFIX: Final = "streamgauge."
_TAIL_BYTES: Final = 65_536
_CSV_TIMES: Final = "%Y-%m-%dT%H:%M:%S%.6fZ"


@dataclass(frozen=True, slots=True)
class Footer:
    """What a committed file says of itself: how many rows, and the position behind it."""

    rows: int
    next: int
    facts: Mapping[str, str]  # the rest of what the writer noted; empty for CSV


class Format(Protocol):
    """A file format for slots."""

    suffix: str
    may_be_empty: bool  # whether a slot without rows can carry a position

    def write(self, table: pl.DataFrame, file: BinaryIO, facts: Mapping[str, str]) -> None:
        """Write the whole file; the caller syncs and closes it.

        It is made in memory first: of a full disk polars would make an error of its own, without its number.
        """
        ...

    def footer(self, path: Path) -> Footer:
        """Read it back. OSError or ValueError when the file is no such file."""
        ...

    def scan(self, paths: list[Path], schema: pl.Schema) -> pl.LazyFrame:
        """The files as one frame of this schema; columns that older files lack are null."""
        ...


class Parquet:
    """Compressed (zstd as fast as it goes), with statistics, and the chain's facts as key-value metadata."""

    suffix = "parquet"
    may_be_empty = True

    def __init__(self, compression: Any = "zstd") -> None:  # polars has a type of its own for these words, unshown
        self._compression = compression

    def write(self, table: pl.DataFrame, file: BinaryIO, facts: Mapping[str, str]) -> None:
        """See Format."""
        noted = {PREFIX + name: value for name, value in facts.items()}
        whole = io.BytesIO()
        how, level = self._compression, 1 if self._compression == "zstd" else None
        table.write_parquet(whole, compression=how, compression_level=level, statistics=True, metadata=noted)
        file.write(whole.getbuffer())

    def footer(self, path: Path) -> Footer:
        """See Format."""
        metadata = pq.read_metadata(path)
        noted = {key.decode(): value.decode() for key, value in (metadata.metadata or {}).items() if _is_ours(key)}
        facts = {name.removeprefix(PREFIX): value for name, value in noted.items()}
        if "next" not in facts:
            raise ValueError(f"{path} was not written by a sink: its footer names no position")
        return Footer(metadata.num_rows, int(facts["next"]), facts)

    def scan(self, paths: list[Path], schema: pl.Schema) -> pl.LazyFrame:
        """See Format."""
        return pl.scan_parquet(
            paths,
            schema=schema,
            missing_columns="insert",
            extra_columns="ignore",
            cast_options=pl.ScanCastOptions(missing_struct_fields="insert", extra_struct_fields="ignore"),
            hive_partitioning=False,
        )


class Csv:
    """A header, ISO 8601 times with microseconds, `_offset` as the last column: so the last row tells the position.

    Null is nothing, empty text is "". Text is written as it is: who opens such a file in a spreadsheet must import
    its columns as text, for a vehicle of a hostile recording may be called =1+1. Nested columns have no place here.
    """

    suffix = "csv"
    may_be_empty = False

    def write(self, table: pl.DataFrame, file: BinaryIO, facts: Mapping[str, str]) -> None:  # noqa: ARG002
        """See Format."""
        whole = io.BytesIO()
        table.write_csv(whole, datetime_format=_CSV_TIMES)
        file.write(whole.getbuffer())

    def footer(self, path: Path) -> Footer:
        """See Format."""
        last = _last_line(path)
        rows = pl.scan_csv(path, schema_overrides={"_offset": pl.Int64}).select(pl.len()).collect().item()
        return Footer(rows, int(last.rpartition(b",")[2]) + 1, {})

    def scan(self, paths: list[Path], schema: pl.Schema) -> pl.LazyFrame:
        """See Format."""
        text = pl.Schema({name: pl.String if isinstance(kind, pl.Datetime) else kind for name, kind in schema.items()})
        times = [name for name, kind in schema.items() if isinstance(kind, pl.Datetime)]
        frames = [pl.scan_csv(path, schema_overrides=text) for path in paths]
        return pl.concat([pl.LazyFrame(schema=text), *frames], how="diagonal").select(
            pl.col(name).str.to_datetime(_CSV_TIMES, time_unit="us").dt.replace_time_zone("UTC")
            if name in times
            else pl.col(name)
            for name in schema.names()
        )


FORMATS: Final[Mapping[str, Format]] = {"parquet": Parquet(), "csv": Csv()}


def format_of(suffix: str, compression: str | None = None) -> Format:
    """The format of this suffix; its own compression unless one is given, which a CSV has no use for."""
    return Parquet(compression) if compression and suffix == Parquet.suffix else FORMATS[suffix]


def footer(path: Path) -> Footer:
    """The footer of a committed slot, remembered: slots never change. OSError or ValueError when it can't be read."""
    status = path.stat()
    return _remembered(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=200_000)
def _remembered(path: Path, size_bytes: int, modified_ns: int) -> Footer:  # noqa: ARG001 - part of the identity
    return FORMATS[path.suffix[1:]].footer(path)


def _is_ours(key: bytes) -> bool:
    return key.startswith(PREFIX.encode())


def _last_line(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(_TAIL_BYTES, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    if not tail.endswith(b"\n"):
        raise ValueError(f"{path} ends in the middle of a row")
    return tail[:-1].rpartition(b"\n")[2]
