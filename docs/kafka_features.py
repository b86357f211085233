"""Which features of Kafka the application uses, by which settings, and why; the values are read from the code.

Invariant: no value is written here. A setting that is no longer there is an error of `make docs`, and so of its test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from streaming.cluster import kafka
from streaming.cluster.kafka import BrokerPorts
from streaming.topology import STREAMS
from streaming.transports.kafka import settings

BROKER: Final = kafka.describe(Path("home"), [BrokerPorts(1, 2)] * 3)[0].settings
PLACES: Final[Mapping[str, Mapping[str, object]]] = {
    "broker": BROKER,
    "producer": settings.PRODUCER,
    "transactional producer": settings.TRANSACTIONAL_PRODUCER,
    "consumer": settings.CLASSIC_CONSUMER,
    **{f"topic {name}": stream.settings for name, stream in STREAMS.items()},
}
FEATURES: Final = (
    (
        "KRaft: brokers are their own controllers",
        "broker",
        ("process.roles", "controller.listener.names"),
        "no ZooKeeper; three processes are a whole cluster that survives the loss of one",
    ),
    (
        "Listeners and advertised names",
        "broker",
        ("listener.security.protocol.map", "inter.broker.listener.name"),
        "clients and controllers have ports of their own; what is advertised is what a client on this machine reaches",
    ),
    (
        "Replication",
        "broker",
        ("default.replication.factor", "min.insync.replicas"),
        "two brokers at least have a confirmed record: one may be lost; with two gone the producers wait",
    ),
    (
        "No unclean election",
        "broker",
        ("unclean.leader.election.enable",),
        "a replica that lags never leads: unavailable for a while is better than lost",
    ),
    (
        "No topics by accident",
        "broker",
        ("auto.create.topics.enable",),
        "topics are made from streaming/topology.py, with its partitions and settings, and by nobody else",
    ),
    (
        "Coordinators as safe as the data",
        "broker",
        (
            "offsets.topic.replication.factor",
            "transaction.state.log.replication.factor",
            "transaction.state.log.min.isr",
        ),
        "groups and transactions go on when a broker is lost",
    ),
    (
        "Idempotent producer",
        "producer",
        ("enable.idempotence", "acks"),
        "a retry after a lost answer is not a second record, and order within a partition is kept",
    ),
    (
        "Batching and compression",
        "producer",
        ("linger.ms", "batch.num.messages", "compression.type"),
        "many records a request; lz4, because zstd can stall a reader for good (librdkafka #5260)",
    ),
    (
        "Keys and partitions",
        "producer",
        ("partitioner",),
        "the vehicle is the key: its records stay in order, and Java's clients would choose the same partition",
    ),
    (
        "Back-pressure instead of loss",
        "producer",
        ("message.timeout.ms", "queue.buffering.max.messages"),
        "0: nothing is given up; an outage fills the bounded queue and then blocks the sender",
    ),
    (
        "Transactions",
        "transactional producer",
        ("transaction.timeout.ms", "message.max.bytes"),
        "outputs, state and input offsets of a transformer become visible together; an orphan blocks readers briefly",
    ),
    (
        "Committed readers",
        "consumer",
        ("isolation.level", "check.crcs"),
        "nobody reads what may still be aborted",
    ),
    (
        "The position lives in the files",
        "consumer",
        ("enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset"),
        "the sink's newest slot says where to resume; the group's offset is a hint for lag tools, a gap an error",
    ),
    (
        "Consumer groups with static members",
        "consumer",
        ("group.protocol", "partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"),
        "a restarted role gets its partitions back; a rebalance moves only what has to move",
    ),
    (
        "Flow control of fetching",
        "consumer",
        ("fetch.wait.max.ms", "queued.max.messages.kbytes", "fetch.queue.backoff.ms"),
        "bounded memory; a short rest when the queue is full, where the default starves a fast reader",
    ),
    (
        "Retention by time",
        "topic positions",
        ("cleanup.policy", "retention.ms"),
        "seven days of events to replay from; older ones are in the warehouse",
    ),
    (
        "Compaction for reference data",
        "topic vehicles",
        ("cleanup.policy", "segment.ms", "min.cleanable.dirty.ratio"),
        "the last record a vehicle is kept, so the whole table can be read at every start",
    ),
    (
        "Compaction for state",
        "topic means_state",
        ("cleanup.policy", "segment.bytes", "max.message.bytes"),
        "a snapshot a partition, the newest kept; one record must hold it",
    ),
)


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Feature, where it is set, settings with their values, reason."""
    for feature, place, names, reason in FEATURES:
        yield feature, place, "<br>".join(f"`{name}={_plain(PLACES[place][name])}`" for name in names), reason


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
