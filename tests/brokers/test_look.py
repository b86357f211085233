"""Looking into real brokers and changing topics of one's own: what is shown is what the cluster holds."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streaming.errors import BrokerUnavailable, UsageError
from streaming.transports.kafka.browsing import Record, browsing
from streaming.transports.kafka.inspection import Cluster, Topic, wait_until
from streaming.transports.kafka.operating import (
    add_partitions,
    change_replication,
    configure,
    create,
    delete,
    elect_preferred,
    has_left,
    has_returned,
)

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(300)]
Make = Callable[..., str]


@pytest.fixture
def cluster(kafka: Any) -> Cluster:
    return Cluster(kafka.bootstrap_servers, timeout_s=30)


@pytest.fixture
def make(cluster: Cluster) -> Iterator[Make]:
    """Makes topics of the test's own, and deletes what is left of them."""
    made: list[str] = []

    def topic(partitions: int = 1, replication: int = 3, **settings: str) -> str:
        made.append(f"look-{uuid.uuid4().hex[:8]}")
        dotted = {name.replace("_", "."): value for name, value in settings.items()}
        create(cluster, made[-1], partitions=partitions, replication=replication, settings=dotted)
        return made[-1]

    yield topic
    for name in {each.topic for each in cluster.layout(made)}:
        delete(cluster, name)


def send(kafka: Any, topic: str, numbers: range, *, partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "acks": "all"})
    for number in numbers:
        producer.produce(topic, b"%d" % number, b"key-%d" % (number % 3), partition=partition)
    assert producer.flush(60) == 0


def transactional(kafka: Any) -> Producer:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": f"look-{uuid.uuid4().hex}"})
    producer.init_transactions(60)
    return producer


def values(records: list[Record]) -> list[int]:
    return [int(record.value or b"-1") for record in records]


def offsets(topic: Topic) -> list[tuple[int | None, int | None, int | None]]:
    return [(each.low, each.end, each.written) for each in topic.partitions]


def test_a_topic_is_shown_with_its_copies_offsets_and_settings(kafka: Any, cluster: Cluster, make: Make) -> None:
    name = make(2, 3, retention_ms="3600000")
    send(kafka, name, range(7), partition=1)
    found = cluster.topic(name)
    assert offsets(found) == [(0, 0, 0), (0, 7, 7)]
    assert [set(each.replicas) for each in found.partitions] == [{1, 2, 3}] * 2
    assert [each.leader for each in found.partitions] == [each.replicas[0] for each in found.partitions]
    assert found.settings == {"retention.ms": "3600000"}
    assert found.inherited["min.insync.replicas"] == "2"
    assert name in {each.name for each in cluster.topics()}
    assert [broker.number for broker in cluster.brokers()] == [1, 2, 3]


def test_an_open_transaction_lies_between_what_is_written_and_what_can_be_read(
    kafka: Any, cluster: Cluster, make: Make
) -> None:
    name, producer = make(), transactional(kafka)
    producer.begin_transaction()
    for number in range(3):
        producer.produce(name, b"%d" % number)
    producer.flush(60)
    assert offsets(cluster.topic(name)) == [(0, 0, 3)]
    with browsing(cluster, name) as committed, browsing(cluster, name, is_committed=False) as all_of_it:
        assert committed.last(10) == []
        assert values(all_of_it.last(10)) == [0, 1, 2]
    producer.abort_transaction(60)
    producer.begin_transaction()
    producer.produce(name, b"3")
    producer.commit_transaction(60)
    assert wait_until(lambda: offsets(cluster.topic(name)) == [(0, 6, 6)], 60), "4 records and 2 control records"
    with browsing(cluster, name) as browser:
        assert values(browser.last(10)) == values(browser.first("earliest", 10)) == [3]


def test_the_first_the_last_and_those_from_a_place_are_found(kafka: Any, cluster: Cluster, make: Make) -> None:
    name = make(2)
    send(kafka, name, range(100))
    send(kafka, name, range(100, 160), partition=1)
    with browsing(cluster, name) as both:
        assert values(both.first("earliest", 5)) == [0, 1, 2, 3, 4]
        assert values(both.last(5)) == [155, 156, 157, 158, 159]
        assert len(both.last(1000)) == 160
        newest = both.last(1)[0].timestamp
        assert newest is not None
        assert {record.timestamp for record in both.first(newest, 1000)} == {newest}
        with pytest.raises(UsageError, match="--partition"):
            both.first(3, 1)
    with browsing(cluster, name, partition=1) as one:
        assert [record.offset for record in one.first(57, 10)] == [57, 58, 59]
        assert values(one.first(57, 2)) == [157, 158]
        assert one.first(60, 10) == []
        with pytest.raises(UsageError, match="0 to 60, not 61"):
            one.first(61, 1)
    with pytest.raises(UsageError, match="has no partition 7; it has 0 to 1"), browsing(cluster, name, partition=7):
        pass


def test_a_key_is_looked_for_further_back_than_the_last_records(kafka: Any, cluster: Cluster, make: Make) -> None:
    name = make()
    send(kafka, name, range(300))
    with browsing(cluster, name) as browser:
        found = browser.last(40, lambda record: record.key == b"key-1")
    assert values(found) == list(range(1, 300, 3))[-40:]


def test_following_shows_what_comes_and_leaves_no_trace_in_any_group(kafka: Any, cluster: Cluster, make: Make) -> None:
    name = make()
    send(kafka, name, range(5))
    groups = {group.name for group in cluster.groups()}
    with browsing(cluster, name) as browser:
        coming, seen = browser.follow("latest"), list[Record]()
        assert next(coming) == []
        send(kafka, name, range(5, 8))
        deadline = time.monotonic() + 60
        while len(seen) < 3 and time.monotonic() < deadline:
            seen += next(coming)
    assert values(seen) == [5, 6, 7]
    assert {group.name for group in cluster.groups()} == groups


def test_a_group_is_shown_with_its_members_and_its_lag(kafka: Any, cluster: Cluster, make: Make) -> None:
    name, group = make(2), f"look-{uuid.uuid4().hex[:8]}"
    send(kafka, name, range(10))
    settings = {
        "group.id": group,
        "client.id": "reader-7",
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
    }
    consumer = Consumer({**settings, "bootstrap.servers": kafka.bootstrap_servers})
    try:
        consumer.subscribe([name])
        assert wait_until(lambda: bool(consumer.poll(0.1) and consumer.assignment()), 60)
        consumer.commit(offsets=[TopicPartition(name, 0, 4)], asynchronous=False)
        found = cluster.group(group)
        assert (found.state, [member.client for member in found.members]) == ("stable", ["reader-7"])
        assert found.members[0].assignment == {name: (0, 1)}
        read, unread = found.positions
        assert (read.committed, read.end, read.lag, read.client) == (4, 10, 6, "reader-7")
        assert (unread.committed, unread.end, unread.lag, found.lag) == (None, 0, None, None)
    finally:
        consumer.close()
    assert wait_until(lambda: cluster.group(group).state == "empty", 60)
    with pytest.raises(UsageError, match=f"did you mean {group}"):
        cluster.group(f"{group}x")


def test_partitions_copies_and_settings_change_and_records_stay(kafka: Any, cluster: Cluster, make: Make) -> None:
    name = make(2, 1)
    send(kafka, name, range(50))
    leaders = [each.leader for each in cluster.partitions(name)]
    change_replication(cluster, name, 3)
    assert [set(each.in_sync) for each in cluster.partitions(name)] == [{1, 2, 3}] * 2
    assert [each.leader for each in cluster.partitions(name)] == leaders
    change_replication(cluster, name, 2)
    assert [len(each.in_sync) for each in cluster.partitions(name)] == [2, 2]
    add_partitions(cluster, name, 4)
    assert len(cluster.partitions(name)) == 4
    configure(cluster, name, {"min.insync.replicas": "1"})
    assert cluster.topic(name).settings == {"min.insync.replicas": "1"}
    configure(cluster, name, {"min.insync.replicas": ""})
    assert wait_until(lambda: cluster.topic(name).settings == {}, 30)
    with browsing(cluster, name) as browser:
        assert values(browser.first("earliest", 100)) == list(range(50))
    with pytest.raises(UsageError, match="only rise"):
        add_partitions(cluster, name, 1)
    with pytest.raises(UsageError, match="refuses: INVALID_CONFIG"):
        configure(cluster, name, {"nonsense": "1"})
    delete(cluster, name)
    with pytest.raises(UsageError, match=f"there is no topic '{name}'"):
        cluster.topic(name)


def test_a_broker_that_leaves_and_returns_is_seen_in_leaders_and_isr(kafka: Any, cluster: Cluster, make: Make) -> None:
    name, alone = make(3, 3), make(3, 1)
    before = {each.number: each for each in cluster.partitions(name)}
    victim = 2
    kafka.kill(victim)
    try:
        assert wait_until(lambda: has_left(cluster, victim), 90)
        gone = cluster.partitions(name)
        assert all(set(each.in_sync) == {1, 3} and each.is_under_replicated for each in gone)
        assert victim not in {each.leader for each in gone}
        assert [broker.number for broker in cluster.brokers()] == [1, 3]
        [orphan] = [each for each in cluster.topic(alone).partitions if each.replicas == (victim,)]
        assert (orphan.leader, orphan.low, orphan.end, orphan.offsets_held) == (None, None, None, None)
        with (
            pytest.raises(BrokerUnavailable, match="no leader of"),
            browsing(Cluster(kafka.bootstrap_servers, timeout_s=3), alone) as b,
        ):
            b.last(1)
    finally:
        kafka.start(victim)
    assert wait_until(lambda: has_returned(cluster, victim), 90)
    elect_preferred(cluster)
    # Another broker is asked each time, and may not have heard of the election yet.
    assert wait_until(lambda: {each.number: each for each in cluster.partitions(name)} == before, 30)


def test_nobody_at_the_address_is_said_with_the_address() -> None:
    nowhere = Cluster("127.0.0.1:9", timeout_s=1)
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:9"):
        nowhere.topics()
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:9"):
        nowhere.groups()
