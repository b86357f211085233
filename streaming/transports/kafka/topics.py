"""Topics on the cluster: make, compare, and ask for their ends and their identity.

Invariant: a topic that exists is never changed; one that has another shape than declared is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Final, TypeVar

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # the package has them, its stubs do not
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
    TopicMetadata,
)

from streaming.errors import BrokerUnavailable, UsageError
from streaming.interfaces import Extent, Identity
from streaming.topology import Stream
from streaming.transports.kafka import failures
from streaming.transports.kafka.settings import ADMIN

T = TypeVar("T")
_POLL_S: Final = 0.1
_NEWS_S: Final = 3.0  # a new topic is known to every broker by then
_CLEANUP: Final = "cleanup.policy"


class Topics:
    """The cluster's topics, by the names of the application's streams."""

    def __init__(self, address: str, prefix: str, timeout_s: float) -> None:
        self._address = address
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._admin = AdminClient({**ADMIN, "bootstrap.servers": address, "client.id": "streamgauge-admin"})

    def topic(self, stream: str) -> str:
        """The topic's name on the cluster."""
        return self._prefix + stream

    def require_broker(self) -> dict[str, TopicMetadata]:
        """All topics; BrokerUnavailable when nobody answers in time."""
        try:
            found: dict[str, TopicMetadata] = self._admin.list_topics(timeout=self._timeout_s).topics
        except KafkaException as exception:
            raise failures.asking(self._address, exception) from exception
        return found

    def create(self, streams: Iterable[Stream], replication: int) -> None:
        """Make what is missing and wait until each partition has a leader; UsageError for another shape."""
        wanted = list(streams)
        there = self.require_broker()
        missing = [stream for stream in wanted if self.topic(stream.name) not in there]
        if missing:
            specs = [self._spec(stream, replication) for stream in missing]
            for future in self._admin.create_topics(specs, request_timeout=self._timeout_s).values():
                self._created(future)
        self._await_leaders(wanted)
        for stream in wanted:
            self._compare(stream)

    def partitions(self, stream: str) -> range:
        """The partition numbers; UsageError when there is no such topic."""
        return self._existing(stream, lambda: range(len(self._named(self.topic(stream)).partitions)))

    def extents(self, stream: str) -> Mapping[int, Extent]:
        """Each partition's range, up to the last stable offset."""
        partitions = [TopicPartition(self.topic(stream), partition) for partition in self.partitions(stream)]
        lows = self._list_offsets(partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        highs = self._list_offsets(partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return {partition: Extent(lows[partition], high) for partition, high in highs.items()}

    def identity(self, stream: str) -> Identity:
        """The cluster's id and the topic's; UsageError when there is no such topic."""
        name = self.topic(stream)

        def ask() -> Identity:
            self.require_broker()  # the client learns who is the controller now: it would wait for the one it knew
            asked = self._admin.describe_topics(TopicCollection([name]), request_timeout=self._timeout_s)
            topic_id = str(asked[name].result().topic_id)
            return Identity(self._admin.cluster_id(timeout=self._timeout_s), topic_id)

        return self._existing(stream, ask)

    def _existing(self, stream: str, ask: Callable[[], T]) -> T:
        """The answer about a topic; a broker that does not know it (yet, it may be new) is asked again for a while."""
        deadline = time.monotonic() + _NEWS_S
        while True:
            try:
                return ask()
            except KafkaException as exception:
                if failures.error_of(exception).code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise failures.asking(self._address, exception) from exception
                if time.monotonic() > deadline:
                    raise UsageError(f"there is no topic {self.topic(stream)} at {self._address}") from exception
            time.sleep(_POLL_S)

    def _named(self, name: str) -> TopicMetadata:
        found = self.require_broker().get(name)
        if found is None:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, name))
        return found

    def _spec(self, stream: Stream, replication: int) -> NewTopic:
        config = dict(stream.settings)
        if replication >= 3:
            config["min.insync.replicas"] = "2"  # one broker may be away, and what was confirmed still survives
        return NewTopic(self.topic(stream.name), stream.partitions, replication, config=config)

    def _created(self, future: Future[None]) -> None:
        try:
            future.result()
        except KafkaException as exception:
            error = failures.error_of(exception)
            if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return  # another process was first: it is compared like any other
            if failures.is_absence(error):
                raise failures.unavailable(self._address, error) from exception
            raise UsageError(f"{self._address} refuses to make a topic: {error.str()}") from exception

    def _await_leaders(self, streams: list[Stream]) -> None:
        deadline = time.monotonic() + self._timeout_s
        names = {self.topic(stream.name) for stream in streams}
        while not (names <= self.require_broker().keys() and all(map(_has_leaders, self._described(names)))):
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"{self._address}: some partition of {', '.join(sorted(names))} has no leader")
            time.sleep(_POLL_S)

    def _described(self, names: set[str]) -> list[TopicMetadata]:
        return [topic for name, topic in self.require_broker().items() if name in names]

    def _compare(self, stream: Stream) -> None:
        name = self.topic(stream.name)
        policy = self._existing(stream.name, lambda: self._cleanup_policy(name))
        found = f"{len(self.partitions(stream.name))} partitions and {_CLEANUP}={policy}"
        wanted = f"{stream.partitions} partitions and {_CLEANUP}={stream.settings.get(_CLEANUP, 'delete')}"
        if found != wanted:
            raise UsageError(
                f"topic {name} at {self._address} has {found}, this application needs {wanted}: "
                f"use another cluster or another prefix, or delete the topic"
            )

    def _cleanup_policy(self, name: str) -> str:
        resource = ConfigResource(ResourceType.TOPIC, name)
        [answer] = self._admin.describe_configs([resource], request_timeout=self._timeout_s).values()
        policy: str = answer.result()[_CLEANUP].value
        return policy

    def _list_offsets(self, partitions: list[TopicPartition], spec: OffsetSpec) -> dict[int, int]:
        def ask() -> dict[int, int]:
            futures = self._admin.list_offsets(
                dict.fromkeys(partitions, spec),
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=self._timeout_s,
            )
            return {asked.partition: future.result().offset for asked, future in futures.items()}

        return failures.patiently(self._address, self._timeout_s, ask, self.require_broker)


def _has_leaders(topic: TopicMetadata) -> bool:
    return topic.error is None and all(p.leader >= 0 and p.error is None for p in topic.partitions.values())
