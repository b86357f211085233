"""One scene for every transport: streams of its own, and the broker's part of each story by the same names."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from streaming.batch import Batch, Outgoing
from streaming.errors import StreamgaugeError
from streaming.interfaces import Source, Transaction
from streaming.topology import Stream, StreamKind
from streaming.transports.kafka import KafkaTransport
from streaming.transports.memory import Fault, MemoryTransport

T = TypeVar("T")
DEADLINE_S = 60.0

EVENTS = Stream("events", StreamKind.SOURCE, "what is read", 3)
RESULTS = Stream("results", StreamKind.DERIVED, "what is written", 2)
STATE = Stream("state", StreamKind.STATE, "snapshots", 3, settings=MappingProxyType({"cleanup.policy": "compact"}))


@dataclass
class Notebook:
    """A keeper that writes down what it is asked."""

    positions: dict[int, int] = field(default_factory=dict)
    released: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)

    def resume(self, partition: int) -> int | None:
        return self.positions.get(partition)

    def release(self, partitions: Iterable[int], *, lost: bool) -> None:
        (self.lost if lost else self.released).extend(partitions)


class Broker(Protocol):
    """The broker's part in a story. Of one that replays also recreate(): delete `events` and make it anew.

    Of one with all that Kafka has, also delete_before(partition, offset): retention on `events`; and doomed(): outputs
    with which the next commit is aborted.
    """

    transport: Any
    partitions: int  # of `events`
    first: int  # the offset of a partition's first record

    def texts(self, stream: str) -> list[bytes]:
        """The values of all that was published."""

    def forget_group(self) -> None:
        """The group's offsets expire."""

    def close(self) -> None:
        """Let go of it."""


class _ThreePartitions:
    partitions = 3
    first = 0
    transport: Any

    def texts(self, stream: str) -> list[bytes]:
        return [value for batch in self.transport.read_all(stream) for value in batch.values]

    def close(self) -> None:
        """Its topics go with the cluster."""


class MemoryBroker(_ThreePartitions):
    def __init__(self) -> None:
        self.transport = MemoryTransport()

    def delete_before(self, partition: int, offset: int) -> None:
        self.transport.delete_before("events", partition, offset)

    def recreate(self) -> None:
        self.transport.recreate("events")

    def doomed(self) -> list[Outgoing]:
        self.transport.fail_next(Fault.COMMIT_ABORTED)
        return [Outgoing("results", [b"doomed"], [b"k"])]

    def forget_group(self) -> None:
        self.transport.group("events", "adders").committed.clear()


class KafkaBroker(_ThreePartitions):
    def __init__(self, address: str) -> None:
        self.prefix = f"c{uuid.uuid4().hex[:8]}-"
        self.transport = KafkaTransport(address, prefix=self.prefix)
        self._admin = AdminClient({"bootstrap.servers": address})

    def delete_before(self, partition: int, offset: int) -> None:
        mark = TopicPartition(f"{self.prefix}events", partition, offset)
        self._admin.delete_records([mark])[mark].result()

    def recreate(self) -> None:
        name = f"{self.prefix}events"
        self._admin.delete_topics([name])[name].result()
        until(lambda: name not in self._admin.list_topics(timeout=10).topics)
        until(self._made)

    def _made(self) -> bool:
        with suppress(StreamgaugeError):  # the old one may still be on its way out
            self.transport.create([EVENTS], replication=3)
            return True
        return False

    def doomed(self) -> list[Outgoing]:
        # More than a broker takes (max.message.bytes is 1 MB): the delivery fails, and the transaction with it.
        return [Outgoing("results", [b"doomed", os.urandom(2_000_000)], [b"k", b"k"])]

    def forget_group(self) -> None:
        group = f"{self.prefix}adders"
        until(lambda: self._deleted(group))

    def _deleted(self, group: str) -> bool:
        try:
            self._admin.delete_consumer_groups([group])[group].result()
        except KafkaException as exception:  # a static member keeps its place for a session's time
            if exception.args[0].code() == KafkaError.NON_EMPTY_GROUP:
                return False
            raise
        return True


@dataclass
class Scene:
    """A transport with the streams events, results and state, and what it opened. `broker` can more with some."""

    broker: Any
    opened: list[Any] = field(default_factory=list)

    @property
    def transport(self) -> Any:
        return self.broker.transport

    @property
    def partitions(self) -> range:
        return range(self.broker.partitions)

    def at(self, number: int) -> int:
        """The offset of a partition's record of that number, counted from 0."""
        return int(self.broker.first) + number

    def source(self, keeper: Notebook, instance: int = 0, group: str = "readers") -> Source:
        return cast("Source", self._kept(self.transport.source("events", group, keeper, instance=instance)))

    def transaction(self, keeper: Memory, instance: int = 0) -> Transaction:
        opened = self.transport.transaction(
            "events", "state", "adders", restore=keeper.restore, forget=keeper.forget, instance=instance
        )
        return cast("Transaction", self._kept(opened))

    def publish(self, stream: str, partition: int, values: Iterable[bytes]) -> None:
        publisher = self.transport.publisher("tests")
        listed = list(values)
        publisher.publish(Outgoing(stream, listed, [b"k"] * len(listed), [partition] * len(listed)))
        assert publisher.flush(DEADLINE_S)
        publisher.close()

    def texts(self, stream: str) -> list[bytes]:
        found: list[bytes] = self.broker.texts(stream)
        return found

    def _kept(self, opened: Any) -> Any:
        self.opened.append(opened)
        return opened


@dataclass
class Memory:
    """A transformer's side of Transaction: the state handed over for each partition, and what was forgotten."""

    states: dict[int, bytes | None] = field(default_factory=dict)
    forgotten: list[int] = field(default_factory=list)

    def restore(self, partition: int, snapshot: bytes | None) -> None:
        self.states[partition] = snapshot

    def forget(self, partition: int) -> None:
        self.states.pop(partition, None)
        self.forgotten.append(partition)


def numbers(start: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, end)]


def until(condition: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """The first truthy answer; fails when there is none in time."""
    deadline = time.monotonic() + deadline_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
    return answer


def read_from(opened: Callable[[], Source | Transaction]) -> None:
    """Open and poll until something comes; a refusal may come at either."""
    source = opened()
    until(lambda: source.poll(0.1))


def take(source: Source | Transaction, count: int) -> list[Batch]:
    """Poll until `count` records have come; fails when there are more, or not enough in time."""
    batches: list[Batch] = []

    def has_come() -> bool:
        batches.extend(source.poll(0.1))
        return sum(map(len, batches)) >= count

    until(has_come)
    assert sum(map(len, batches)) == count
    return batches


def by_partition(batches: Iterable[Batch]) -> dict[int, list[tuple[int, bytes]]]:
    """(offset, value) of each partition, in the order of coming."""
    found: dict[int, list[tuple[int, bytes]]] = {}
    for batch in batches:
        found.setdefault(batch.partition, []).extend(zip(batch.offsets.tolist(), batch.values, strict=True))
    return found
