"""A channel for a few questions and declarations over AMQP; pika's errors become the project's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import pika
from pika import exceptions

from streaming.errors import BrokerUnavailable, SetupError, StreamgaugeError, UsageError
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.link import parameters

_MISSING: Final = 404


@contextlib.contextmanager
def channel_of(address: Address) -> Iterator[Any]:
    """A channel for a few questions, at the first node that answers; pika's errors become the project's."""
    try:
        connection = pika.BlockingConnection([parameters(each, "topology") for each in address.nodes])
    except (exceptions.AMQPConnectionError, OSError) as error:
        raise _translated(error, address) from error
    try:
        yield connection.channel()
    except exceptions.AMQPError as error:
        raise _translated(error, address) from error
    finally:
        with contextlib.suppress(exceptions.AMQPError):
            connection.close()


def _translated(error: Exception, address: Address) -> StreamgaugeError:
    code = getattr(error, "reply_code", None)
    if code == _MISSING:
        return UsageError(f"RabbitMQ at {address}: {error}; make the queues first")
    if code == 406:
        return UsageError(f"RabbitMQ at {address}: it exists in another shape: {error}")
    if code == 403 or isinstance(error, exceptions.ProbableAuthenticationError | exceptions.ProbableAccessDeniedError):
        return SetupError(f"RabbitMQ at {address} refuses: {error!r}", "check user, password and permissions")
    return BrokerUnavailable(f"no RabbitMQ answers at {address}: {error!r}")


def ready_in(channel: Any, queue: str) -> int:
    """How many messages are ready in it; raises pika's error when it does not exist."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)
