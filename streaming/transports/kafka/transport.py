"""Kafka behind the application's interfaces: Transport and Transactional.

Invariant: every name on the cluster (topic, group, transactional id) is the application's name behind one prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from streaming.batch import Batch
from streaming.interfaces import Extent, Identity, Keeper
from streaming.topology import Stream
from streaming.transports.kafka.publisher import KafkaPublisher
from streaming.transports.kafka.reading import reader
from streaming.transports.kafka.settings import PRODUCER
from streaming.transports.kafka.source import POLL_RECORDS, KafkaSource
from streaming.transports.kafka.topics import Topics
from streaming.transports.kafka.transactions import KafkaTransaction
from streaming.tuning import Tuning


class KafkaTransport:
    """A Kafka cluster. Connects on first use; each call raises BrokerUnavailable when nobody answers in `timeout_s`."""

    name = "kafka"

    def __init__(
        self, bootstrap_servers: str, *, prefix: str = "", timeout_s: float = 10.0, tuning: Tuning | None = None
    ) -> None:
        self._address = bootstrap_servers
        self._prefix = prefix
        self._topics = Topics(bootstrap_servers, prefix, timeout_s)
        tuning = tuning or Tuning()
        self._poll_records = tuning.poll_records or POLL_RECORDS
        tuned = {"compression.type": tuning.compression, "batch.size": tuning.batch_bytes}
        self._producer = {**PRODUCER, **{name: value for name, value in tuned.items() if value is not None}}

    def create(self, streams: Iterable[Stream], *, replication: int) -> None:
        """Make what is missing; UsageError for a topic with other partitions or another cleanup.policy."""
        self._topics.create(streams, replication)

    def publisher(self, client: str) -> KafkaPublisher:
        """An idempotent producer, named `client` in the broker's logs."""
        self._topics.require_broker()
        return KafkaPublisher(self._address, self._producer, client, self._prefix)

    def source(self, stream: str, group: str, keeper: Keeper, *, instance: int = 0) -> KafkaSource:
        """Join `group` as static member `instance`; UsageError when the topic is missing."""
        group = self._prefix + group
        return KafkaSource(self._address, self._topics, stream, group, keeper, instance, self._poll_records)

    def transaction(
        self,
        reads: str,
        state: str,
        role: str,
        *,
        restore: Callable[[int, bytes | None], None],
        forget: Callable[[int], None],
        instance: int = 0,
    ) -> KafkaTransaction:
        """Join group `role`; an earlier process of this role and instance is fenced, its open transaction aborted."""
        group = self._prefix + role
        return KafkaTransaction(
            self._address,
            self._topics,
            reads,
            state,
            group,
            restore=restore,
            forget=forget,
            instance=instance,
            poll_records=self._poll_records,
        )

    def read_all(self, stream: str) -> list[Batch]:
        """Every committed record from the oldest to the present end."""
        extents = self._topics.extents(stream)
        with reader(self._address, stream, self._prefix + stream) as opened:
            return opened.all(dict(extents))

    def count_between(self, stream: str, partition: int, start: int, end: int) -> int:
        """How many committed records lie in [start, end); those that retention has deleted are not counted."""
        extent = self._topics.extents(stream)[partition]
        start, end = max(start, extent.low), min(end, extent.high)
        with reader(self._address, stream, self._prefix + stream) as opened:
            return opened.count(partition, start, end)

    def extents(self, stream: str) -> Mapping[int, Extent]:
        """Each partition's readable range now."""
        return self._topics.extents(stream)

    def identity(self, stream: str) -> Identity:
        """Cluster id and topic id."""
        return self._topics.identity(stream)
