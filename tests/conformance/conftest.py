"""The scene of a conformance test, once for each transport."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from streaming.errors import StreamgaugeError
from tests.conformance.scenes import EVENTS, RESULTS, STATE, Broker, KafkaBroker, MemoryBroker, Scene


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.brokers)])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    broker: Broker = (
        MemoryBroker() if request.param == "memory" else KafkaBroker(request.getfixturevalue("kafka").bootstrap_servers)
    )
    made = Scene(broker)
    made.transport.create([EVENTS, RESULTS, STATE], replication=3)
    yield made
    for opened in reversed(made.opened):
        with suppress(StreamgaugeError):
            opened.close()
