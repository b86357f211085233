"""The brokers a lab can run the application on, by name: Kafka, RabbitMQ's queues, RabbitMQ's streams.

Each of them carries a whole application of its own, from the generators to the tables; the two RabbitMQ patterns share
nodes and nothing else. Invariant: a role is a user of its own there, who may do that role's part and no more. On
somebody else's RabbitMQ all are the one user of its URL, and every name begins with the pattern's (`rabbitmq.`).
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from streaming.cluster import guests, rabbitmq
from streaming.cluster.rabbitmq import OPERATOR, Credentials, NodePorts, Nodes
from streaming.codecs import codec
from streaming.errors import BrokerUnavailable, SetupError, UsageError
from streaming.home import Home
from streaming.interfaces import Transactional, Transport
from streaming.lab import KAFKA, QUEUES, RABBITMQ_STREAMS, Lab
from streaming.topology import STREAMS, stream
from streaming.transports.kafka import KafkaTransport
from streaming.transports.rabbitmq import url
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.queue_source import PREFETCH
from streaming.transports.rabbitmq.queues import RabbitQueues
from streaming.transports.rabbitmq.streams import RabbitStreams


class Wired(Transport, Transactional, Protocol):
    """A transport that can do all that the application's roles need."""


def transport_of(home: Home, lab: Lab, broker: str, user: str = OPERATOR) -> Wired:
    """The broker as `user` (a role's name) sees it; who verifies or makes queues is the operator.

    BrokerUnavailable when Kafka does not answer; the others connect when they are asked for something.
    """
    if broker == KAFKA:
        return KafkaTransport(lab.kafka, prefix=lab.prefix, tuning=lab.tuning)
    address, outboxes = address_of(home, lab, broker, user), home.outboxes(broker)
    if broker == QUEUES:
        return RabbitQueues(
            address,
            prefetch=lab.tuning.prefetch or PREFETCH,
            outbox=outboxes,
            codec=lambda name: codec(lab.codec, stream(name).schema),
        )
    return RabbitStreams(address, outbox=outboxes)


def address_of(home: Home, lab: Lab, broker: str, user: str) -> Address:
    """Where RabbitMQ is and as whom to talk to it. UsageError for a broker that is none of RabbitMQ's patterns."""
    if broker not in guests.VHOSTS:
        raise UsageError(f"--broker {broker}: {KAFKA}, {QUEUES} or {RABBITMQ_STREAMS}")
    if lab.rabbitmq_url is not None:
        return _foreign(home, lab.rabbitmq_url, f"{lab.prefix}{broker}.")
    password, vhost = _password(home, lab, broker, user), guests.vhost_of(lab.prefix, broker)
    hosts = lab.rabbitmq_host.split(",")

    def at(number: int) -> Address:
        own = node_ports(lab, number)
        amqp, streams, management = lab.rabbitmq_ports or (own.amqp, own.stream, own.management)
        host = hosts[(number - 1) % len(hosts)]
        return Address(amqp, user, password, host=host, stream_port=streams, management_port=management, vhost=vhost)

    numbers = range(2, 1 + (1 if lab.rabbitmq_ports else lab.rabbitmq_nodes))
    return replace(at(1), others=tuple(map(at, numbers)))


def _password(home: Home, lab: Lab, broker: str, user: str) -> str:
    """A user's, of the lab's own nodes. BrokerUnavailable when there are none, SetupError when it is not for us."""
    path = home.brokers("rabbitmq") / "credentials.json"
    try:
        if not path.exists():
            start = f"streamgauge up --brokers {KAFKA},{broker}"
            if lab.in_containers:
                start = "docker compose -f docker/compose.yaml --profile rabbitmq up --detach"
            raise BrokerUnavailable(f"this lab has no RabbitMQ; start it with: {start}")
        return Credentials.of(path.parent).passwords[user]
    except PermissionError as error:
        remedy = f"call it as the user who owns {path}, or as root (sudo)"
        if lab.in_containers:
            inside = "docker compose -f docker/compose.yaml exec dagster-code streamgauge COMMAND --broker"
            remedy = f"call it in a container: {inside} {broker}; or as root, or as user 10001 (sudo)"
        raise SetupError(f"RabbitMQ's passwords in {path} are not for user {os.geteuid()}", remedy) from error


def remember(home: Home, rabbitmq_url: str) -> str:
    """Keep the URL of somebody else's RabbitMQ where only the home's owner can read it; returns it without password.

    UsageError when it is none.
    """
    kept = url.without_password(url.address_of(rabbitmq_url))
    path = _urls(home)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = json.loads(path.read_text()) if path.exists() else {}
    rabbitmq.write_secret(path, json.dumps(known | {kept: rabbitmq_url}))
    return kept


def _foreign(home: Home, kept: str, prefix: str) -> Address:
    """What remember() has kept under that name."""
    try:
        address = url.address_of(json.loads(_urls(home).read_text())[kept])
    except (OSError, ValueError, KeyError):
        raise SetupError(
            f"the password for {kept} is not in {_urls(home)}", "say it again: streamgauge up --rabbitmq-url URL"
        ) from None
    return replace(address, prefix=prefix, others=tuple(replace(each, prefix=prefix) for each in address.others))


def _urls(home: Home) -> Path:
    return home.brokers("rabbitmq") / "urls.json"


def create_streams(home: Home, lab: Lab) -> None:
    """Make topics, queues and streams where they are missing, on each of the lab's brokers."""
    for broker in lab.brokers:
        replication = lab.replication if broker == KAFKA else lab.rabbitmq_nodes
        streams = [each.shaped(lab.tuning.partitions) for each in STREAMS.values()]
        transport_of(home, lab, broker).create(streams, replication=replication)


def rabbitmq_of(home: Home, lab: Lab) -> Nodes:
    """The lab's own RabbitMQ nodes as data; whether it has any is lab.owns_rabbitmq."""
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
