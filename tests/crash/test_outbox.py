"""A transformer's outbox on RabbitMQ, killed at each named moment of its commits: nothing is lost or counted twice.

The broker is the one in memory, the outbox and its two ways to know input (offsets, identities) are the real ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from streaming.batch import Outgoing
from streaming.interfaces import Keeper, Source
from streaming.topology import Stream, StreamKind
from streaming.transports.memory import MemoryTransport
from streaming.transports.rabbitmq.outbox import Input, OutboxTransaction
from streaming.transports.rabbitmq.queue_flow import QueueInput, QueueOutput
from streaming.transports.rabbitmq.stream_flow import StreamInput
from tests.brokers.rabbitmq_scenes import OUTBOX_MOMENTS
from tests.conformance.rabbitmq_scenes import NumberCodec
from tests.conformance.scenes import numbers


class Killed(BaseException):
    """Stands for SIGKILL: nothing below may catch it."""


def input_of(kind: str, broker: MemoryTransport) -> Input:
    def source(keeper: Keeper) -> Source:
        return broker.source("events", "counter", keeper)

    if kind == "queue":
        return QueueInput(source, NumberCodec())
    return StreamInput(source, "events", broker.identity("events").topic_id)


def live(folder: Path, broker: MemoryTransport, kind: str, kill_at: str = "") -> int:
    """One process, which publishes each event as a result and counts them; returns the count of all lives."""
    counted, is_open = 0, False

    def restore(_: int, state: bytes | None) -> None:
        nonlocal counted
        counted = int(state or 0)

    def checkpoint(reached: str) -> None:
        if is_open and reached == kill_at:
            raise Killed

    transaction = OutboxTransaction(
        folder,
        input_of(kind, broker),
        QueueOutput(lambda: broker.publisher("counter")),
        restore=restore,
        forget=lambda _: None,
        checkpoint=checkpoint,
    )
    is_open = True
    try:
        while batches := transaction.poll(0):
            [batch] = batches
            counted += len(batch)
            results = Outgoing("results", list(batch.values), [b"k"] * len(batch))
            transaction.commit([results], {0: b"%d" % counted}, {0: batch.next_offset})
        transaction.commit([], {}, {})  # as the service does, whether anything has come or not
    finally:
        transaction.close()  # the lock goes with the process
    return counted


@pytest.mark.parametrize("kind", ["queue", "stream"])
@pytest.mark.parametrize("moment", OUTBOX_MOMENTS)
def test_killed_at_any_moment_each_event_is_counted_once_and_its_result_is_there(
    tmp_path: Path, moment: str, kind: str
) -> None:
    broker = MemoryTransport()
    broker.create([Stream(name, StreamKind.SOURCE, "", 1) for name in ("events", "results")], replication=1)
    publisher = broker.publisher("tests")
    for first in range(0, 40, 10):
        publisher.publish(Outgoing("events", numbers(first, first + 10), [b"k"] * 10))
        with pytest.raises(Killed):
            live(tmp_path, broker, kind, moment)
    assert live(tmp_path, broker, kind) == 40
    assert live(tmp_path, broker, kind) == 40, "and nothing is left to be done"

    [results] = broker.read_all("results")
    assert list(dict.fromkeys(results.values)) == numbers(0, 40), "the first copy of each, in order"
    has_copies = len(results) > 40
    assert has_copies == (moment == "after_confirms"), "a copy only of what was confirmed and not noted as sent"
    if kind == "queue":
        assert broker.committed("events", "counter") == {0: 40}, "all is acknowledged"
