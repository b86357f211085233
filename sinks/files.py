"""A sink into files: decode, derive, gather in memory, commit by slots; undecodable records go to quarantine first.

Invariant: what is committed decides where reading resumes. A record is in exactly one committed slot of its table, or
in one of its quarantine, and a commit that fails anywhere leaves the buffer as it was.

Quarantine is committed first and may be ahead of the table after a crash. Records in between are read again: the good
ones land, the undecodable ones are in quarantine already. A CSV can't hold a position without a row, so a stretch of
marks or undecodable records at its end is read again at every start, until a row follows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import polars as pl

from sinks.derive import derive, table_schema
from sinks.folders import steadily
from sinks.formats import FORMATS
from sinks.slots import Checkpoint, Place, SlotChain, committed, remove_stale
from streaming.batch import Batch, Decoded
from streaming.errors import ChainBroken, SlotTaken
from streaming.events import MARK
from streaming.home import Home
from streaming.interfaces import Codec, Identity, Offsets
from streaming.topology import Role

QUARANTINE: Final = pl.Schema(
    {
        "topic": pl.String,
        "partition": pl.Int32,
        "_offset": pl.Int64,
        "reason": pl.String,
        "payload": pl.Binary,
    }
)


@dataclass(frozen=True, slots=True)
class Rotation:
    """When what is buffered becomes a slot: whichever comes first. `bytes` is memory, all partitions together."""

    rows: int = 500_000
    size_bytes: int = 64 * 1024**2
    seconds: float = 10.0


@dataclass(slots=True)
class _Lane:
    """One partition: its two chains, and what is read and not committed."""

    chain: SlotChain
    quarantine: SlotChain
    set_aside: frozenset[int]  # offsets in quarantine that lie behind the table's end
    next: int  # the position behind what is buffered
    frames: list[pl.DataFrame] = field(default_factory=list)
    rejected: list[pl.DataFrame] = field(default_factory=list)
    began: int = 0  # the first offset that was read
    records: int = 0  # buffered, of any kind
    size_bytes: int = 0

    def drop(self) -> None:
        self.frames, self.rejected, self.records, self.size_bytes = [], [], 0, 0
        self.next = self.chain.next

    def check_again(self, batch: Batch, decoded: Decoded) -> None:
        """Of what was read before, the same records must be undecodable now, or some would be lost or doubled."""
        if batch.offsets[0] >= self.quarantine.next:
            return
        bad = batch.offsets[[each.index for each in decoded.rejections]] if decoded.rejections else np.empty(0)
        again = set(bad[bad < self.quarantine.next].tolist())
        differing = (again - self.set_aside) | (self.set_aside & set(batch.offsets[decoded.rows].tolist()))
        if differing:
            raise ChainBroken(
                f"{batch.stream}[{batch.partition}]: the quarantine ends at {self.quarantine.next}, and by it offset "
                f"{min(differing)} was {'undecodable' if min(differing) in self.set_aside else 'good'}, which it is "
                f"not now. Start the sink with the codec it had, until its table has passed that position."
            )


class FileSink:
    """Implements interfaces.Sink for one role: its stream into Parquet or CSV files. One thread at a time."""

    def __init__(  # noqa: PLR0913 - what is behind the star is options
        self,
        home: Home,
        broker: str,
        role: Role,
        codec: Codec,
        identity: Identity,
        *,
        rotation: Rotation = Rotation(),
        compression: str | None = None,
        writer: str,
        checkpoint: Checkpoint = lambda _: None,
    ) -> None:
        if role.table is None or role.format is None:
            raise ValueError(f"{role.name} is no sink")
        self._home, self._broker, self._role, self._table = home, broker, role, role.table
        self._codec, self._identity, self._rotation, self._writer = codec, identity, rotation, writer
        self._format, self._compression = role.format, compression
        self._checkpoint = checkpoint
        self._columns = table_schema(role).names()
        self._lanes: dict[int, _Lane] = {}
        self._displaced: dict[int, int] = {}
        self.quarantined = 0
        self._since_s: float | None = None
        remove_stale(home.staging(broker) / role.table)

    def resume(self, partition: int) -> int | None:
        """Where to start reading: the end of the committed chain."""
        chain = SlotChain(self._place(partition), self._format, self._checkpoint, compression=self._compression)
        place = self._place(partition, quarantine=True)
        quarantine = SlotChain(place, "parquet", self._checkpoint)
        set_aside = _offsets_from(chain.next, place) if quarantine.next > chain.next else frozenset[int]()
        self._lanes[partition] = _Lane(chain, quarantine, set_aside, chain.next)
        return None if chain.is_empty else chain.next

    def write(self, batch: Batch) -> None:
        """Buffer a batch; what lies before the partition's position is dropped."""
        lane = self._lanes[batch.partition]
        batch = _behind(batch, lane.next)
        if not len(batch):
            return
        decoded = self._codec.decode(batch.values)
        lane.check_again(batch, decoded)
        rows = decoded.table.with_columns(
            pl.lit(batch.partition, pl.Int32).alias("_partition"), pl.Series("_offset", batch.offsets[decoded.rows])
        ).filter(pl.col("sequence") != MARK)
        rejected = _rejected(batch, decoded, lane.quarantine.next)
        for found, frames in (
            (derive(batch.stream, rows).select(self._columns), lane.frames),
            (rejected, lane.rejected),
        ):
            if len(found):
                frames.append(found)
                lane.size_bytes += int(found.estimated_size())
        lane.began = lane.began or int(batch.offsets[0])
        lane.next = batch.next_offset
        lane.records += len(batch)
        self._since_s = time.monotonic() if self._since_s is None else self._since_s

    @property
    def is_due(self) -> bool:
        """Whether rows, bytes or age of the buffer ask for a commit."""
        if self._since_s is None:
            return False
        return (
            sum(lane.records for lane in self._lanes.values()) >= self._rotation.rows
            or sum(lane.size_bytes for lane in self._lanes.values()) >= self._rotation.size_bytes
            or time.monotonic() - self._since_s >= self._rotation.seconds
        )

    def commit(self) -> Offsets:
        """Make all that is buffered durable and visible. OSError: what is not committed yet stays buffered."""
        moved = {partition: offset for partition in self._lanes if (offset := self._commit(partition)) is not None}
        self._since_s = None
        return moved

    def release(self, partitions: Iterable[int], *, lost: bool) -> None:
        """The partitions go to somebody else: commit theirs, unless `lost`; then forget them."""
        for partition in partitions:
            if partition in self._lanes and not lost:
                self._commit(partition)
            self._lanes.pop(partition, None)
            self._displaced.pop(partition, None)

    def displaced(self) -> Offsets:
        """Partitions that another owner committed first, with the offset to read from."""
        found, self._displaced = self._displaced, {}
        return found

    def close(self) -> None:
        """Drop what is not committed; it will be read again."""
        self._lanes.clear()

    def _commit(self, partition: int) -> int | None:
        lane = self._lanes[partition]
        if lane.next == lane.chain.next:
            return None
        try:
            if lane.rejected:
                lane.quarantine.append(rejected := pl.concat(lane.rejected), lane.next)
                self.quarantined += len(rejected)
                lane.rejected = []
            if not lane.frames and not FORMATS[self._format].may_be_empty:
                lane.records = lane.size_bytes = 0
                return None
            table = self._gathered(lane)
            # A file that can't note its end ends with its last row; what follows was rejected, or will be again.
            lane.chain.append(table, lane.next if FORMATS[self._format].may_be_empty else table["_offset"][-1] + 1)
        except SlotTaken:
            position = self.resume(partition)  # a fresh lane; nothing committed: from where this one began
            self._displaced[partition] = lane.began if position is None else position
            return None
        lane.drop()
        return lane.chain.next

    def _gathered(self, lane: _Lane) -> pl.DataFrame:
        return pl.concat(lane.frames, rechunk=True) if lane.frames else pl.DataFrame(schema=table_schema(self._role))

    def _place(self, partition: int, *, quarantine: bool = False) -> Place:
        home, broker, lane = self._home, self._broker, f"p={partition:05d}"
        tree = home.quarantine(broker) if quarantine else home.warehouse(broker)
        kind = "quarantine" if quarantine else "table"
        return Place(
            folder=tree / self._table / lane,
            staging=home.staging(broker) / self._table,
            high_water=home.high_water(broker) / self._table / f"{lane}.{kind}.json",
            topic=self._role.reads[0],
            partition=partition,
            identity=self._identity,
            writer=self._writer,
        )


def _rejected(batch: Batch, decoded: Decoded, position: int) -> pl.DataFrame:
    """The undecodable records at or behind a position; those before it are in quarantine already."""
    bad = [each for each in decoded.rejections if batch.offsets[each.index] >= position]
    return pl.DataFrame(
        {
            "topic": [batch.stream] * len(bad),
            "partition": [batch.partition] * len(bad),
            "_offset": [int(batch.offsets[each.index]) for each in bad],
            "reason": [each.reason for each in bad],
            "payload": [batch.values[each.index] for each in bad],
        },
        schema=QUARANTINE,
    )


def _offsets_from(position: int, quarantine: Place) -> frozenset[int]:
    def behind() -> pl.DataFrame:
        rows = FORMATS["parquet"].scan(committed(quarantine.folder, "parquet"), QUARANTINE)
        return rows.filter(pl.col("_offset") >= position).select("_offset").collect()

    return frozenset(steadily(behind)["_offset"])


def _behind(batch: Batch, position: int) -> Batch:
    """The part of a batch that lies at or behind a position."""
    skipped = int(batch.offsets.searchsorted(position))
    if not skipped:
        return batch
    return Batch(batch.stream, batch.partition, batch.values[skipped:], batch.offsets[skipped:])
