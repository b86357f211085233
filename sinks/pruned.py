"""What was pruned of a table: the identities of its rows, so that verify says "pruned" of them and never "lost".

Where a chain begins is in the partition's folder (see folders) and changes in one step with the slots that go. The
identities are too many for a file's name, so they are written before that step, each with the position up to which it
holds. Invariant: an identity counts as pruned if and only if the folder's chain begins at or behind that position. What
holds for good is folded into one set for the table, which stays small: over all partitions sequences have no holes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import polars as pl

from sinks.reader import begins
from streaming.durability import replacing
from streaming.errors import ChainBroken
from streaming.home import Home
from streaming.identities import Life
from streaming.intervals import IntervalSet

_NOTE: Final = pl.Schema(
    {
        "producer": pl.String,
        "epoch": pl.Int64,
        "start": pl.Int64,
        "end": pl.Int64,
        "partition": pl.Int32,  # null: it holds for good
        "upto": pl.Int64,
    }
)


def pruned_identities(home: Home, broker: str, table: str) -> dict[Life, IntervalSet]:
    """The identities of the rows that were pruned. ChainBroken when the note of them can't be read."""
    return _lives(_holding(home, broker, table, _read(_note(home, broker, table))))


def intend(home: Home, broker: str, table: str, partition: int, upto: int, lives: Mapping[Life, IntervalSet]) -> None:
    """Note, durably, what will have been pruned once the partition's chain begins at `upto`. Under keeping()."""
    path = _note(home, broker, table)
    known = _rows_of(_lives(_holding(home, broker, table, _read(path))))
    _write(path, pl.concat([known, _rows_of(lives, partition, upto)]))


def settle(home: Home, broker: str, table: str) -> None:
    """Fold what holds for good into one set, and drop what never came to be. Under keeping()."""
    path = _note(home, broker, table)
    if path.exists():
        _write(path, _rows_of(_lives(_holding(home, broker, table, _read(path)))))


def _note(home: Home, broker: str, table: str) -> Path:
    return home.high_water(broker) / table / "pruned.parquet"


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path).select(_NOTE.names())
    except FileNotFoundError:
        return pl.DataFrame(schema=_NOTE)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ChainBroken(f"{path} can't be read ({error}): without it what was pruned counts as lost") from error


def _holding(home: Home, broker: str, table: str, note: pl.DataFrame) -> pl.DataFrame:
    """The part of a note that has come true."""
    begun = {partition: begin.next for partition, begin in begins(home, broker, table).items()}
    reached = pl.col("partition").replace_strict(begun, default=0, return_dtype=pl.Int64) if begun else pl.lit(0)
    return note.filter(pl.col("partition").is_null() | (reached >= pl.col("upto")))


def _lives(rows: pl.DataFrame) -> dict[Life, IntervalSet]:
    return {
        (str(producer), int(str(epoch))): IntervalSet.of_ranges(own.select("start", "end").iter_rows())
        for (producer, epoch), own in rows.group_by("producer", "epoch")
    }


def _rows_of(lives: Mapping[Life, IntervalSet], partition: int | None = None, upto: int | None = None) -> pl.DataFrame:
    def frames() -> Iterable[pl.DataFrame]:
        for (producer, epoch), numbers in lives.items():
            same = {"producer": producer, "epoch": epoch, "partition": partition, "upto": upto}
            ranges = pl.DataFrame({"start": numbers.starts, "end": numbers.ends})
            constants = [pl.lit(value).cast(_NOTE[name]).alias(name) for name, value in same.items()]
            yield ranges.with_columns(constants).select(_NOTE.names())

    return pl.concat([pl.DataFrame(schema=_NOTE), *frames()])


def _write(path: Path, note: pl.DataFrame) -> None:
    with replacing(path, lasts=True) as scratch, scratch.open("wb") as file:
        note.write_parquet(file, compression="zstd")
