"""Changing topics that are not the application's: make, alter, delete; and what a change must wait for.

Invariant: a topic of the application is never touched here, nor one of Kafka's own: each is refused with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import ElectionType, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # the package has them, its stubs do not
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from streaming.cluster.reassignment import Moves, reassign
from streaming.errors import BrokerUnavailable, UsageError
from streaming.topology import STREAMS
from streaming.transports.kafka import failures
from streaming.transports.kafka.inspection import Cluster, Partition, is_internal, wait_until

SETTLE_TIMEOUT_S: Final = 60.0


def insist_on_foreign(topic: str) -> None:
    """UsageError when a topic is the application's or Kafka's own."""
    if topic in STREAMS:
        raise UsageError(
            f"{topic} is a topic of the application and stays as streaming/topology.py declares it: with more "
            f"partitions a key would move to another one, so that its order and its open windows would be torn apart, "
            f"and a deleted topic's files would have no source. Use a topic of your own: streamgauge topic create"
        )
    if is_internal(topic):
        raise UsageError(f"{topic} is Kafka's own; streamgauge topic changes only topics of yours")


def create(cluster: Cluster, topic: str, *, partitions: int, replication: int, settings: Mapping[str, str]) -> None:
    """Make a topic and wait until each partition has a leader. UsageError when the cluster refuses it."""
    insist_on_foreign(topic)
    spec = NewTopic(topic, partitions, replication, config=dict(settings))
    _done(cluster, cluster.admin.create_topics([spec], request_timeout=cluster.timeout_s)[topic])

    def is_led() -> bool:
        found = cluster.layout([topic])
        return len(found) == partitions and all(each.leader is not None for each in found)

    _insist(cluster, is_led, f"the leaders of {topic}")


def add_partitions(cluster: Cluster, topic: str, partitions: int) -> None:
    """Raise the number of partitions and wait for the new leaders. UsageError for fewer: Kafka can't."""
    insist_on_foreign(topic)
    before = len(cluster.partitions(topic))
    if partitions < before:
        raise UsageError(
            f"{topic} has {before} partitions: their number can only rise, records would be lost otherwise"
        )
    if partitions == before:
        return
    asked = cluster.admin.create_partitions([NewPartitions(topic, partitions)], request_timeout=cluster.timeout_s)
    _done(cluster, asked[topic])
    _insist(cluster, lambda: len(_led(cluster.layout([topic]))) == partitions, f"the leaders of {topic}")


def change_replication(cluster: Cluster, topic: str, replication: int, *, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
    """Change the number of copies by a reassignment and wait until all are in sync.

    UsageError when there are fewer brokers alive than copies asked for.
    """
    insist_on_foreign(topic)
    moves = reassigned(cluster.partitions(topic), [each.number for each in cluster.brokers()], replication)
    if not moves:
        return
    reassign(cluster.bootstrap_servers, moves)

    def is_there() -> bool:
        found = {(each.topic, each.number): each for each in cluster.layout([topic])}
        return all(
            found[place].replicas == tuple(brokers) and set(found[place].in_sync) == set(brokers)
            for place, brokers in moves.items()
        )

    _insist(cluster, is_there, f"{replication} copies in sync of {topic}", timeout_s)


def reassigned(partitions: Sequence[Partition], brokers: Sequence[int], replication: int) -> Moves:
    """Where each partition's copies should lie so that there are `replication`: only the partitions that change.

    Copies stay where they are as far as possible, the preferred leader always; new ones go to the brokers that keep
    the fewest of this topic. UsageError when there are too few brokers.
    """
    if not 1 <= replication <= len(brokers):
        raise UsageError(f"--replication-factor {replication}: 1 to {len(brokers)}, for so many brokers are alive")
    load = Counter(broker for each in partitions for broker in each.replicas)
    moves = {}
    for each in partitions:
        kept = list(each.replicas[:replication])
        load.subtract(each.replicas[replication:])
        while len(kept) < replication:
            chosen = min(
                (broker for broker in brokers if broker not in kept), key=lambda broker: (load[broker], broker)
            )
            load[chosen] += 1
            kept.append(chosen)
        if tuple(kept) != each.replicas:
            moves[each.topic, each.number] = kept
    return moves


def configure(cluster: Cluster, topic: str, settings: Mapping[str, str]) -> None:
    """Set settings of a topic under the broker's own names; an empty value takes one back to the default."""
    insist_on_foreign(topic)
    cluster.partitions(topic)
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET if value else AlterConfigOpType.DELETE)
        for name, value in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    asked = cluster.admin.incremental_alter_configs([resource], request_timeout=cluster.timeout_s)
    _done(cluster, asked[resource])
    # A broker tells of it when it has heard of it, which may be a moment later.
    wanted = {name: value for name, value in settings.items() if value}
    _insist(cluster, lambda: wanted.items() <= cluster.topic(topic).settings.items(), f"the settings of {topic}")


def delete(cluster: Cluster, topic: str) -> None:
    """Delete a topic with all its records, and wait until the cluster no longer names it."""
    insist_on_foreign(topic)
    cluster.partitions(topic)
    _done(cluster, cluster.admin.delete_topics([topic], request_timeout=cluster.timeout_s)[topic])
    _insist(cluster, lambda: not cluster.layout([topic]), f"the end of {topic}")


def elect_preferred(cluster: Cluster) -> None:
    """Give each partition back to its preferred leader, where that one is in sync.

    Asked for again until it is so: the controller may know less of a broker that has just returned than brokers say.
    """

    def are_back() -> bool:
        away = [
            TopicPartition(each.topic, each.number)
            for each in cluster.layout()
            if each.leader != each.replicas[0] and each.replicas[0] in each.in_sync
        ]
        if away:
            # No request_timeout: the client (confluent-kafka 2.16) fails with a SystemError when it is given one here.
            _done(cluster, cluster.admin.elect_leaders(ElectionType.PREFERRED, away))
        return not away

    _insist(cluster, are_back, "the election of the preferred leaders")


def has_left(cluster: Cluster, broker: int) -> bool:
    """Whether the cluster knows that a broker is gone: it is not listed, leads nothing, is in sync with nothing.

    A partition that lives on this broker alone keeps it in its ISR, without a leader.
    """
    is_listed = any(each.number == broker for each in cluster.brokers())
    return not is_listed and all(
        each.leader != broker and (broker not in each.in_sync or each.leader is None) for each in cluster.layout()
    )


def has_returned(cluster: Cluster, broker: int) -> bool:
    """Whether a broker is listed and each of its copies is in sync again."""
    is_listed = any(each.number == broker for each in cluster.brokers())
    return is_listed and all(
        broker in each.in_sync and each.leader is not None for each in cluster.layout() if broker in each.replicas
    )


def _led(partitions: Sequence[Partition]) -> list[Partition]:
    return [each for each in partitions if each.leader is not None]


def _insist(cluster: Cluster, condition: Callable[[], bool], what: str, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
    if not wait_until(condition, timeout_s):
        raise BrokerUnavailable(f"{cluster.bootstrap_servers}: {what}: not within {timeout_s:.0f} s; look again later")


def _done(cluster: Cluster, future: Any) -> None:
    """A change that the cluster has accepted. UsageError with its reason when it refuses."""
    try:
        future.result()
    except KafkaException as exception:
        error = failures.error_of(exception)
        if failures.is_passing(error):
            raise failures.unavailable(cluster.bootstrap_servers, error) from exception
        raise UsageError(f"{cluster.bootstrap_servers} refuses: {error.name()}: {error.str()}") from exception
