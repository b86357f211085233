"""Read, compute, write as one Kafka transaction: input offsets, outputs and state become visible together.

Invariant: reading resumes at the offset whose state was restored; both come from the same transaction. A producer that
met any trouble is never used again: a new one with a higher epoch takes its place, so that nothing the old one still
has under way can slip into a later transaction (KIP-890; librdkafka #5423).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from confluent_kafka import KafkaException, TopicPartition

from streaming.batch import Batch, Outgoing
from streaming.errors import ChainBroken, Fenced, OutcomeUnknown
from streaming.interfaces import Offsets
from streaming.transports.kafka import failures
from streaming.transports.kafka.publisher import Sender
from streaming.transports.kafka.reading import Reader
from streaming.transports.kafka.settings import TRANSACTIONAL_PRODUCER
from streaming.transports.kafka.source import POLL_RECORDS, KafkaSource
from streaming.transports.kafka.topics import Topics
from streaming.transports.positions import STATE_KEY, Snapshot, chosen_start

_INIT_S: Final = 60.0
_ABORT_S: Final = 5.0
_ASK_S: Final = 30.0  # longer than transaction.timeout.ms: a dead predecessor's offsets are pending for as long
_MARKERS_S: Final = 30.0
_RETRY_S: Final = 0.2
_COMMIT_S: Final = 45.0  # of either step: a broker that dies is replaced in a third of that


class KafkaTransaction:
    """Implements Transaction, and is the keeper of its own source."""

    def __init__(  # noqa: PLR0913 - all names of what it works with
        self,
        address: str,
        topics: Topics,
        reads: str,
        state: str,
        group: str,
        *,
        restore: Callable[[int, bytes | None], None],
        forget: Callable[[int], None],
        instance: int,
        poll_records: int = POLL_RECORDS,
    ) -> None:
        self._address = address
        self._topics = topics
        self._reads = reads
        self._state = state
        self._id = f"{group}-{instance}"
        self._restore = restore
        self._forget = forget
        self._is_open = False
        self._topic_id = topics.identity(reads).topic_id
        self._reader = Reader(address, state, topics.topic(state))
        self._sender = self._new_sender()
        self._source = KafkaSource(address, topics, reads, group, self, instance, poll_records)

    def poll(self, timeout_s: float) -> list[Batch]:
        """As Source.poll()."""
        return self._source.poll(timeout_s)

    def commit(self, outputs: Sequence[Outgoing], states: Mapping[int, bytes], offsets: Offsets) -> bool:
        """All or nothing. `states` and `offsets` are of the same partitions; without any, nothing is done."""
        if states.keys() != offsets.keys():
            raise ValueError(f"states of {sorted(states)}, but offsets of {sorted(offsets)}")
        if not offsets:
            return True
        if not offsets.keys() <= set(self._source.owned):
            raise Fenced(f"{self._id} commits partitions of {self._reads} that are no longer its own")
        try:
            self._run([*outputs, self._snapshots(states, offsets)], offsets)
        except OutcomeUnknown:  # a record was refused; in a transaction that means: it does not happen
            if self._sender.failure is not None and failures.is_fatal(self._sender.failure):
                raise
            return self._begin_anew(offsets)
        except KafkaException as exception:
            error = failures.error_of(exception)
            if error.txn_requires_abort():
                return self._begin_anew(offsets)
            self._is_open = False  # perhaps committed: not ours to abort
            raise failures.writing(self._id, error) from exception
        return True

    def close(self) -> None:
        """Abort what is open and leave the group."""
        if self._is_open:
            with suppress(KafkaException):
                self._sender.producer.abort_transaction(_ABORT_S)
        self._reader.close()
        self._source.close()

    def resume(self, partition: int) -> int | None:
        """Keeper: the committed offset, with its state restored. ChainBroken when they don't agree in good time."""
        deadline = time.monotonic() + _MARKERS_S
        while True:
            committed, snapshot = self._committed(partition), self._snapshot(partition)
            try:
                start = chosen_start(self._reads, partition, committed, snapshot, self._topic_id)
                break
            except ChainBroken:
                # A transaction's markers reach the offsets topic and the state topic one after the other.
                if time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_S)
        self._restore(partition, None if snapshot is None else snapshot.state)
        return start

    def release(self, partitions: Iterable[int], *, lost: bool) -> None:  # noqa: ARG002 - nothing to save either way
        """Keeper: what was read and not committed is forgotten."""
        for partition in partitions:
            self._forget(partition)

    def _run(self, records: list[Outgoing], offsets: Offsets) -> None:
        producer = self._sender.producer
        producer.begin_transaction()
        self._is_open = True
        for outgoing in records:
            self._sender.send(self._topics.topic(outgoing.stream), outgoing)
        topic = self._topics.topic(self._reads)
        positions = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]
        # Without a time both may wait for good: seen for minutes after a broker's return. Who is too late starts anew.
        metadata = self._source.consumer.consumer_group_metadata()
        producer.send_offsets_to_transaction(positions, metadata, _COMMIT_S)
        producer.commit_transaction(_COMMIT_S)
        self._is_open = False

    def _snapshots(self, states: Mapping[int, bytes], offsets: Offsets) -> Outgoing:
        packed = [Snapshot(offsets[partition], self._topic_id, state).pack() for partition, state in states.items()]
        return Outgoing(self._state, packed, [STATE_KEY] * len(packed), list(states))

    def _begin_anew(self, attempted: Offsets) -> bool:
        """A new producer, input and states as committed; whether that is what was attempted after all."""
        self._sender.producer.purge()
        self._is_open = False
        self._sender = self._new_sender()
        starts = {partition: self._source.rewind(partition) for partition in self._source.owned}
        return all(starts[partition] == offset for partition, offset in attempted.items())

    def _new_sender(self) -> Sender:
        sender = Sender(self._address, {**TRANSACTIONAL_PRODUCER, "transactional.id": self._id}, self._id)
        try:
            sender.producer.init_transactions(_INIT_S)
        except KafkaException as exception:
            error = failures.error_of(exception)
            if failures.is_absence(error):
                raise failures.unavailable(self._address, error) from exception
            raise failures.writing(self._id, error) from exception
        return sender

    def _committed(self, partition: int) -> int | None:
        asked = [TopicPartition(self._topics.topic(self._reads), partition)]
        [answer] = self._source.patiently(lambda: self._source.consumer.committed(asked, timeout=_ASK_S))
        return answer.offset if answer.offset >= 0 else None

    def _snapshot(self, partition: int) -> Snapshot | None:
        extent = self._source.patiently(lambda: self._topics.extents(self._state)[partition])
        return self._reader.last_snapshot(partition, extent)
