"""A person's own recording as positions: CSV (also compressed, also a .txt that is CSV), Parquet or GPX.

What a file is, is seen from its content, not from its name. Columns are found by their names or by a mapping. A row
that can't be read is written aside with its line and the reason, and the others go on.

Times are ISO 8601, with or without a zone (without: UTC), or seconds, milli-, micro- or nanoseconds since 1970, told
apart by their size. A speed or heading below zero means unknown, as phones write it. One line is one row: a quoted
field cannot go over several lines. In memory: the positions, about 90 bytes a row; of the text only a block of lines.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Final, cast

import gpxpy
import polars as pl

from streaming.errors import UsageError
from streaming.events import ORIGIN, POSITIONS, polars_schema
from streaming.generators.columns import Columns, is_header

LINES_AT_ONCE: Final = 50_000
_DELIMITERS: Final = ",;\t|"
FRAME: Final = pl.Schema({name: kind for name, kind in polars_schema(POSITIONS).items() if name not in ORIGIN})


@dataclass(frozen=True, slots=True)
class Recording:
    """Positions sorted by time, and how many rows could not be read; those are in the file `aside`."""

    path: Path
    frame: pl.DataFrame  # the columns of positions without producer, epoch and sequence
    rejected: int
    aside: Path | None

    @property
    def vehicles(self) -> list[str]:
        """Who is in it."""
        return self.frame["vehicle"].unique().sort().to_list()


def read(path: Path, mapping: Mapping[str, str] | None = None, *, aside: Path | None = None) -> Recording:
    """Read a recording. `mapping`: our column → the file's (event_time → "date+time" joins two of them).

    Rows that can't be read go to <name>.rejected.csv in the folder `aside` (None: they are only counted). UsageError
    when the file can't be read, a column is missing, or no row is left.
    """
    rejects = _Rejects(aside / f"{path.name}.rejected.csv" if aside else None)
    try:
        blocks = [rejects.keep(block) for block in _blocks(path, dict(mapping or {}))]
    except (OSError, EOFError, zlib.error, csv.Error, gpxpy.gpx.GPXException, pl.exceptions.PolarsError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    finally:
        rejects.close()
    frame = pl.concat(blocks) if blocks else pl.DataFrame(schema=FRAME)
    if frame.is_empty():
        first = f"; the first row: {rejects.first}" if rejects.count else ""
        raise UsageError(f"{path} has no row that can be read ({rejects.count} were refused{first})")
    return Recording(path, frame.sort("event_time", maintain_order=True), rejects.count, rejects.written)


class _Rejects:
    """The rows that were refused, in a CSV of line, reason and text."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.count, self.first = path, 0, ""
        self._file: IO[str] | None = None

    @property
    def written(self) -> Path | None:
        return self.path if self.count else None

    def keep(self, block: pl.DataFrame) -> pl.DataFrame:
        """Put rows with a reason aside, give back the others as positions."""
        bad = block.filter(pl.col("reason").is_not_null()).select("line", "reason", "text")
        if bad.height:
            self.first = self.first or f"line {bad['line'][0]}: {bad['reason'][0]}"
            self.count += bad.height
            self._write(bad)
        return block.filter(pl.col("reason").is_null()).select(FRAME.names())

    def _write(self, bad: pl.DataFrame) -> None:
        if self.path is None:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8", newline="")
            self._file.write("line,reason,text\n")
        self._file.write(bad.write_csv(include_header=False, quote_style="non_numeric"))

    def close(self) -> None:
        if self._file:
            self._file.close()


def _blocks(path: Path, mapping: dict[str, str]) -> Iterator[pl.DataFrame]:
    """Blocks of rows as Columns.convert() gives them."""
    with _opened(path) as file:
        start = file.peek(4096)[:4096]
        if not start.strip():
            raise UsageError(f"{path} is empty")
        if start.startswith(b"PAR1"):
            yield from _parquet(path, mapping)
        elif start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
            yield from _gpx(path, file, mapping)
        else:
            yield from _csv(path, file, start, mapping)


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader[Any]]:
    """The file's bytes, unpacked if they are gzip's."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    with path.open("rb") as packed:
        if packed.peek(2)[:2] != b"\x1f\x8b":
            yield packed
            return
        with io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=packed))) as file:
            yield file


def _parquet(path: Path, mapping: dict[str, str]) -> Iterator[pl.DataFrame]:
    if path.suffix == ".gz":
        raise UsageError(f"{path}: Parquet is compressed by itself; unpack it first")
    rows = pl.scan_parquet(path)
    columns = Columns.found(path, rows.collect_schema().names(), mapping)
    frame = rows.select(columns.theirs).collect()
    text = pl.concat_str([pl.col(name).cast(pl.String).fill_null("") for name in columns.theirs], separator=",")
    for start in range(0, frame.height, LINES_AT_ONCE):
        block = frame.slice(start, LINES_AT_ONCE)
        yield columns.convert(
            block, pl.int_range(start + 1, start + block.height + 1, eager=True), block.select(text).to_series()
        )


def _gpx(path: Path, file: IO[bytes], mapping: dict[str, str]) -> Iterator[pl.DataFrame]:
    if mapping:
        raise UsageError(f"{path}: a GPX file needs no --map, it says itself what is what")
    tracks = gpxpy.parse(cast("IO[str]", file)).tracks
    points = [point for track in tracks for segment in track.segments for point in segment.points]
    if not points:
        raise UsageError(f"{path} has no track: only tracks have times")
    fields = ("time", "latitude", "longitude", "elevation", "speed", "course", "horizontal_dilution")
    frame = pl.DataFrame(
        {
            name: pl.Series(
                [getattr(point, name) for point in points],
                dtype=pl.Datetime("us", "UTC") if name == "time" else pl.Float64,
            )
            for name in fields
        }
    )
    columns = Columns.found(path, list(fields), {})
    text = pl.Series([str(point) for point in points], dtype=pl.String)
    yield columns.convert(frame, pl.int_range(1, len(points) + 1, eager=True), text)


def _csv(path: Path, file: IO[bytes], start: bytes, mapping: dict[str, str]) -> Iterator[pl.DataFrame]:
    encoding = "utf-16" if start[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    with io.TextIOWrapper(file, encoding=encoding, errors="replace") as text:
        lines = ((n, line.rstrip("\n")) for n, line in enumerate(text, start=1) if line.strip())
        number, head = next(((n, line) for n, line in lines if not line.startswith("#")), (1, ""))
        delimiter = max(_DELIMITERS, key=head.count)
        first = _cells(head, delimiter)
        has_names = is_header(first)
        found = Columns.found if has_names else Columns.numbered
        columns = found(path, first, mapping, has_decimal_comma=delimiter != ",")
        rows = lines if has_names else chain([(number, head)], lines)
        while block := list(islice(rows, LINES_AT_ONCE)):
            yield _csv_block(columns, block, delimiter)


def _csv_block(columns: Columns, lines: Sequence[tuple[int, str]], delimiter: str) -> pl.DataFrame:
    """Convert lines; those that are no row of this table are refused as they are."""
    width = len(columns.names)
    rows = [(n, line, _row(line, delimiter, width)) for n, line in lines]
    good = [(n, line, cells) for n, line, cells in rows if not isinstance(cells, str)]
    frame = pl.DataFrame([cells for _, _, cells in good], schema=dict.fromkeys(columns.names, pl.String), orient="row")
    numbers, texts = [n for n, _, _ in good], [line for _, line, _ in good]
    converted = columns.convert(frame, pl.Series(numbers, dtype=pl.Int64), pl.Series(texts, dtype=pl.String))
    odd = [(n, cells, line) for n, line, cells in rows if isinstance(cells, str)]
    refused = pl.DataFrame(odd, schema={"line": pl.Int64, "reason": pl.String, "text": pl.String}, orient="row")
    return pl.concat([converted, refused], how="diagonal")


def _row(line: str, delimiter: str, width: int) -> list[str] | str:
    """The line's cells, or why it is not a row."""
    try:
        cells = _cells(line, delimiter)
    except csv.Error as error:
        return f"not CSV: {error}"
    return cells if len(cells) == width else f"{len(cells)} fields instead of {width}"


def _cells(line: str, delimiter: str) -> list[str]:
    """One line, by itself: an open quote must not swallow the lines after it."""
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True), [])
