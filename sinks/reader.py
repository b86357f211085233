"""Reading what has landed: committed slots as plain data, tables and quarantine as lazy frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def slots(home: Home, broker: str, table: str, since: Mapping[int, int] | None = None) -> list[Slot]:
    """The table's slots by partition and base. Each footer is read once a process.

    `since`: partition → position; slots that begin before it are left out, and their footers unread.
    """
    return _slots(home.warehouse(broker), table, since)


def bases(home: Home, broker: str, table: str) -> dict[int, list[int]]:
    """Partition → the positions at which its slots begin, rising. Names only: no file is opened."""
    found: dict[int, list[int]] = {}
    for path in _paths(home.warehouse(broker), table):
        found.setdefault(_partition_of(path), []).append(base_of(path))
    return found


def scan(home: Home, broker: str, table: str) -> pl.LazyFrame:
    """The whole table, rows in no promised order; an empty frame of its schema when nothing has landed."""
    return _scan(table, _paths(home.warehouse(broker), table))


def scan_slots(chosen: Sequence[Slot]) -> pl.LazyFrame:
    """The rows of some slots of one table, at least one; columns that older slots lack are null."""
    return _scan(chosen[0].table, [slot.path for slot in chosen])


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


def _scan(table: str, paths: list[Path]) -> pl.LazyFrame:
    role = role_of(table)
    schema = table_schema(role)
    return FORMATS[str(role.format)].scan(paths, schema) if paths else pl.LazyFrame(schema=schema)


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
    except (OSError, ValueError, pl.exceptions.PolarsError):
        rows, end = 0, base
    return Slot(
        path=path,
        table=table,
        partition=_partition_of(path),
        base=base,
        next=end,
        rows=rows,
        size_bytes=status.st_size,
        committed_at=datetime.fromtimestamp(status.st_mtime, UTC),
    )
