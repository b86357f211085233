"""Reading what has landed: committed slots as plain data, tables and quarantine as lazy frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from sinks.derive import table_schema
from sinks.files import QUARANTINE
from sinks.formats import FORMATS, footer
from sinks.slots import base_of
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
    committed_at: datetime


def tables(home: Home, broker: str) -> list[str]:
    """The tables of which something has landed."""
    folder = home.warehouse(broker)
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def slots(home: Home, broker: str, table: str) -> list[Slot]:
    """The table's slots by partition and base. Each footer is read once a process."""
    return _slots(home.warehouse(broker), table)


def scan(home: Home, broker: str, table: str) -> pl.LazyFrame:
    """The whole table, rows in no promised order; an empty frame of its schema when nothing has landed."""
    found = slots(home, broker, table)
    return scan_slots(found) if found else pl.LazyFrame(schema=table_schema(role_of(table)))


def scan_slots(chosen: Sequence[Slot]) -> pl.LazyFrame:
    """The rows of some slots of one table, at least one; columns that older slots lack are null."""
    paths = [slot.path for slot in chosen]
    return FORMATS[paths[0].suffix[1:]].scan(paths, table_schema(role_of(chosen[0].table)))


def quarantine_slots(home: Home, broker: str, table: str) -> list[Slot]:
    """The slots of the table's quarantine."""
    return _slots(home.quarantine(broker), table)


def quarantine_scan(home: Home, broker: str, table: str) -> pl.LazyFrame:
    """The table's undecodable records: topic, partition, _offset, reason, payload."""
    paths = [slot.path for slot in quarantine_slots(home, broker, table)]
    return FORMATS["parquet"].scan(paths, QUARANTINE) if paths else pl.LazyFrame(schema=QUARANTINE)


def role_of(table: str) -> Role:
    """The sink that writes a table."""
    for role in ROLES.values():
        if role.table == table:
            return role
    known = ", ".join(role.table for role in ROLES.values() if role.table)
    raise UsageError(f"there is no table {table!r}; there are {known}")


def _slots(tree: Path, table: str) -> list[Slot]:
    return [_slot(table, path) for path in sorted((tree / table).glob("p=*/[0-9]*.*"))]


def _slot(table: str, path: Path) -> Slot:
    status = path.stat()
    base = base_of(path)
    try:
        found = footer(path)
        rows, end = found.rows, found.next
    except (OSError, ValueError, pl.exceptions.PolarsError):
        rows, end = 0, base
    return Slot(
        path=path,
        table=table,
        partition=int(path.parent.name.removeprefix("p=")),
        base=base,
        next=end,
        rows=rows,
        size_bytes=status.st_size,
        committed_at=datetime.fromtimestamp(status.st_mtime, UTC),
    )
