"""What only a real Kafka cluster can show: full queues, absent brokers, the key's partition, a leader that dies."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from experiments.lab import Lab
from experiments.workload import fleet
from streaming.batch import Outgoing
from streaming.codecs import codec
from streaming.errors import BrokerUnavailable, OutcomeUnknown, RestartRequired, UsageError
from streaming.interfaces import Extent
from streaming.topology import STREAMS, Stream, StreamKind, stream
from streaming.transports.kafka import KafkaTransport
from streaming.transports.kafka.failures import patiently
from streaming.transports.kafka.inspection import Cluster, wait_until
from streaming.transports.kafka.publisher import KafkaPublisher
from streaming.transports.kafka.settings import PRODUCER

pytestmark = pytest.mark.brokers
EVENTS = Stream("events", StreamKind.SOURCE, "of this test", 3)
# Java's org.apache.kafka.common.utils.Utils.murmur2, from its own test.
MURMUR2 = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}


class Notes:
    """A keeper that resumes where `positions` says."""

    def __init__(self, positions: dict[int, int]) -> None:
        self._positions = positions

    def resume(self, partition: int) -> int | None:
        return self._positions.get(partition)

    def release(self, partitions: Iterable[int], *, lost: bool) -> None: ...


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:8]}-"


@pytest.fixture
def transport(kafka: Any, prefix: str) -> KafkaTransport:
    made = KafkaTransport(kafka.bootstrap_servers, prefix=prefix)
    made.create([EVENTS], replication=3)
    return made


def test_a_full_queue_makes_the_publisher_wait_and_keeps_the_order(
    kafka: Any, transport: KafkaTransport, prefix: str
) -> None:
    settings = {**PRODUCER, "queue.buffering.max.messages": 100}
    publisher = KafkaPublisher(kafka.bootstrap_servers, settings, "tests", prefix)
    values = [b"%d" % number for number in range(3_000)]
    publisher.publish(Outgoing("events", values, [b"k%d" % (n % 7) for n in range(len(values))]))
    assert publisher.outstanding <= 100
    assert publisher.flush(60)
    publisher.close()

    batches = transport.read_all("events")
    for batch in batches:
        numbers = [int(value) for value in batch.values]
        assert numbers == sorted(numbers)
    assert sum(map(len, batches)) == len(set().union(*(batch.values for batch in batches))) == 3_000


def test_a_record_that_is_too_large_is_refused_before_it_is_sent(transport: KafkaTransport) -> None:
    publisher = transport.publisher("tests")
    with pytest.raises(UsageError, match="2000000 bytes"):
        publisher.publish(Outgoing("events", [bytes(2_000_000)], [b"k"]))
    assert publisher.outstanding == 0
    publisher.close()


def test_a_key_goes_to_the_partition_that_the_java_client_would_choose(transport: KafkaTransport) -> None:
    publisher = transport.publisher("tests")
    publisher.publish(Outgoing("events", list(MURMUR2), list(MURMUR2)))
    assert publisher.flush(30)
    publisher.close()
    found = {value: batch.partition for batch in transport.read_all("events") for value in batch.values}
    assert found == {key: (value & 0x7FFFFFFF) % 3 for key, value in MURMUR2.items()}


def test_nobody_at_the_address_is_said_so() -> None:
    absent = KafkaTransport("127.0.0.1:1", timeout_s=1)
    attempts: list[Callable[[], object]] = [
        lambda: absent.create([EVENTS], replication=3),
        lambda: absent.publisher("tests"),
        lambda: absent.source("events", "tests", Notes({})),
        lambda: absent.transaction("events", "state", "tests", restore=lambda _, __: None, forget=lambda _: None),
        lambda: absent.read_all("events"),
        lambda: absent.identity("events"),
    ]
    for attempt in attempts:
        with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
            attempt()


def test_the_applications_own_topics_can_be_made(kafka: Any, prefix: str) -> None:
    made = KafkaTransport(kafka.bootstrap_servers, prefix=prefix)
    made.create(STREAMS.values(), replication=3)
    made.create(STREAMS.values(), replication=3)
    for each in STREAMS.values():
        assert set(made.extents(each.name)) == set(range(each.partitions))


def test_a_question_for_a_controller_that_is_away_costs_no_core_and_is_answered_by_the_next(
    kafka: Any, transport: KafkaTransport, prefix: str
) -> None:
    topics = transport._topics
    known = topics.identity("events")
    away = topics._admin.list_topics(timeout=10).controller_id
    kafka.kill(away)
    try:
        began, worked = time.monotonic(), time.process_time()
        asked = topics._admin.describe_topics(TopicCollection([f"{prefix}events"]), request_timeout=3)
        with pytest.raises(KafkaException, match="waiting for controller"):
            asked[f"{prefix}events"].result()
        assert time.process_time() - worked < 0.3 * (time.monotonic() - began)
        assert patiently("here", 60, lambda: topics.identity("events")) == known
    finally:
        kafka.start(away)


def test_who_has_heard_that_a_partition_has_no_leader_asks_again(kafka: Any, prefix: str) -> None:
    made, name = KafkaTransport(kafka.bootstrap_servers, prefix=prefix), f"{prefix}events"
    topics, look = made._topics, Cluster(kafka.bootstrap_servers)
    lab = Lab("here", kafka.bootstrap_servers, Path(), fleet(codec("json", stream("positions").schema)))
    topics._admin.create_topics([NewTopic(name, 1, replica_assignment=[[3]])], operation_timeout=30)[name].result(30)
    asking = (topics._admin, look.admin, lab.admin)

    def leaders() -> set[int]:
        return {_leader(admin, name) for admin in asking}

    assert wait_until(lambda: leaders() == {3}, 60)
    kafka.stop(3)
    try:
        assert wait_until(lambda: leaders() == {-1}, 60)
    finally:
        kafka.start(3)
    assert wait_until(lambda: _leader(AdminClient({"bootstrap.servers": kafka.bootstrap_servers}), name) == 3, 60)
    latest, place = OffsetSpec.latest(), TopicPartition(name, 0)  # type: ignore[no-untyped-call]
    assert made.extents("events") == {0: Extent(0, 0)}
    assert look.offsets([(name, 0)], latest) == {(name, 0): 0}
    assert lab.ask_leaders(lambda: lab.admin.list_offsets({place: latest})[place].result(30).offset) == 0


def _leader(admin: AdminClient, topic: str) -> int:
    found = admin.list_topics(timeout=10).topics.get(topic)  # all: a client asked for one topic keeps an eye on it
    return int(found.partitions[0].leader) if found else -1


def test_a_leader_that_is_killed_costs_no_record(kafka: Any, transport: KafkaTransport) -> None:
    positions: dict[int, int] = {}
    publisher, source = transport.publisher("tests"), transport.source("events", "tests", Notes(positions))
    values = [b"%d" % number for number in range(30_000)]
    keys = [b"k%d" % (n % 50) for n in range(len(values))]
    read: list[bytes] = []

    def take() -> None:
        nonlocal source
        try:
            batches = source.poll(0.1)
        except RestartRequired:  # a join that the dying coordinator left half done; the supervisor starts a fresh one
            source.close()
            source = transport.source("events", "tests", Notes(positions))
            return
        for batch in batches:
            read.extend(batch.values)
            positions[batch.partition] = batch.next_offset

    for start in range(0, len(values), 1_000):
        if start == 10_000:
            kafka.kill(1)
        if start == 20_000:
            kafka.start(1)
        publisher.publish(Outgoing("events", values[start : start + 1_000], keys[start : start + 1_000]))
        take()
    assert publisher.flush(60)
    publisher.close()
    while len(read) < len(values):
        take()
    source.close()
    kafka.wait_until_ready()

    assert len(read) == len(values)
    assert set(read) == set(values)


def test_a_commit_that_nobody_answers_ends_and_its_successor_goes_on(
    kafka: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.transports.kafka.transactions._COMMIT_S", 2.0)
    made = KafkaTransport(kafka.bootstrap_servers, prefix=prefix)
    made.create(
        [Stream("events", StreamKind.SOURCE, "of this test", 1), Stream("state", StreamKind.STATE, "", 1)],
        replication=3,
    )
    publisher = made.publisher("tests")
    publisher.publish(Outgoing("events", [b"1", b"2"], [b"k", b"k"]))
    assert publisher.flush(60)
    publisher.close()

    def opened() -> tuple[Any, list[Any]]:
        transaction = made.transaction("events", "state", "tests", restore=lambda _, __: None, forget=lambda _: None)
        batches: list[Any] = []
        deadline = time.monotonic() + 60
        while not batches and time.monotonic() < deadline:
            batches = transaction.poll(1.0)
        return transaction, batches

    transaction, [batch] = opened()
    for number in (1, 2, 3):
        kafka.pause(number)
    try:
        with pytest.raises((OutcomeUnknown, RestartRequired)):
            transaction.commit([], {0: b"state"}, {0: batch.next_offset})
    finally:
        for number in (1, 2, 3):
            kafka.resume(number)
    successor, [again] = opened()
    assert again.values == batch.values
    assert successor.commit([], {0: b"state"}, {0: again.next_offset})
    successor.close()
