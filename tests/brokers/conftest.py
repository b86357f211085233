"""One real RabbitMQ node for the whole session, started by the first test that asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streaming.cluster.rabbitmq import DisposableRabbitMQ


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[DisposableRabbitMQ]:
    """A node. A test that stops, alarms or pauses it must bring it back; names need a prefix of the test's own."""
    with DisposableRabbitMQ() as node:
        yield node
