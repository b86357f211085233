"""What the committed files prove by themselves: unbroken chains and unique identities.

Invariant: an audit covers every slot that is there. What it has read is kept as exact sums and sets of identities, so
that the next one opens only newer slots and still answers for all; it reads everything anew when asked for a full
audit, and by itself when a slot it has counted is gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from assets.chains import NOTHING, Extent, gaps, look
from sinks.reader import Slot, quarantine_slots, scan_slots
from streaming.durability import replace_file
from streaming.events import MARK, ORIGIN
from streaming.home import Home
from streaming.identities import Identities, new_rows

ROWS_AT_ONCE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Audit:
    """A table's account. `read` is how many slots this audit opened; `is_full` whether that was all of them."""

    extent: Extent
    gaps: list[str]
    duplicates: int
    quarantined: int
    read: int
    is_full: bool


def unaudited_rows(home: Home, broker: str, table: str, extent: Extent) -> int:
    """How many rows of an extent the next audit would have to read."""
    return extent.rows - _recall(_memory(home, broker, table))[0].rows


def audit(home: Home, broker: str, table: str, *, full: bool = False) -> Audit:
    """Audit a table from where the last audit ended, or from its first slot, and remember how far it came."""
    memory = _memory(home, broker, table)
    known, identities, duplicates = (NOTHING, Identities(), 0) if full else _recall(memory)
    growth = look(home, broker, table, known)
    if growth.is_afresh:
        identities, duplicates = Identities(), 0
    for rows in _identities_of(growth.newer):
        duplicates += len(rows) - len(new_rows(rows, identities))
        identities.add(rows)
    _remember(memory, growth.extent, identities, duplicates)
    return Audit(
        extent=growth.extent,
        gaps=gaps(growth.extent),
        duplicates=duplicates,
        quarantined=sum(slot.rows for slot in quarantine_slots(home, broker, table)),
        read=len(growth.newer),
        is_full=growth.is_afresh,
    )


def _identities_of(chosen: Sequence[Slot]) -> Iterator[pl.DataFrame]:
    """The identities in some slots, about a million rows at a time; one that can't be read has none, and is a gap."""
    portion: list[Slot] = []
    rows = 0
    for slot in (slot for slot in chosen if slot.next > slot.base):
        portion.append(slot)
        rows += slot.rows
        if rows >= ROWS_AT_ONCE:
            yield _read(portion)
            portion, rows = [], 0
    if portion:
        yield _read(portion)


def _read(portion: Sequence[Slot]) -> pl.DataFrame:
    return scan_slots(portion).select(ORIGIN).filter(pl.col("sequence") != MARK).collect()


def _memory(home: Home, broker: str, table: str) -> Path:
    return home.tables / broker / "audits" / f"{table}.json"


def _recall(memory: Path) -> tuple[Extent, Identities, int]:
    """What the last audit knew; nothing when there was none, or its note can't be read."""
    try:
        note = json.loads(memory.read_text())
        return Extent.load(note["extent"]), Identities.load(note["identities"]), int(note["duplicates"])
    except (OSError, ValueError, KeyError, TypeError):
        return NOTHING, Identities(), 0


def _remember(memory: Path, extent: Extent, identities: Identities, duplicates: int) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    note = {"extent": extent.dump(), "identities": identities.dump(), "duplicates": duplicates}
    replace_file(memory, json.dumps(note))
