"""The sink for queues, which have no offsets: rows are numbered as they arrive, and known by their identity.

A slot's base is the number of rows in the table before it; the next one's is base + rows. A slot is committed by
link(2), so of two owners one wins. Invariant: a message is acknowledged after its row is durable, and a row whose
(producer, epoch, sequence) is in any committed slot, or in the open buffer, is never written again. What cannot be
decoded has no identity: it is quarantined by the hash of its bytes.

Every start reads the identity columns of all slots; in memory stay ranges, a few for each life of a producer.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from streaming.batch import Batch
from streaming.errors import ChainBroken, SlotTaken
from streaming.events import MARK, ORIGIN
from streaming.home import Home
from streaming.identities import Identities, new_rows
from streaming.interfaces import Codec, Offsets
from streaming.topology import Role

PARTITION: Final = 0
MAX_DELIVERIES: Final = 30_000  # in a buffer; the source's prefetch must be larger, or the buffer never fills
MAX_AGE_S: Final = 5.0
_REJECTED: Final = pl.Schema({"_hash": pl.String, "reason": pl.String, "payload": pl.Binary})
Checkpoint = Callable[[str], None]


@dataclass(slots=True)
class Chain:
    """Committed slots of one folder, each file named by the number of rows before it."""

    folder: Path
    staging: Path
    high_water: Path
    format: str = "parquet"
    checkpoint: Checkpoint = lambda _: None
    end: int = 0  # rows in all slots that were read

    def read_new(self, columns: list[str]) -> pl.DataFrame:
        """The columns of all slots behind `end`; moves `end`. ChainBroken when a slot is missing or unreadable."""
        frames = []
        for base, path in self._slots():
            if base < self.end:
                continue
            if base > self.end:
                raise ChainBroken(f"{self.folder}: {self.end} rows, then a slot that begins at {base}")
            frames.append(self._read(path, columns))
            self.end += len(frames[-1])
        if self.end < self._highest():
            raise ChainBroken(f"{self.folder}: {self.end} rows, there were {self._highest()}: a file is missing")
        return pl.concat(frames) if frames else pl.DataFrame(schema=dict.fromkeys(columns, pl.Null))

    def append(self, table: pl.DataFrame) -> None:
        """Commit a slot. SlotTaken when another owner has committed one there first; OSError as it comes."""
        numbered = table.with_columns(
            _partition=pl.lit(PARTITION, pl.Int64), _offset=pl.int_range(pl.len(), dtype=pl.Int64) + self.end
        )
        scratch = self.staging / f"{uuid.uuid4().hex}.{self.format}"
        scratch.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._write(numbered, scratch)
            self._publish(scratch)
        finally:
            scratch.unlink(missing_ok=True)
        self.end += len(table)
        self._raise_high_water()

    def _publish(self, scratch: Path) -> None:
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        self.checkpoint("synced")
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            _sync_folder(self.folder.parent)
            _sync_folder(self.folder.parent.parent)
        try:
            os.link(scratch, self.folder / f"{self.end:020d}.{self.format}")
        except FileExistsError:
            raise SlotTaken(f"{self.folder}: another owner has committed slot {self.end}") from None
        self.checkpoint("linked")
        _sync_folder(self.folder)
        self.checkpoint("durable")

    def _slots(self) -> list[tuple[int, Path]]:
        return sorted((int(path.stem), path) for path in self.folder.glob(f"*.{self.format}"))

    def _write(self, table: pl.DataFrame, path: Path) -> None:
        if self.format == "csv":
            table.write_csv(path)
        else:
            table.write_parquet(path, compression="zstd", compression_level=1)

    def _read(self, path: Path, columns: list[str]) -> pl.DataFrame:
        try:
            if self.format == "csv":
                return pl.read_csv(path, columns=columns, schema_overrides={"producer": pl.String})
            return pl.read_parquet(path, columns=columns)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ChainBroken(f"{path} can't be read: {error}") from error

    def _highest(self) -> int:
        return int(self.high_water.read_text()) if self.high_water.exists() else 0

    def _raise_high_water(self) -> None:
        self.high_water.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.high_water.with_suffix(".new")
        scratch.write_text(str(self.end))
        scratch.replace(self.high_water)


@dataclass(slots=True)
class _Buffer:
    """What has come since the last commit."""

    tables: list[pl.DataFrame] = field(default_factory=list)
    identities: Identities = field(default_factory=Identities)
    rejected: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # hash → reason, payload
    deliveries: int = 0
    next_offset: int | None = None
    began_at: float = 0.0


class ArrivalSink:
    """Implements interfaces.Sink for a queue. See the module for what it guarantees."""

    def __init__(
        self,
        home: Home,
        broker: str,
        role: Role,
        codec: Codec,
        *,
        derive: Callable[[pl.DataFrame], pl.DataFrame] = lambda table: table,
        checkpoint: Checkpoint = lambda _: None,
        max_deliveries: int = MAX_DELIVERIES,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        table, place = str(role.table), f"p={PARTITION:05d}"
        staging, high = home.staging(broker) / table, home.high_water(broker) / table
        self._codec, self._derive, self._checkpoint = codec, derive, checkpoint
        self._max_deliveries, self._max_age_s = max_deliveries, max_age_s
        self._slots = Chain(
            home.warehouse(broker) / table / place, staging, high / place, role.format or "parquet", checkpoint
        )
        self._rejects = Chain(home.quarantine(broker) / table / place, staging, high / f"quarantine-{place}")
        self._committed = Identities()
        self._quarantined: set[str] = set()
        self._buffer = _Buffer()
        self.repeats = 0  # rows that came again and were dropped

    def resume(self, partition: int) -> None:  # noqa: ARG002 - the broker knows what is unacknowledged
        """Learn what is committed; a queue is always read from its head."""
        self._catch_up()

    def release(self, partitions: Iterable[int], *, lost: bool) -> None:  # noqa: ARG002
        """The connection went: everything unacknowledged comes again. Commit what is buffered, or drop it if `lost`."""
        if not lost:
            self.commit()
        self._buffer = _Buffer()

    def write(self, batch: Batch) -> None:
        """Buffer what is new."""
        decoded = self._codec.decode(batch.values)
        for rejection in decoded.rejections:
            payload = bytes(batch.values[rejection.index])
            key = hashlib.sha256(payload).hexdigest()
            if key not in self._quarantined:
                self._buffer.rejected[key] = (rejection.reason, payload)
        events = decoded.table.filter(pl.col("sequence") != MARK)
        fresh = new_rows(events, self._committed, self._buffer.identities)
        self.repeats += len(events) - len(fresh)
        if not self._buffer.deliveries:
            self._buffer.began_at = time.monotonic()
        self._buffer.deliveries += len(batch)
        self._buffer.next_offset = batch.next_offset
        if len(fresh):
            self._buffer.tables.append(fresh)
            self._buffer.identities.add(fresh)

    @property
    def is_due(self) -> bool:
        """Whether the buffer is full or old."""
        buffer = self._buffer
        if not buffer.deliveries:
            return False
        return buffer.deliveries >= self._max_deliveries or time.monotonic() - buffer.began_at >= self._max_age_s

    def commit(self) -> Offsets:
        """Rejects, then rows, durable and visible; deliveries before the returned offset may be acknowledged then."""
        buffer = self._buffer
        if buffer.next_offset is None:
            return {}
        self._commit_rejected(buffer)
        self._commit_rows(pl.concat(buffer.tables) if buffer.tables else None)
        self._buffer = _Buffer()
        self._checkpoint("committed")
        return {PARTITION: buffer.next_offset}

    def displaced(self) -> Offsets:
        """Never any: a slot taken by another owner is handled inside commit()."""
        return {}

    def close(self) -> None:
        """Drop what is buffered."""
        self._buffer = _Buffer()

    def _commit_rows(self, table: pl.DataFrame | None) -> None:
        while table is not None and len(table):
            try:
                self._slots.append(self._derive(table))
            except SlotTaken:  # another owner was faster: what it has written is not ours to write again
                self._catch_up()
                table = new_rows(table, self._committed)
            else:
                self._committed.add(table)
                return

    def _commit_rejected(self, buffer: _Buffer) -> None:
        while fresh := {key: why for key, why in buffer.rejected.items() if key not in self._quarantined}:
            rows = [(key, reason, payload) for key, (reason, payload) in fresh.items()]
            try:
                self._rejects.append(pl.DataFrame(rows, schema=_REJECTED, orient="row"))
            except SlotTaken:
                self._catch_up()
            else:
                self._quarantined |= fresh.keys()

    def _catch_up(self) -> None:
        """Take in what is committed and not known yet, by us or by others."""
        self._committed.add(self._slots.read_new([*ORIGIN]))
        self._quarantined |= set(self._rejects.read_new(["_hash"])["_hash"])


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
