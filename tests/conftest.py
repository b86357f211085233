"""What several test files share: one real Kafka cluster and one RabbitMQ node, each started by the first that asks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from streaming.cluster.kafka import DisposableCluster
from streaming.cluster.rabbitmq import DisposableRabbitMQ

# A test's brokers live for seconds: Java's optimising compiler would take a third of all their processor time.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")


@pytest.fixture(scope="session")
def kafka() -> Iterator[DisposableCluster]:
    """Three real brokers. A test that stops, kills or pauses one must bring it back; topics need names of their own."""
    with DisposableCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[DisposableRabbitMQ]:
    """A node. A test that stops, alarms or pauses it must bring it back; names need a prefix of the test's own."""
    with DisposableRabbitMQ() as node:
        yield node
