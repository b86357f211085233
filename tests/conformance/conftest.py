"""The scene of a conformance test, once for each transport that can do what the test asks for.

`scene`: all of them. `replayable`: those whose records have offsets that last. `partitioned`: those that have several
partitions too, groups whose members share them, retention by offset and the broker's own transactions.

RabbitMQ is the installed one, or with STREAMGAUGE_TEST_RABBITMQ_URL (see transports/rabbitmq/url.py) any other.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from streaming.errors import StreamgaugeError
from streaming.transports.rabbitmq import url
from tests.brokers.rabbitmq_scenes import address
from tests.conformance.rabbitmq_scenes import QueueBroker, StreamBroker
from tests.conformance.scenes import EVENTS, RESULTS, STATE, Broker, KafkaBroker, MemoryBroker, Scene

QUEUES = pytest.param("rabbitmq", marks=pytest.mark.brokers)
STREAMS = pytest.param("rabbitmq-stream", marks=pytest.mark.brokers)
KAFKA = pytest.param("kafka", marks=pytest.mark.brokers)


@pytest.fixture(params=["memory", KAFKA, STREAMS, QUEUES])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    yield from _made(request, tmp_path)


@pytest.fixture(params=["memory", KAFKA, STREAMS])
def replayable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    yield from _made(request, tmp_path)


@pytest.fixture(params=["memory", KAFKA])
def partitioned(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    yield from _made(request, tmp_path)


def _made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(_broker(request, tmp_path / "outbox"))
    made.transport.create([EVENTS, RESULTS, STATE], replication=3 if request.param == "kafka" else 1)
    yield made
    for opened in reversed(made.opened):
        with suppress(StreamgaugeError):
            opened.close()
    made.broker.close()


def _broker(request: pytest.FixtureRequest, outbox: Path) -> Broker:
    if request.param == "memory":
        return MemoryBroker()
    if request.param == "kafka":
        return KafkaBroker(request.getfixturevalue("kafka").bootstrap_servers)
    if given := os.environ.get("STREAMGAUGE_TEST_RABBITMQ_URL"):
        at = replace(url.address_of(given), prefix=f"t{uuid.uuid4().hex[:8]}-")
    else:
        at = address(request.getfixturevalue("rabbitmq"))
    return QueueBroker(at, outbox) if request.param == "rabbitmq" else StreamBroker(at, outbox)
