"""What several test files share: one real Kafka cluster for the whole session, started by the first test that asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streaming.cluster.kafka import DisposableCluster


@pytest.fixture(scope="session")
def kafka() -> Iterator[DisposableCluster]:
    """Three real brokers. A test that stops, kills or pauses one must bring it back; topics need names of their own."""
    with DisposableCluster() as cluster:
        yield cluster
