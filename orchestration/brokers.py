"""The brokers a lab can run the application on, by name: Kafka, RabbitMQ's queues, RabbitMQ's streams.

Each of them carries a whole application of its own, from the generators to the tables; the two RabbitMQ patterns share
nodes and nothing else. Invariant: a role is a user of its own there, who may do that role's part and no more.
"""

from __future__ import annotations

from typing import Final, Protocol

from streaming.cluster import rabbitmq
from streaming.cluster.rabbitmq import OPERATOR, Credentials, NodePorts, Nodes
from streaming.codecs import codec
from streaming.errors import BrokerUnavailable, UsageError
from streaming.home import Home
from streaming.interfaces import Transactional, Transport
from streaming.lab import KAFKA, QUEUES, RABBITMQ_STREAMS, Lab
from streaming.topology import STREAMS, stream
from streaming.transports.kafka import KafkaTransport
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.queues import RabbitQueues
from streaming.transports.rabbitmq.streams import RabbitStreams

_VHOSTS: Final = {QUEUES: rabbitmq.VHOST, RABBITMQ_STREAMS: rabbitmq.STREAM_VHOST}


class Wired(Transport, Transactional, Protocol):
    """A transport that can do all that the application's roles need."""


def transport_of(home: Home, lab: Lab, broker: str, user: str = OPERATOR) -> Wired:
    """The broker as `user` (a role's name) sees it; who verifies or makes queues is the operator.

    BrokerUnavailable when Kafka does not answer; the others connect when they are asked for something.
    """
    if broker == KAFKA:
        return KafkaTransport(lab.kafka, prefix=lab.prefix)
    address, outboxes = address_of(home, lab, broker, user), home.outboxes(broker)
    if broker == QUEUES:
        return RabbitQueues(address, outbox=outboxes, codec=lambda name: codec(lab.codec, stream(name).schema))
    return RabbitStreams(address, outbox=outboxes)


def address_of(home: Home, lab: Lab, broker: str, user: str) -> Address:
    """Where RabbitMQ is and as whom to talk to it. UsageError for a broker that is none of RabbitMQ's patterns."""
    if broker not in _VHOSTS:
        raise UsageError(f"--broker {broker}: {KAFKA}, {QUEUES} or {RABBITMQ_STREAMS}")
    if not (home.brokers("rabbitmq") / "credentials.json").exists():
        raise BrokerUnavailable(f"this lab has no RabbitMQ; start it with: streamgauge up --brokers {KAFKA},{broker}")
    passwords = Credentials.of(home.brokers("rabbitmq")).passwords
    ports = node_ports(lab, 1)
    return Address(
        ports.amqp,
        user,
        passwords[user],
        stream_port=ports.stream,
        management_port=ports.management,
        vhost=_VHOSTS[broker],
        prefix=lab.prefix,
    )


def create_streams(home: Home, lab: Lab) -> None:
    """Make topics, queues and streams where they are missing, on each of the lab's brokers."""
    for broker in lab.brokers:
        replication = lab.replication if broker == KAFKA else lab.rabbitmq_nodes
        transport_of(home, lab, broker).create(STREAMS.values(), replication=replication)


def rabbitmq_of(home: Home, lab: Lab) -> Nodes:
    """The lab's own RabbitMQ nodes as data."""
    listening = [node_ports(lab, number) for number in range(1, lab.rabbitmq_nodes + 1)]
    return rabbitmq.describe(home.brokers("rabbitmq"), listening, epmd_port(lab), logs=home.logs)


def node_ports(lab: Lab, number: int) -> NodePorts:
    """Where RabbitMQ node `number` (1, 2, 3) listens."""
    first = lab.port_base + 30 + 10 * number
    # The ports on which streams are copied are looked for, so the nodes can share their range.
    return NodePorts(first, first + 1, first + 2, first + 3, first + 4, lab.port_base + 100)


def epmd_port(lab: Lab) -> int:
    """Where RabbitMQ's nodes find each other."""
    return lab.port_base + 39


def service_name(broker: str, role: str) -> str:
    """The supervised process of a role: Kafka's carry the role's name, the others their broker's before it."""
    return role if broker == KAFKA else f"{broker}.{role}"
