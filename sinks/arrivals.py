"""The sink for queues, which have no offsets: rows are numbered as they arrive, and known by their identity.

A slot's base is the number of rows in the table before it; `_offset` is the row's number, `_partition` is 0. Of two
owners one wins each slot, as everywhere (see slots). Invariant: a message is acknowledged after its row is durable, and
a row whose (producer, epoch, sequence) is in a committed slot, or in the open buffer, is never written again. What
cannot be decoded has no identity: it goes to quarantine first, known there by its bytes, equal ones once.

Every start reads the identity columns of all slots; in memory stay ranges, a few for each life of a producer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from sinks.derive import derive, table_schema
from sinks.files import QUARANTINE, Rotation
from sinks.folders import begin_of, named, steadily
from sinks.formats import FORMATS
from sinks.pruned import pruned_identities
from sinks.slots import Checkpoint, Place, SlotChain, committed, remove_stale
from streaming.batch import Batch
from streaming.errors import ChainBroken, SlotTaken
from streaming.events import MARK, ORIGIN
from streaming.home import Home
from streaming.identities import Identities, new_rows
from streaming.interfaces import Codec, Identity, Offsets
from streaming.intervals import IntervalSet
from streaming.topology import Role

PARTITION: Final = 0
# Rows are deliveries here. A source's prefetch must be larger, or the buffer never fills before it is old.
ROTATION: Final = Rotation(rows=30_000)


@dataclass(slots=True)
class _Numbered:
    """A chain whose positions are row numbers, and how far its rows have been read back."""

    place: Place
    suffix: str
    chain: SlotChain
    read: int = 0

    def append(self, table: pl.DataFrame) -> None:
        """Commit the rows as the next slot. SlotTaken when another owner was first."""
        self.chain.append(table, self.chain.next + len(table))
        self.read = self.chain.next

    def numbers(self, count: int) -> pl.Series:
        """The next rows' numbers."""
        return pl.int_range(self.chain.next, self.chain.next + count, eager=True, dtype=pl.Int64)

    def unread(self, schema: pl.Schema, columns: list[str]) -> pl.DataFrame:
        """The columns of the rows that were committed since the last call, by whomever."""
        self.chain.reload()
        self.read = max(self.read, begin_of(self.place.folder).next)
        try:
            found = steadily(lambda: self._behind(schema).select(columns).collect())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ChainBroken(f"{self.place.folder} can't be read: {error}") from error
        self.read += len(found)
        if self.read != self.chain.next:  # the folder grew between the two looks, or a file holds other than it says
            raise ChainBroken(f"{self.place.folder}: {self.read} rows up to position {self.chain.next}")
        return found

    def _behind(self, schema: pl.Schema) -> pl.LazyFrame:
        """The rows behind what was read; of a slot that was merged since, the part that lies there."""
        there = [(path, named(path)) for path in committed(self.place.folder, self.suffix)]
        paths = [path for path, name in there if name.base >= self.read or name.covers(self.read)]
        if not paths:
            return pl.LazyFrame(schema=schema)
        return FORMATS[self.suffix].scan(paths, schema).filter(pl.col("_offset") >= self.read)


@dataclass(slots=True)
class _Buffer:
    """What has come since the last commit."""

    tables: list[pl.DataFrame] = field(default_factory=list)
    identities: Identities = field(default_factory=Identities)
    rejected: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)  # hash → reason, payload
    deliveries: int = 0
    size_bytes: int = 0
    next_offset: int | None = None
    since_s: float = 0.0


class ArrivalSink:
    """Implements interfaces.Sink for one role that reads a queue. One thread at a time."""

    def __init__(  # noqa: PLR0913 - what is behind the star is options
        self,
        home: Home,
        broker: str,
        role: Role,
        codec: Codec,
        identity: Identity,
        *,
        rotation: Rotation = ROTATION,
        compression: str | None = None,
        writer: str,
        checkpoint: Checkpoint = lambda _: None,
    ) -> None:
        if role.table is None or role.format is None:
            raise ValueError(f"{role.name} is no sink")
        self._stream, self._schema = role.reads[0], table_schema(role)
        self._codec, self._rotation = codec, rotation
        self._named = home, broker, role.table
        staging = home.staging(broker) / role.table
        self.quarantined = 0
        remove_stale(staging)

        def numbered(kind: str, suffix: str) -> _Numbered:
            tree = home.quarantine(broker) if kind == "quarantine" else home.warehouse(broker)
            lane = f"p={PARTITION:05d}"
            high_water = home.high_water(broker) / str(role.table) / f"{lane}.{kind}.json"
            folder = tree / str(role.table) / lane
            place = Place(folder, staging, high_water, self._stream, PARTITION, identity, writer)
            return _Numbered(place, suffix, SlotChain(place, suffix, checkpoint, compression=compression))

        self._table = numbered("table", role.format)
        self._quarantine = numbered("quarantine", "parquet")
        self._committed = Identities()
        self._quarantined: set[bytes] = set()
        self._buffer = _Buffer()
        self.repeats = 0  # events that came again and were dropped

    def resume(self, partition: int) -> int | None:  # noqa: ARG002 - there is one
        """Learn what is committed, or was and is pruned. None always: a queue is read from its head."""
        for life, numbers in pruned_identities(*self._named).items():
            self._committed.lives[life] = self._committed.lives.get(life, IntervalSet()) | numbers
        self._catch_up()
        return None

    def release(self, partitions: Iterable[int], *, lost: bool) -> None:  # noqa: ARG002
        """The connection goes, and all that is unacknowledged comes again. Commit what is buffered, or drop it."""
        if not lost:
            self.commit()
        self._buffer = _Buffer()

    def write(self, batch: Batch) -> None:
        """Buffer what is new; repeats are dropped, but acknowledged with the rest."""
        decoded = self._codec.decode(batch.values)
        buffer = self._buffer
        for rejection in decoded.rejections:
            payload = bytes(batch.values[rejection.index])
            buffer.rejected.setdefault(_hash(payload), (rejection.reason, payload))
        events = decoded.table.filter(pl.col("sequence") != MARK)
        fresh = new_rows(events, self._committed, buffer.identities)
        self.repeats += len(events) - len(fresh)
        if buffer.next_offset is None:
            buffer.since_s = time.monotonic()
        buffer.next_offset = batch.next_offset
        buffer.deliveries += len(batch)
        if len(fresh):
            buffer.size_bytes += int(fresh.estimated_size())
            buffer.tables.append(fresh)
            buffer.identities.add(fresh)

    @property
    def is_due(self) -> bool:
        """Whether deliveries, bytes or age of the buffer ask for a commit."""
        buffer = self._buffer
        return buffer.next_offset is not None and (
            buffer.deliveries >= self._rotation.rows
            or buffer.size_bytes >= self._rotation.size_bytes
            or time.monotonic() - buffer.since_s >= self._rotation.seconds
        )

    def commit(self) -> Offsets:
        """Rejects, then rows, durable and visible; deliveries before the returned offset may be acknowledged then.

        OSError: what is not committed yet stays buffered.
        """
        buffer = self._buffer
        if buffer.next_offset is None:
            return {}
        self._commit_rejected(buffer)
        self._commit_rows(buffer)
        self._buffer = _Buffer()
        return {PARTITION: buffer.next_offset}

    def displaced(self) -> Offsets:
        """Never any: when another owner was faster, commit() writes what that one has not."""
        return {}

    def close(self) -> None:
        """Drop what is not committed; it will come again."""
        self._buffer = _Buffer()

    def _commit_rows(self, buffer: _Buffer) -> None:
        if not buffer.tables:
            return
        rows = pl.concat(buffer.tables, rechunk=True)
        # Whatever was learnt since they were buffered, in the quarantine's commit too, counts before each attempt.
        while len(rows := new_rows(rows, self._committed)):
            numbered = derive(self._stream, rows).with_columns(
                pl.lit(PARTITION, pl.Int32).alias("_partition"), self._table.numbers(len(rows)).alias("_offset")
            )
            try:
                self._table.append(numbered.select(self._schema.names()))
            except SlotTaken:
                self._catch_up()
            else:
                self._committed.add(rows)
                return

    def _commit_rejected(self, buffer: _Buffer) -> None:
        while fresh := {key: why for key, why in buffer.rejected.items() if key not in self._quarantined}:
            numbers = self._quarantine.numbers(len(fresh))
            rows = [
                (self._stream, PARTITION, number, *why) for number, why in zip(numbers, fresh.values(), strict=True)
            ]
            try:
                self._quarantine.append(pl.DataFrame(rows, schema=QUARANTINE, orient="row"))
            except SlotTaken:
                self._catch_up()
            else:
                self._quarantined |= fresh.keys()
                self.quarantined += len(fresh)

    def _catch_up(self) -> None:
        """Take in what is committed and not known yet, by us or by others."""
        self._committed.add(self._table.unread(self._schema, list(ORIGIN)))
        self._quarantined |= {_hash(payload) for payload in self._quarantine.unread(QUARANTINE, ["payload"])["payload"]}


def _hash(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()
