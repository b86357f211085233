"""Sending records to Kafka in batches: idempotent, ordered per partition, bounded in memory.

Invariant: within a partition, records enter the client's queue in the order they were given; one that could not be
delivered makes every later call raise OutcomeUnknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streaming.batch import Outgoing
from streaming.errors import RestartRequired, UsageError
from streaming.transports.kafka import failures
from streaming.transports.kafka.settings import Settings

_SLICE_RECORDS: Final = 20_000  # what is wrapped for the client at one time
_BY_KEY: Final = -1  # librdkafka's PARTITION_UA
_ROOM_WAIT_S: Final = 0.05
_GOODBYE_S: Final = 10.0


class _Failures:
    """The first failure that a producer's callbacks tell of."""

    def __init__(self) -> None:
        self.first: KafkaError | None = None

    def note_report(self, error: KafkaError | None, message: Message) -> None:  # noqa: ARG002
        if error is not None and self.first is None:
            self.first = error

    def note_fatal(self, error: KafkaError) -> None:
        if failures.is_fatal(error) and self.first is None:
            self.first = error


class Sender:
    """A producer with its failures; shared by the publisher and the transaction."""

    def __init__(self, address: str, settings: Settings, who: str) -> None:
        self.who = who
        # Its own object: did the producer's callbacks refer to what refers to the producer, then one that is let go
        # of would keep its threads and connections until the garbage collector comes by.
        self._failures = _Failures()
        self.producer = Producer({
            **settings, "bootstrap.servers": address, "client.id": who, "error_cb": self._failures.note_fatal,
        })  # fmt: skip

    @property
    def failure(self) -> KafkaError | None:
        """The first record that was refused, or what ended the producer."""
        return self._failures.first

    def send(self, topic: str, outgoing: Outgoing) -> None:
        """Queue the records, blocking while the queue is full. RestartRequired when an earlier one has failed."""
        for partition, keys, values in _by_partition(outgoing):
            for start in range(0, len(values), _SLICE_RECORDS):
                chosen = slice(start, start + _SLICE_RECORDS)
                pairs = zip(values[chosen], keys[chosen], strict=True)
                self._queue(topic, partition, [{"value": value, "key": key} for value, key in pairs])

    def check(self) -> None:
        """Serve delivery reports; RestartRequired when a record could not be delivered."""
        self.producer.poll(0)
        if self.failure is not None:
            raise failures.writing(self.who, self.failure)

    def _queue(self, topic: str, partition: int, messages: list[dict[str, Any]]) -> None:
        while messages:
            self.check()
            self.producer.produce_batch(topic, messages, partition, on_delivery=self._failures.note_report)
            messages = [message for message in messages if "_error" in message]
            if messages:
                # Once the queue is full, librdkafka refuses all that follows in the batch: what is left is its end.
                self._refuse_other_errors(topic, messages)
                self.producer.poll(_ROOM_WAIT_S)

    def _refuse_other_errors(self, topic: str, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            error: KafkaError = message.pop("_error")
            if error.code() != KafkaError._QUEUE_FULL:
                if failures.is_fatal(error) or failures.is_fencing(error):
                    raise failures.writing(self.who, error)
                raise UsageError(f"{topic} can't take a record of {len(message['value'])} bytes: {error.str()}")


def _by_partition(outgoing: Outgoing) -> list[tuple[int, Sequence[bytes], Sequence[bytes]]]:
    """(partition, keys, values); produce_batch() takes a partition for the batch and ignores the messages' own."""
    if outgoing.partitions is None:
        return [(_BY_KEY, outgoing.keys, outgoing.values)]
    places: dict[int, list[int]] = {}
    for place, partition in enumerate(outgoing.partitions):
        places.setdefault(partition, []).append(place)
    return [
        (partition, [outgoing.keys[place] for place in chosen], [outgoing.values[place] for place in chosen])
        for partition, chosen in places.items()
    ]


class KafkaPublisher:
    """Implements Publisher. An outage blocks publish() once the queue is full; nothing is given up."""

    def __init__(self, address: str, settings: Settings, client: str, prefix: str) -> None:
        self._sender = Sender(address, settings, client)
        self._prefix = prefix

    def publish(self, outgoing: Outgoing) -> None:
        """Queue the records; blocks while the queue is full. OutcomeUnknown or Fenced when an earlier send failed."""
        self._sender.send(self._prefix + outgoing.stream, outgoing)

    @property
    def outstanding(self) -> int:
        """Records queued or in flight."""
        return len(self._sender.producer)

    def flush(self, timeout_s: float) -> bool:
        """True when everything is confirmed in time; OutcomeUnknown when a send has failed."""
        left = self._sender.producer.flush(timeout_s)
        self._sender.check()
        return left == 0

    def close(self) -> None:
        """Flush for some seconds and let go; what is unconfirmed by then stays of unknown outcome."""
        try:
            self._sender.producer.flush(_GOODBYE_S)
            self._sender.producer.purge()
            self._sender.producer.poll(0)
        except (KafkaException, RestartRequired):
            return
