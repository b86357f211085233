"""Reading what has landed: committed slots as plain data, tables and quarantine as lazy frames.

Invariant: a frame finds its files when it is collected, not when it is made, and looks again when one went away: what
it was to read may have been merged since. So a frame or a list of slots may be kept for as long as one likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source

from sinks.derive import table_schema
from sinks.files import QUARANTINE
from sinks.folders import Begin, SlotName, begin_of, named, steadily
from sinks.formats import FORMATS, footer
from sinks.slots import base_of, committed
from streaming.errors import UsageError
from streaming.home import Home
from streaming.topology import ROLES, Role


@dataclass(frozen=True, slots=True)
class Slot:
    """A committed file: the records [base, next) of one partition. One that can't be read has no rows and no length."""

    path: Path
    table: str
    partition: int
    base: int
    next: int
    rows: int
    size_bytes: int
    committed_at: datetime  # of a merged one: the last of its commits
    claimed_rows: int = 0  # how many rows it was written with, as it says itself
    commits: int = 1  # how many were merged into it


def tables(home: Home, broker: str) -> list[str]:
    """The tables of which something has landed."""
    folder = home.warehouse(broker)
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def slots(home: Home, broker: str, table: str, since: Mapping[int, int] | None = None) -> list[Slot]:
    """The table's slots by partition and base. Each footer is read once a process.

    `since`: partition → position; slots that begin before it are left out, and their footers unread.
    """
    return steadily(lambda: _slots(home.warehouse(broker), table, since))


def bases(home: Home, broker: str, table: str) -> dict[int, list[int]]:
    """Partition → the positions at which its slots begin, rising. Names only: no file is opened."""
    return {partition: [name.base for _, name in found] for partition, found in names(home, broker, table).items()}


def names(home: Home, broker: str, table: str) -> dict[int, list[tuple[Path, SlotName]]]:
    """Partition → its files and what their names say, by base. No file is opened."""
    found: dict[int, list[tuple[Path, SlotName]]] = {}
    for path in _paths(home.warehouse(broker), table):
        found.setdefault(_partition_of(path), []).append((path, named(path)))
    return found


def slots_of(table: str, paths: Sequence[Path]) -> list[Slot]:
    """The slots in some of the table's files. FileNotFoundError when one went away since it was listed."""
    return [_slot(table, path) for path in paths]


def begins(home: Home, broker: str, table: str) -> dict[int, Begin]:
    """Partition → where its chain begins, of those that were pruned."""
    folders = (home.warehouse(broker) / table).glob("p=*")
    found = {_partition_of(folder / "_"): begin_of(folder) for folder in folders}
    return {partition: begin for partition, begin in found.items() if begin.next}


def scan(home: Home, broker: str, table: str) -> pl.LazyFrame:
    """The whole table, rows in no promised order; an empty frame of its schema when nothing has landed."""
    schema, tree = table_schema(role_of(table)), home.warehouse(broker)
    return _found_late(schema, lambda: _scan(table, _paths(tree, table)))


def scan_slots(chosen: Sequence[Slot]) -> pl.LazyFrame:
    """The rows of some slots of one table, at least one; columns that older slots lack are null.

    Of a slot that was merged since, the rows are read from where they are now.
    """
    table = chosen[0].table
    return _found_late(table_schema(role_of(table)), lambda: _scan_chosen(table, chosen))


def quarantine_slots(home: Home, broker: str, table: str) -> list[Slot]:
    """The slots of the table's quarantine."""
    return steadily(lambda: _slots(home.quarantine(broker), table))


def quarantine_scan(home: Home, broker: str, table: str) -> pl.LazyFrame:
    """The table's undecodable records: topic, partition, _offset, reason, payload."""
    tree, empty = home.quarantine(broker), pl.LazyFrame(schema=QUARANTINE)

    def found() -> pl.LazyFrame:
        paths = _paths(tree, table)
        return FORMATS["parquet"].scan(paths, QUARANTINE) if paths else empty

    return _found_late(QUARANTINE, found)


def role_of(table: str) -> Role:
    """The sink that writes a table."""
    for role in ROLES.values():
        if role.table == table:
            return role
    known = ", ".join(role.table for role in ROLES.values() if role.table)
    raise UsageError(f"there is no table {table!r}; there are {known}")


def _scan(table: str, paths: list[Path]) -> pl.LazyFrame:
    role = role_of(table)
    schema = table_schema(role)
    return FORMATS[str(role.format)].scan(paths, schema) if paths else pl.LazyFrame(schema=schema)


def _found_late(schema: pl.Schema, find: Callable[[], pl.LazyFrame]) -> pl.LazyFrame:
    """A frame that calls `find` when it is collected, with what it needs of it, and again when a file went away."""

    def source(
        columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        def read() -> pl.DataFrame:
            frame = find() if predicate is None else find().filter(predicate)
            frame = frame if columns is None else frame.select(columns)
            rows: pl.DataFrame = (frame if n_rows is None else frame.head(n_rows)).collect()
            return rows

        yield steadily(read)

    return register_io_source(source, schema=schema)


def _scan_chosen(table: str, chosen: Sequence[Slot]) -> pl.LazyFrame:
    if all(slot.path.exists() for slot in chosen):
        return _scan(table, [slot.path for slot in chosen])
    return pl.concat([_scan(table, [_now_in(slot)]).filter(_of(slot)) for slot in chosen])


def _of(slot: Slot) -> pl.Expr:
    return pl.col("_offset").is_between(slot.base, slot.next - 1)


def _now_in(slot: Slot) -> Path:
    """The file that holds a slot's rows now: its own, or the one it was merged into."""
    if slot.path.exists():
        return slot.path
    for path in committed(slot.path.parent, slot.path.suffix[1:]):
        name = named(path)
        if name.base <= slot.base and slot.next <= (name.next or 0):
            return path
    return slot.path


def _paths(tree: Path, table: str) -> list[Path]:
    return sorted((tree / table).glob("p=*/[0-9]*.*"))


def _partition_of(path: Path) -> int:
    return int(path.parent.name.removeprefix("p="))


def _slots(tree: Path, table: str, since: Mapping[int, int] | None = None) -> list[Slot]:
    since = since or {}
    return [_slot(table, path) for path in _paths(tree, table) if base_of(path) >= since.get(_partition_of(path), 0)]


def _slot(table: str, path: Path) -> Slot:
    status = path.stat()
    base = base_of(path)
    try:
        found = footer(path)
        rows, end = found.rows, found.next
        claimed = int(found.facts.get("count", rows))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pl.exceptions.PolarsError):
        rows, end, claimed = 0, base, 0
    return Slot(
        path=path,
        table=table,
        partition=_partition_of(path),
        base=base,
        next=end,
        rows=rows,
        size_bytes=status.st_size,
        committed_at=datetime.fromtimestamp(status.st_mtime, UTC),
        claimed_rows=claimed,
        commits=named(path).commits,
    )
