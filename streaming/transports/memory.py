"""A broker in memory: the fake that every suite also runs on, with the faults of a real one to call up by name.

Invariant: a reader sees committed records only, offsets rise strictly and have gaps where a real log keeps control
records or aborted ones. All of it lives in one process, behind one lock.
"""

from __future__ import annotations

import threading
import uuid
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np

from streaming.batch import Batch, Outgoing
from streaming.errors import Fenced, OutcomeUnknown, UsageError
from streaming.interfaces import Extent, Identity, Keeper, Offsets
from streaming.topology import Stream
from streaming.transports.positions import STATE_KEY, Snapshot, checked_start, chosen_start

_POLL_RECORDS: Final = 20_000


class Fault(StrEnum):
    """What can be made to go wrong, once for each time it is called up by MemoryTransport.fail_next()."""

    PUBLISH_UNKNOWN = "half of the next publish is stored, then the connection is gone"
    COMMIT_ABORTED = "the broker aborts the next transaction"
    COMMIT_UNKNOWN_DONE = "the next transaction is committed, but the answer is lost"
    COMMIT_UNKNOWN_LOST = "the next transaction is not committed, and the answer is lost"


@dataclass(slots=True)
class _Log:
    """One partition: parallel lists in offset order; `end` is the next offset to give away."""

    offsets: list[int] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    low: int = 0
    end: int = 0

    def append(self, key: bytes, value: bytes) -> None:
        self.offsets.append(self.end)
        self.values.append(value)
        self.keys.append(key)
        self.end += 1

    def between(self, start: int, end: int) -> slice:
        return slice(bisect_left(self.offsets, start), bisect_left(self.offsets, end))

    def batch(self, stream: str, partition: int, start: int, limit: int = _POLL_RECORDS) -> Batch | None:
        first = bisect_left(self.offsets, start)
        chosen = slice(first, first + limit)
        if not self.values[chosen]:
            return None
        return Batch(stream, partition, self.values[chosen], np.array(self.offsets[chosen], np.int64))

    def last(self, key: bytes) -> bytes | None:
        return next(
            (value for value, k in zip(reversed(self.values), reversed(self.keys), strict=True) if k == key), None
        )


@dataclass(slots=True)
class _Topic:
    stream: Stream
    topic_id: str
    logs: list[_Log]


@dataclass(slots=True)
class _Group:
    committed: dict[int, int] = field(default_factory=dict)
    members: dict[int, MemorySource] = field(default_factory=dict)

    def target(self, partition: int) -> MemorySource:
        names = sorted(self.members)
        return self.members[names[partition % len(names)]]

    def is_free(self, partition: int) -> bool:
        return not any(partition in member.owned for member in self.members.values())


class MemoryTransport:
    """Implements Transport and Transactional; the methods after `transaction` play the broker's part in tests."""

    name = "memory"

    def __init__(self) -> None:
        self._lock = threading.Condition(threading.RLock())
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[tuple[str, str], _Group] = {}
        self._epochs: Counter[str] = Counter()
        self._faults: Counter[Fault] = Counter()

    def create(self, streams: Iterable[Stream], *, replication: int) -> None:  # noqa: ARG002 - nothing to replicate to
        """Make what is missing; UsageError for what exists in another shape."""
        with self._lock:
            for stream in streams:
                found = self._topics.setdefault(stream.name, _new_topic(stream))
                if _shape(found.stream) != _shape(stream):
                    raise UsageError(f"{stream.name} exists as {_shape(found.stream)}, wanted is {_shape(stream)}")

    def publisher(self, client: str) -> MemoryPublisher:
        """A publisher; what it publishes is there at once."""
        return MemoryPublisher(self, client)

    def source(self, stream: str, group: str, keeper: Keeper, *, instance: int = 0) -> MemorySource:
        """Join `group`; a predecessor with the same instance number is fenced."""
        with self._lock:
            return MemorySource(self, stream, group, keeper, instance)

    def read_all(self, stream: str) -> list[Batch]:
        """Every record, one batch for each partition that has any."""
        with self._lock:
            logs = enumerate(self.topic(stream).logs)
            batches = [log.batch(stream, partition, log.low, len(log.values)) for partition, log in logs]
            return [batch for batch in batches if batch is not None]

    def count_between(self, stream: str, partition: int, start: int, end: int) -> int:
        """How many records lie in [start, end)."""
        with self._lock:
            log = self.topic(stream).logs[partition]
            return len(log.offsets[log.between(start, end)])

    def extents(self, stream: str) -> Mapping[int, Extent]:
        """Each partition's readable range."""
        with self._lock:
            return {partition: Extent(log.low, log.end) for partition, log in enumerate(self.topic(stream).logs)}

    def identity(self, stream: str) -> Identity:
        """A new topic id for each time the stream was made."""
        with self._lock:
            return Identity("memory", self.topic(stream).topic_id)

    def transaction(
        self,
        reads: str,
        state: str,
        role: str,
        *,
        restore: Callable[[int, bytes | None], None],
        forget: Callable[[int], None],
        instance: int = 0,
    ) -> MemoryTransaction:
        """Join group `role` as `instance`; an earlier transaction object of that name can no longer commit."""
        with self._lock:
            return MemoryTransaction(self, reads, state, role, restore, forget, instance)

    def fail_next(self, fault: Fault) -> None:
        """Let the next matching call go wrong."""
        self._faults[fault] += 1

    def leave_gap(self, stream: str, partition: int, offsets: int = 1) -> None:
        """Use up offsets without records, as control records and compaction do."""
        with self._lock:
            self.topic(stream).logs[partition].end += offsets

    def delete_before(self, stream: str, partition: int, offset: int) -> None:
        """What retention does: the oldest readable offset becomes `offset`."""
        with self._lock:
            log = self.topic(stream).logs[partition]
            gone = log.between(0, offset)
            del log.offsets[gone], log.values[gone], log.keys[gone]
            log.low = offset
            log.end = max(log.end, offset)

    def recreate(self, stream: str) -> None:
        """Delete the stream and make it anew: empty, offsets from 0, another topic id, groups' offsets forgotten."""
        with self._lock:
            self._topics[stream] = _new_topic(self.topic(stream).stream)
            for (name, _), group in self._groups.items():
                if name == stream:
                    group.committed.clear()

    def expire(self, stream: str, group: str, instance: int = 0) -> None:
        """The member's session ends without its knowledge: its partitions go to others, it learns of it on poll()."""
        with self._lock:
            member = self.group(stream, group).members.pop(instance)
            member.lose()

    def committed(self, stream: str, group: str) -> Offsets:
        """The group's offsets, as its lag tools see them."""
        with self._lock:
            return dict(self.group(stream, group).committed)

    # The parts below are for this module's own classes.

    def topic(self, stream: str) -> _Topic:
        """The topic of this name; UsageError if there is none."""
        try:
            return self._topics[stream]
        except KeyError:
            raise UsageError(f"there is no topic {stream}") from None

    def group(self, stream: str, group: str) -> _Group:
        """The group's members and offsets on this stream."""
        return self._groups.setdefault((stream, group), _Group())

    def has_fault(self, fault: Fault) -> bool:
        """Whether this call is to go wrong (asked once for each call)."""
        with self._lock:
            is_due = self._faults[fault] > 0
            self._faults[fault] -= is_due
            return is_due

    def append(self, outgoing: Outgoing) -> set[tuple[str, int]]:
        """Store records; the partitions that were written."""
        topic = self.topic(outgoing.stream)
        partitions = outgoing.partitions or [zlib.crc32(key) % len(topic.logs) for key in outgoing.keys]
        for partition, key, value in zip(partitions, outgoing.keys, outgoing.values, strict=True):
            topic.logs[partition].append(key, value)
        self._lock.notify_all()
        return {(outgoing.stream, partition) for partition in partitions}

    def next_epoch(self, transactional_id: str) -> int:
        """Fence every earlier holder of this id."""
        self._epochs[transactional_id] += 1
        return self._epochs[transactional_id]

    def epoch(self, transactional_id: str) -> int:
        """The epoch that may commit."""
        return self._epochs[transactional_id]

    @property
    def lock(self) -> threading.Condition:
        """Guards everything; notified when records arrive."""
        return self._lock


def _new_topic(stream: Stream) -> _Topic:
    return _Topic(stream, uuid.uuid4().hex[:22], [_Log() for _ in range(stream.partitions)])


def _shape(stream: Stream) -> str:
    return f"{stream.partitions} partitions, cleanup.policy {stream.settings.get('cleanup.policy', 'delete')}"


class MemoryPublisher:
    """Implements Publisher: nothing is ever outstanding, and OutcomeUnknown comes with the call after the fault."""

    def __init__(self, transport: MemoryTransport, client: str) -> None:
        self._transport = transport
        self._client = client
        self._failure: OutcomeUnknown | None = None

    def publish(self, outgoing: Outgoing) -> None:
        """Store the records. OutcomeUnknown for good once a send has failed."""
        self._raise_failure()
        if not self._transport.has_fault(Fault.PUBLISH_UNKNOWN):
            with self._transport.lock:
                self._transport.append(outgoing)
            return
        half = len(outgoing.values) // 2
        pinned = outgoing.partitions[:half] if outgoing.partitions else None
        with self._transport.lock:
            self._transport.append(Outgoing(outgoing.stream, outgoing.values[:half], outgoing.keys[:half], pinned))
        self._failure = OutcomeUnknown(f"{self._client}: connection lost while publishing to {outgoing.stream}")

    @property
    def outstanding(self) -> int:
        """Always 0: what did not fail is stored."""
        return 0

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002 - nothing to wait for
        """True, or OutcomeUnknown."""
        self._raise_failure()
        return True

    def close(self) -> None:
        """Nothing to let go."""

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure


class MemorySource:
    """Implements Source. Partitions come and go inside poll(), as with a real broker."""

    def __init__(self, transport: MemoryTransport, stream: str, group: str, keeper: Keeper, instance: int) -> None:
        self.owned: set[int] = set()
        self._transport = transport
        self._stream = stream
        transport.topic(stream)
        self._group = transport.group(stream, group)
        self._keeper = keeper
        self._instance = instance
        self._positions: dict[int, int] = {}
        self._lost: set[int] = set()
        self.is_paused = False
        predecessor = self._group.members.get(instance)
        if predecessor:
            predecessor.owned = set()
        self._group.members[instance] = self

    def poll(self, timeout_s: float) -> list[Batch]:
        """At most one batch per partition. Fenced when another member has this instance number."""
        with self._transport.lock:
            self._tell_lost()
            self._check_fenced()
            self._rebalance()
            return self._available() or (self._transport.lock.wait(timeout_s) and self._available()) or []

    def acknowledge(self, offsets: Offsets) -> None:
        """Store the group's offsets."""
        with self._transport.lock:
            self._group.committed.update(offsets)

    def seek(self, partition: int, offset: int) -> None:
        """Read on from here; ignored for a partition that is not owned."""
        if partition in self.owned:
            self._positions[partition] = offset

    def pause(self) -> None:
        """Deliver nothing until resume()."""
        self.is_paused = True

    def resume(self) -> None:
        """Deliver again."""
        self.is_paused = False

    def close(self) -> None:
        """Release what is owned and leave the group."""
        with self._transport.lock:
            self._tell_lost()
            self._revoke(self.owned)
            if self._group.members.get(self._instance) is self:
                del self._group.members[self._instance]

    def lose(self) -> None:
        """The broker has given the partitions away."""
        self._lost |= self.owned
        self.owned = set()

    def _tell_lost(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, set()
            self._keeper.release(sorted(lost), lost=True)
            self._group.members.setdefault(self._instance, self)

    def _check_fenced(self) -> None:
        if self._group.members.get(self._instance) is not self:
            raise Fenced(f"another member of this group is instance {self._instance} of {self._stream}")

    def _rebalance(self) -> None:
        count = len(self._transport.topic(self._stream).logs)
        target = {partition for partition in range(count) if self._group.target(partition) is self}
        self._revoke(self.owned - target)
        for partition in sorted(target - self.owned):
            if self._group.is_free(partition):
                extent = self._transport.extents(self._stream)[partition]
                wanted = self._keeper.resume(partition)
                self._positions[partition] = checked_start(self._stream, partition, wanted, extent)
                self.owned.add(partition)

    def _revoke(self, partitions: set[int]) -> None:
        if partitions:
            self._keeper.release(sorted(partitions), lost=False)
            self.owned = self.owned - partitions

    def _available(self) -> list[Batch]:
        return [] if self.is_paused else [batch for batch in map(self._read, sorted(self.owned)) if batch]

    def _read(self, partition: int) -> Batch | None:
        log = self._transport.topic(self._stream).logs[partition]
        start = checked_start(self._stream, partition, self._positions[partition], Extent(log.low, log.end))
        batch = log.batch(self._stream, partition, start)
        if batch:
            self._positions[partition] = batch.next_offset
        return batch


class MemoryTransaction:
    """Implements Transaction."""

    def __init__(
        self,
        transport: MemoryTransport,
        reads: str,
        state: str,
        role: str,
        restore: Callable[[int, bytes | None], None],
        forget: Callable[[int], None],
        instance: int,
    ) -> None:
        self._transport = transport
        self._reads = reads
        self._state = state
        self._restore = restore
        self._forget = forget
        self._id = f"{role}-{instance}"
        self._epoch = transport.next_epoch(self._id)
        self._group = transport.group(reads, role)
        self._source = transport.source(reads, role, self, instance=instance)

    def poll(self, timeout_s: float) -> list[Batch]:
        """As Source.poll()."""
        return self._source.poll(timeout_s)

    def commit(self, outputs: Sequence[Outgoing], states: Mapping[int, bytes], offsets: Offsets) -> bool:
        """All or nothing; see Transaction.commit()."""
        with self._transport.lock:
            self._check_may_commit(offsets)
            if self._transport.has_fault(Fault.COMMIT_UNKNOWN_LOST):
                raise OutcomeUnknown(f"{self._id}: no answer to the commit")
            if self._transport.has_fault(Fault.COMMIT_ABORTED):
                self._abort(outputs)
                return False
            self._apply(outputs, states, offsets)
            if self._transport.has_fault(Fault.COMMIT_UNKNOWN_DONE):
                raise OutcomeUnknown(f"{self._id}: no answer to the commit")
            return True

    def close(self) -> None:
        """Leave the group; nothing is ever open between two calls."""
        self._source.close()

    def resume(self, partition: int) -> int | None:
        """Keeper: the committed position, with the state of that position restored."""
        topic_id = self._transport.topic(self._reads).topic_id
        record = self._transport.topic(self._state).logs[partition].last(STATE_KEY)
        snapshot = None if record is None else Snapshot.unpack(record)
        start = chosen_start(self._reads, partition, self._group.committed.get(partition), snapshot, topic_id)
        self._restore(partition, snapshot.state if snapshot else None)
        return start

    def release(self, partitions: Iterable[int], *, lost: bool) -> None:  # noqa: ARG002 - nothing to save either way
        """Keeper: what was read and not committed is forgotten."""
        for partition in partitions:
            self._forget(partition)

    def _check_may_commit(self, offsets: Offsets) -> None:
        if self._transport.epoch(self._id) != self._epoch:
            raise Fenced(f"another process is {self._id}")
        if not set(offsets) <= self._source.owned:
            raise Fenced(f"{self._id} commits partitions of {self._reads} that are no longer its own")

    def _apply(self, outputs: Sequence[Outgoing], states: Mapping[int, bytes], offsets: Offsets) -> None:
        topic_id = self._transport.topic(self._reads).topic_id
        packed = [Snapshot(offsets[partition], topic_id, state).pack() for partition, state in states.items()]
        snapshots = Outgoing(self._state, packed, [STATE_KEY] * len(packed), list(states))
        written = set[tuple[str, int]]().union(*map(self._transport.append, [*outputs, snapshots]))
        self._group.committed.update(offsets)
        for stream, partition in written:
            self._transport.leave_gap(stream, partition)  # the commit marker

    def _abort(self, outputs: Sequence[Outgoing]) -> None:
        for outgoing in outputs:
            self._transport.leave_gap(outgoing.stream, 0, len(outgoing.values) + 1)  # aborted records and the marker
        for partition in sorted(self._source.owned):
            low = self._transport.extents(self._reads)[partition].low
            start = self.resume(partition)
            self._source.seek(partition, low if start is None else start)
