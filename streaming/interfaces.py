"""The seams: what the application needs of a transport, a codec, a step and a sink.

A transport declares what it can do; the application asks for what it needs, by protocol, and is refused when it is
wired, never later. Two rules hold for every implementation: an error that may mean "it happened" is OutcomeUnknown, and
no record's position is acknowledged before its effect is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import polars as pl

from streaming.batch import Batch, Decoded, Outgoing
from streaming.identities import Identities
from streaming.topology import Stream

S = TypeVar("S")
Offsets = Mapping[int, int]  # partition → next offset


class Codec(Protocol):
    """Bytes ↔ table for one stream's schema. Never raises on bad bytes: those become rejections."""

    name: str

    def decode(self, values: Sequence[bytes]) -> Decoded:
        """One row or one rejection per payload, in order."""
        ...

    def encode(self, table: pl.DataFrame) -> list[bytes]:
        """One payload per row, in order."""
        ...


class Publisher(Protocol):
    """Sends records; idempotent, ordered per partition, bounded in memory."""

    def publish(self, outgoing: Outgoing) -> None:
        """Queue the records; block while the bounded queue is full. OutcomeUnknown when an earlier send failed."""
        ...

    @property
    def outstanding(self) -> int:
        """Records queued or in flight. 0 means that everything published so far is confirmed."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """True when everything is confirmed in time. OutcomeUnknown when a send failed for good."""
        ...

    def close(self) -> None:
        """Flush what can be flushed and let go."""
        ...


class Keeper(Protocol):
    """Who owns the resume position. A source calls it from within poll(), as partitions come and go."""

    def resume(self, partition: int) -> int | None:
        """Where to start reading: the next offset, or None to start with the oldest record (the very first start)."""
        ...

    def release(self, partitions: Iterable[int], *, lost: bool) -> None:
        """The partitions go to somebody else. Commit what is buffered unless `lost` (then it must be dropped)."""
        ...


class Source(Protocol):
    """Deliveries of one stream for one member of a consumer group."""

    def poll(self, timeout_s: float) -> list[Batch]:
        """At most one batch per partition; empty on time-out. DataError on a retention gap or a recreated topic."""
        ...

    def acknowledge(self, offsets: Offsets) -> None:
        """Tell the broker, as a hint for its lag tools. Never decides where reading resumes; failure is ignored."""
        ...

    def seek(self, partition: int, offset: int) -> None:
        """Read this partition from here on (after SlotTaken)."""
        ...

    def pause(self) -> None:
        """Deliver nothing, but stay a member of the group: poll() then only keeps the membership alive."""
        ...

    def resume(self) -> None:
        """Deliver again."""
        ...

    def close(self) -> None:
        """Leave the group, after release() of what is still owned."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Which stream this is: a topic of the same name made anew has another `topic_id`."""

    cluster_id: str
    topic_id: str


@dataclass(frozen=True, slots=True)
class Extent:
    """A partition's readable range [low, high). `high` is the last stable offset: what a committed reader can reach."""

    low: int
    high: int


class Transport(Protocol):
    """A broker, from the application's side: what every transport can."""

    name: str

    def create(self, streams: Iterable[Stream], *, replication: int) -> None:
        """Make what is missing; refuse (UsageError) what exists in another shape."""
        ...

    def publisher(self, client: str) -> Publisher:
        """A publisher of its own connection; `client` is its name in the broker's logs."""
        ...

    def source(self, stream: str, group: str, keeper: Keeper, *, instance: int = 0) -> Source:
        """Join `group`, read `stream` from where `keeper` says. The same instance number replaces its predecessor."""
        ...

    def read_all(self, stream: str) -> list[Batch]:
        """Every committed record from the oldest to the present end, outside any group.

        Of reference streams always; of any other stream from a Replayable (UsageError from one that is none).
        """
        ...

    def identity(self, stream: str) -> Identity:
        """Cluster and topic id."""
        ...


@runtime_checkable
class Replayable(Transport, Protocol):
    """A transport whose records have offsets that last and can be read again."""

    def count_between(self, stream: str, partition: int, start: int, end: int) -> int:
        """How many committed records (not control records) lie in [start, end)."""
        ...

    def extents(self, stream: str) -> Mapping[int, Extent]:
        """Each partition's readable range now."""
        ...


@runtime_checkable
class Queueing(Transport, Protocol):
    """A transport that hands each record to each group once: it can say how many wait, and nothing of what was."""

    def depths(self, stream: str) -> Mapping[str, int]:
        """How many records are ready to be delivered, by group. What is delivered and unacknowledged is not counted."""
        ...

    def held(self, stream: str, group: str) -> int:
        """How many records the group has not acknowledged, delivered or not, as the broker knew some seconds ago."""
        ...


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a transformer has committed of its input: `state` holds exactly the records before offset `used`.

    On queues, which have no offsets, `used` are the identities of those events. `unsent`: outputs by stream that are
    part of the commit and that the broker may not have yet.
    """

    state: bytes
    used: int | Identities
    unsent: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Remembering(Protocol):
    """A transport that keeps a transformer's state outside the broker's streams."""

    def remembered(self, role: str) -> Remembered | None:
        """The newest commit of the role's input, which is one partition; None before the first."""
        ...


class Transaction(Protocol):
    """Read, compute, write as one: input positions, outputs and state become visible together or not at all."""

    def poll(self, timeout_s: float) -> list[Batch]:
        """As Source.poll()."""
        ...

    def commit(self, outputs: Sequence[Outgoing], states: Mapping[int, bytes], offsets: Offsets) -> bool:
        """Make all visible at once; True when it happened.

        False: it certainly did not happen, the input is rewound and `restore` has been called again for each partition.
        Raises Fenced or OutcomeUnknown when this process must be replaced by a fresh one.
        """
        ...

    def close(self) -> None:
        """Abort what is open and leave the group."""
        ...


@runtime_checkable
class Transactional(Protocol):
    """A transport that can do Transaction."""

    def transaction(
        self,
        reads: str,
        state: str,
        role: str,
        *,
        restore: Callable[[int, bytes | None], None],
        forget: Callable[[int], None],
        instance: int = 0,
    ) -> Transaction:
        """Join group `role`; `restore(partition, snapshot or None)` runs before a partition's first batch.

        The snapshot handed over is the one committed together with the position at which reading resumes.
        """
        ...


class Step(Protocol[S]):
    """A pure function over one partition's rows: no clock, no broker, no hidden state.

    Splitting the rows into other batches must not change the concatenated outputs, nor the final state.
    """

    def initial(self, partition: int) -> S:
        """The state before the first row."""
        ...

    def advance(self, state: S, rows: pl.DataFrame) -> tuple[S, Mapping[str, pl.DataFrame]]:
        """The next state and the rows to publish by stream. `state` is not changed."""
        ...

    def dump(self, state: S) -> bytes:
        """The state as bytes: the same state gives the same bytes."""
        ...

    def load(self, snapshot: bytes) -> S:
        """The inverse of dump()."""
        ...


class Sink(Keeper, Protocol):
    """Where records come to rest. Owns the position: what is committed says where to resume."""

    quarantined: int  # records that could not be decoded and that this object has put into quarantine

    def write(self, batch: Batch) -> None:
        """Buffer a batch (decoded, derived); nothing is visible yet."""
        ...

    @property
    def is_due(self) -> bool:
        """Whether rows, bytes or age of the buffer ask for a commit."""
        ...

    def commit(self) -> Offsets:
        """Make the buffer durable and visible; returns the next offset of each partition that moved.

        SlotTaken is handled inside: the partition is reported in `displaced` and its buffer dropped.
        """
        ...

    def displaced(self) -> Offsets:
        """Partitions another owner has committed first since the last call, with the offset to read from."""
        ...

    def close(self) -> None:
        """Drop what is buffered and not committed."""
        ...
