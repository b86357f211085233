"""Reading outside any group: whole streams, counts, and the last snapshot of a state partition.

Invariant: reading ends at an end-of-partition event or at a record behind the asked range, never by counting offsets,
because control records take offsets too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import numpy as np
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from streaming.batch import Batch
from streaming.errors import BrokerUnavailable, ChainBroken
from streaming.interfaces import Extent
from streaming.transports.kafka import runs
from streaming.transports.kafka.settings import READER
from streaming.transports.positions import STATE_KEY, Snapshot

_POLL_RECORDS: Final = 20_000
_POLL_S: Final = 0.02
_SILENCE_S: Final = 30.0
_FIRST_LOOK_BACK: Final = 32  # offsets: a few transactions


class Reader:
    """A committed reader of one topic's partitions, by assignment."""

    def __init__(self, address: str, stream: str, topic: str) -> None:
        self._address = address
        self._stream = stream
        self._topic = topic
        self._consumer = Consumer({**READER, "bootstrap.servers": address, "client.id": "streamgauge-reader"})

    def close(self) -> None:
        """Let the connection go."""
        self._consumer.close()

    def polls(self, starts: dict[int, int]) -> Iterator[list[Message]]:
        """Messages from these offsets on, poll by poll, until each partition has reached its end.

        BrokerUnavailable when nothing comes for long before that.
        """
        self._consumer.assign([TopicPartition(self._topic, partition, offset) for partition, offset in starts.items()])
        try:
            yield from self._until_end(set(starts))
        finally:
            self._consumer.unassign()

    def _until_end(self, partitions: set[int]) -> Iterator[list[Message]]:
        ended: set[int] = set()
        deadline = time.monotonic() + _SILENCE_S
        while ended != partitions:
            # A short wait: consume() would wait for its full number otherwise, even when all have ended.
            polled = self._consumer.consume(_POLL_RECORDS, _POLL_S)
            records, at_end = _parted(polled, self._topic)
            ended |= at_end
            if polled:
                deadline = time.monotonic() + _SILENCE_S
            elif time.monotonic() > deadline:
                raise BrokerUnavailable(f"{self._address}: {self._topic} is silent, its end is not reached")
            yield records

    def all(self, extents: dict[int, Extent]) -> list[Batch]:
        """Every record, one batch for each partition that has any."""
        starts = {partition: extent.low for partition, extent in extents.items() if extent.low < extent.high}
        records = [message for polled in self.polls(starts) for message in polled]
        return self.batches(records)

    def count(self, partition: int, start: int, end: int) -> int:
        """Records in [start, end); start must exist."""
        count = 0
        for records in self.polls({partition: start} if start < end else {}):
            for batch in self.batches(records):
                count += int(np.searchsorted(batch.offsets, end))
                if batch.next_offset >= end:
                    return count
        return count

    def last_snapshot(self, partition: int, extent: Extent) -> Snapshot | None:
        """The newest committed snapshot of a state partition, looked for from the end backwards."""
        back, start = _FIRST_LOOK_BACK, extent.high
        while start > extent.low:
            start = max(extent.low, extent.high - back)
            found = [m for records in self.polls({partition: start}) for m in records if m.key() == STATE_KEY]
            if found:
                return Snapshot.unpack(found[-1].value() or b"")
            back *= 16
        return None

    def batches(self, records: list[Message]) -> list[Batch]:
        """Records as batches."""
        return batches_of(self._stream, records)


def batches_of(stream: str, records: list[Message]) -> list[Batch]:
    """Error-free messages as one batch per partition; a tombstone's value becomes b""."""
    values = cast("list[bytes | None]", list(map(Message.value, records)))
    if not all(values):  # much cheaper than looking for None, and empty values are rare
        values = [value or b"" for value in values]
    partitions = np.fromiter(map(Message.partition, cast("Any", records)), np.int64, len(records))
    return runs.batches(stream, partitions, cast("list[bytes]", values), lambda i: cast("int", records[i].offset()))


def _parted(polled: list[Message], topic: str) -> tuple[list[Message], set[int]]:
    records: list[Message] = []
    ended: set[int] = set()
    for message in polled:
        error = message.error()
        if error is None:
            records.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            ended.add(cast("int", message.partition()))
        elif error.code() in {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}:
            raise ChainBroken(f"{topic}[{message.partition()}]: the offsets asked for are gone: {error.str()}")
    return records, ended


@contextmanager
def reader(address: str, stream: str, topic: str) -> Iterator[Reader]:
    """A Reader that is closed at the end."""
    opened = Reader(address, stream, topic)
    try:
        yield opened
    finally:
        opened.close()
