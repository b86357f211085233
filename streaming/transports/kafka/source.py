"""Reading a stream as a member of a classic consumer group, from where the keeper says.

Invariant: a batch that poll() returns starts where the last one of its partition ended or where the keeper said, and
belongs to a partition that is still owned; the group's committed offsets never decide anything here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streaming.batch import Batch
from streaming.errors import DataError, Fenced, RestartRequired, TopicRecreated, UsageError
from streaming.interfaces import Extent, Keeper, Offsets
from streaming.transports.kafka import failures
from streaming.transports.kafka.reading import batches_of
from streaming.transports.kafka.settings import CLASSIC_CONSUMER
from streaming.transports.kafka.topics import Topics
from streaming.transports.positions import checked_start

T = TypeVar("T")
_log = logging.getLogger(__name__)
POLL_RECORDS: Final = 20_000
_ASK_S: Final = 5.0
_PATIENCE_S: Final = 60.0  # for the broker's answers inside a rebalance; far below max.poll.interval.ms
_RETRY_S: Final = 0.2
_OUT_OF_RANGE: Final = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})
_UNKNOWN_TOPIC: Final = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)


class KafkaSource:
    """Implements Source, as a static member: a fresh process of the same instance gets its partitions at once."""

    def __init__(
        self,
        address: str,
        topics: Topics,
        stream: str,
        group: str,
        keeper: Keeper,
        instance: int,
        poll_records: int = POLL_RECORDS,
    ) -> None:
        self._address = address
        self._topics = topics
        self._stream = stream
        self._topic = topics.topic(stream)
        self._keeper = keeper
        self._poll_records = poll_records
        self._identity = topics.identity(stream)
        self._positions: dict[int, int] = {}  # of the owned partitions: what the next batch must not lie before
        self._is_paused = False
        self._failure: Exception | None = None
        self._revoked: set[int] = set()  # in the poll that runs
        self._restarted: set[int] = set()  # of these, the ones that came back in the same poll
        self._consumer = Consumer({
            **CLASSIC_CONSUMER,
            "bootstrap.servers": address,
            "group.id": group,
            "group.instance.id": f"{group}-{instance}",
            "client.id": f"{group}-{instance}",
            "error_cb": self._note_error,
        })  # fmt: skip
        self._consumer.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    @property
    def owned(self) -> list[int]:
        """The partitions this member reads now."""
        return sorted(self._positions)

    @property
    def consumer(self) -> Consumer:
        """The vendor's consumer, for the group metadata and offsets a transaction needs."""
        return self._consumer

    def poll(self, timeout_s: float) -> list[Batch]:
        """At most one batch per partition. DataError on a gap or another topic, Fenced when replaced."""
        self._raise_failure()
        self._revoked, self._restarted = set(), set()
        messages = self._consumer.consume(self._poll_records, timeout_s)
        self._raise_failure()
        if any(map(Message.error, messages)):
            messages = self._without_errors(messages)
            self._raise_failure()
        batches = [batch for batch in batches_of(self._stream, messages) if batch.partition not in self._revoked]
        for partition in self._restarted & self._positions.keys():
            self.seek(partition, self._positions[partition])
        for batch in batches:
            self._advance(batch)
        return batches

    def acknowledge(self, offsets: Offsets) -> None:
        """Commit to the group in the background; a failure is of no consequence."""
        marks = [TopicPartition(self._topic, partition, offset) for partition, offset in offsets.items()]
        try:
            if marks:
                self._consumer.commit(offsets=marks, asynchronous=True)
        except (KafkaException, RuntimeError) as exception:
            _log.info("%s: offsets not acknowledged: %s", self._stream, exception)

    def seek(self, partition: int, offset: int) -> None:
        """Read this partition from `offset` on; ignored when it is not owned."""
        if partition not in self._positions:
            return
        # Taken away and given back: unlike seek(), this works in every state of the fetcher, and what was fetched
        # from the old position is dropped with the assignment it came under.
        self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])
        self._assign({partition: offset})

    def patiently(self, ask: Callable[[], T]) -> T:
        """The answer to a question that changes nothing; asked again while nobody answers, for a minute."""
        return failures.patiently(self._address, _PATIENCE_S, ask)

    def rewind(self, partition: int) -> int:
        """Ask the keeper again where to read an owned partition from, and do so; the offset."""
        start = self._start(partition)
        self.seek(partition, start)
        return start

    def pause(self) -> None:
        """Deliver nothing; poll() keeps the membership alive."""
        self._is_paused = True
        self._consumer.pause(self._marks(self.owned))

    def resume(self) -> None:
        """Deliver again."""
        self._is_paused = False
        self._consumer.resume(self._marks(self.owned))

    def close(self) -> None:
        """Release what is owned and leave; the group keeps the place for this instance for a session's time."""
        known = self._failure
        self._consumer.close()
        if self._failure is not known:
            self._raise_failure()

    def _marks(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition) for partition in partitions]

    def _assign(self, starts: Offsets) -> None:
        self._positions.update(starts)
        self._consumer.incremental_assign([TopicPartition(self._topic, p, offset) for p, offset in starts.items()])
        if self._is_paused:
            self._consumer.pause(self._marks(starts))

    def _advance(self, batch: Batch) -> None:
        first, expected = int(batch.offsets[0]), self._positions[batch.partition]
        if first < expected:
            raise DataError(f"{self._topic}[{batch.partition}]: offset {first} came after {expected - 1}")
        self._positions[batch.partition] = batch.next_offset

    # Callbacks of librdkafka, called within consume() and close(). What they raise would be lost there with the
    # messages of that call, so it is kept and raised by poll().

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._guarded(lambda: self._accept([mark.partition for mark in partitions]))

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._guarded(lambda: self._give_up(partitions, lost=False))

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._guarded(lambda: self._give_up(partitions, lost=True))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as exception:  # noqa: BLE001 - raised again by poll()
            self._failure = self._failure or exception

    def _accept(self, partitions: list[int]) -> None:
        if self._failure is not None:
            return
        self._check_identity()
        starts = {partition: self._start(partition) for partition in partitions}
        self._assign(starts)
        self._restarted |= self._revoked & set(partitions)

    def _start(self, partition: int) -> int:
        wanted = self._keeper.resume(partition)
        return checked_start(self._topic, partition, wanted, self._extent(partition, at_least=wanted or 0))

    def _extent(self, partition: int, at_least: int = 0) -> Extent:
        """Low and high; a new leader may not know its high watermark yet, so one that is too low is asked again."""
        deadline = time.monotonic() + _ASK_S
        while True:
            low, high = self.patiently(
                lambda: self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=_ASK_S)
            )
            if high >= at_least or time.monotonic() > deadline:
                return Extent(low, high)
            time.sleep(_RETRY_S)

    def _give_up(self, partitions: list[TopicPartition], *, lost: bool) -> None:
        released = [mark.partition for mark in partitions if mark.partition in self._positions]
        self._revoked |= {mark.partition for mark in partitions}
        try:
            self._release(released, lost=lost or isinstance(self._failure, Fenced))
        finally:
            self._consumer.incremental_unassign(partitions)

    def _release(self, partitions: list[int], *, lost: bool) -> None:
        for partition in partitions:
            del self._positions[partition]
        if partitions:
            self._keeper.release(partitions, lost=lost)

    def _note_error(self, error: KafkaError) -> None:
        if failures.is_fencing(error):
            self._failure = self._failure or Fenced(f"{self._stream}: another process has this instance: {error.str()}")
        elif failures.is_fatal(error):
            self._failure = self._failure or RestartRequired(f"{self._stream}: {error.name()}: {error.str()}")
        else:
            _log.warning("%s: %s: %s", self._stream, error.name(), error.str())

    def _without_errors(self, messages: list[Message]) -> list[Message]:
        for message in messages:
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                self._judge(cast("Any", message.partition()), error)
        return [message for message in messages if message.error() is None]

    def _judge(self, partition: int | None, error: KafkaError) -> None:
        if error.code() in _OUT_OF_RANGE and partition in self._positions:
            self._guarded(lambda: self._explain_range(partition, error))
        elif error.code() in _UNKNOWN_TOPIC:
            self._guarded(self._check_identity)
        else:
            self._note_error(error)

    def _explain_range(self, partition: int, error: KafkaError) -> None:
        position = self._positions[partition]
        checked_start(self._topic, partition, position, self._extent(partition, at_least=position))
        self._check_identity()
        raise DataError(f"{self._topic}[{partition}]: can't be read at {position}: {error.str()}")

    def _check_identity(self) -> None:
        try:
            found = self.patiently(lambda: self._topics.identity(self._stream))
        except UsageError as error:
            raise TopicRecreated(f"{self._topic} was deleted while it was read") from error
        if found != self._identity:
            raise TopicRecreated(f"{self._topic} is another topic now: {self._identity.topic_id} → {found.topic_id}")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
