"""What RabbitMQ is known for doing to the careless, provoked with plain pika, beside what a careful client gets."""

from __future__ import annotations

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from streaming.cluster.rabbitmq import DisposableRabbitMQ
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.declaring import channel_of, ready_in
from tests.brokers.rabbitmq_scenes import address, until

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(280)]
TRANSIENT, PERSISTENT = 1, 2


def fill(channel: BlockingChannel, queue: str, count: int, mode: int = TRANSIENT) -> None:
    """Messages that the broker has confirmed."""
    for number in range(count):
        channel.basic_publish("", queue, b"%d" % number, pika.BasicProperties(delivery_mode=mode))


def test_a_killed_node_keeps_what_was_persistent_and_confirmed_and_nothing_else(rabbitmq: DisposableRabbitMQ) -> None:
    there = address(rabbitmq)
    queues = {mode: f"{there.prefix}mode-{mode}" for mode in (TRANSIENT, PERSISTENT)}
    with channel_of(there) as channel:
        channel.confirm_delivery()
        for mode, queue in queues.items():
            channel.queue_declare(queue, durable=True)
            fill(channel, queue, 500, mode)
        assert [ready_in(channel, queue) for queue in queues.values()] == [500, 500]
    rabbitmq.kill(1)
    rabbitmq.start(1)
    with channel_of(there) as channel:
        assert [ready_in(channel, queue) for queue in queues.values()] == [0, 500]
        for queue in queues.values():
            channel.queue_delete(queue)


def test_without_a_prefetch_one_consumer_is_pushed_the_whole_backlog(rabbitmq: DisposableRabbitMQ) -> None:
    there = address(rabbitmq)
    queue, backlog = f"{there.prefix}backlog", 20_000
    with channel_of(there) as channel:
        channel.queue_declare(queue, durable=True)
        fill(channel, queue, backlog)
        until(lambda: ready_in(channel, queue) == backlog)
        assert pushed(there, queue, prefetch=0) == backlog
        until(lambda: ready_in(channel, queue) == backlog)  # it was given back
        assert pushed(there, queue, prefetch=100) == 100
        channel.queue_delete(queue)


def pushed(there: Address, queue: str, *, prefetch: int) -> int:
    """How many messages lie unacknowledged in a consumer that is busy with its first one."""
    taken: list[int] = []
    with channel_of(there) as channel, channel_of(there) as observer:
        backlog = ready_in(observer, queue)
        if prefetch:
            channel.basic_qos(prefetch_count=prefetch)
        channel.basic_consume(queue, lambda _, method, __, ___: taken.append(method.delivery_tag))
        wanted = prefetch or backlog

        def is_settled() -> bool:
            channel.connection.process_data_events(time_limit=0.1)
            return len(taken) >= wanted and ready_in(observer, queue) == backlog - len(taken)

        until(is_settled)
        return len(taken)
