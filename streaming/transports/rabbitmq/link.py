"""One connection to RabbitMQ on a thread of its own, which is opened again, at the next node, whenever it is lost.

Invariant: heartbeats go on whatever the application's threads do, and pika's objects are touched on this thread only.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from itertools import cycle
from typing import Any, Final

import pika
from pika import exceptions
from pika.channel import Channel

from streaming.errors import BrokerUnavailable, RestartRequired, SetupError, StreamgaugeError
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.wire import BulkConnection

HEARTBEAT_S: Final = 15
CONNECT_TIMEOUT_S: Final = 10.0
# On a busy machine the answer to consuming a long quorum queue has taken longer than the above, again and again: who
# leaves gives back all that was on its way, and the next try takes as long.
GRANT_TIMEOUT_S: Final = 60.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
_FORBIDDEN: Final = 403
_REFUSALS: Final = {403, 404, 406, 530}  # on a first connection: rights, missing or different queues, no such host
_RECEIVE_BYTES: Final = 64 * 1024
# What ends one connection, not the link: pika raises the first between two states, the second when the socket is cut.
_LOST: Final = (exceptions.AMQPError, ConnectionError)

logging.getLogger("pika").setLevel(logging.CRITICAL)  # it reports every lost connection; the link does that


def parameters(address: Address, client: str) -> pika.ConnectionParameters:
    """One node's address in pika's form; `client` is shown by the broker's tools."""
    return pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=pika.PlainCredentials(address.user, address.password, erase_on_connect=False),
        heartbeat=HEARTBEAT_S,
        socket_timeout=CONNECT_TIMEOUT_S,
        client_properties={"connection_name": client},
    )


class Link:
    """Calls `on_open(connection, channel)` and `on_lost()` for each connection that comes or goes, on its thread."""

    def __init__(
        self,
        address: Address,
        client: str,
        *,
        on_open: Callable[[BulkConnection, Channel], None],
        on_lost: Callable[[], None],
        on_data: Callable[[BulkConnection], None] = lambda _: None,
    ) -> None:
        self.is_blocked = False  # the broker has told producers to wait (memory or disk alarm)
        self.connections = 0  # how often a channel was opened
        self.failure: StreamgaugeError | None = None  # why there will be no connection again
        self._address, self._client, self._nodes = address, client, cycle(address.nodes)
        self._on_open, self._on_lost, self._on_data = on_open, on_lost, on_data
        self._connection: BulkConnection | None = None
        self._served = threading.Event()  # since the first time; set for good
        self._is_serving = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{client}-amqp", daemon=True)
        self._thread.start()

    def wait_open(self, timeout_s: float = CONNECT_TIMEOUT_S, granted_s: float = GRANT_TIMEOUT_S) -> None:
        """Return when it serves for the first time. BrokerUnavailable on time-out, SetupError when refused.

        `timeout_s` is for each node. A broker that has opened a channel is there: it gets `granted_s` more to grant
        what was asked for.
        """
        at_all_nodes_s = timeout_s * len(self._address.nodes)
        if not self._served.wait(at_all_nodes_s) and self.connections:
            self._served.wait(granted_s)
        if self.failure:
            raise self.failure
        if not self._served.is_set():
            raise BrokerUnavailable(f"no RabbitMQ answers at {self._address}")

    def serves(self) -> None:
        """To be called on the connection's thread when the broker has granted what was asked for."""
        self._is_serving = True
        self._served.set()

    def call(self, function: Callable[[], object]) -> None:
        """Run `function` on the connection's thread, soon; never if the connection ends before."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(Exception):  # the loop has just ended: as if the connection had ended before
                connection.ioloop.add_callback_threadsafe(function)

    def drop(self) -> None:
        """Let go of the connection and open another: what was delivered and not acknowledged will come again."""
        connection = self._connection
        if connection is not None:
            self.call(connection.leave)

    def close(self) -> None:
        """Close the connection and end the thread."""
        self._closing.set()
        self.drop()
        self._thread.join(CONNECT_TIMEOUT_S)

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._closing.is_set() and not self.failure:
            self._is_serving = False
            self._connect_and_serve()
            wait_s = _FIRST_WAIT_S if self._is_serving else min(2 * wait_s, _LONGEST_WAIT_S)
            self._closing.wait(wait_s)
        self._served.set()

    def _connect_and_serve(self) -> None:
        connection = BulkConnection(
            parameters(next(self._nodes), self._client),
            on_open_callback=self._connected,
            on_open_error_callback=self._ended,
            on_close_callback=self._ended,
        )
        connection.on_deliveries = lambda: self._on_data(connection)
        connection.add_on_connection_blocked_callback(lambda *_: self._block(is_blocked=True))
        connection.add_on_connection_unblocked_callback(lambda *_: self._block(is_blocked=False))
        self._connection = connection
        if not self._closing.is_set():
            self._serve(connection)
        self._connection = None
        self._block(is_blocked=False)
        connection.ioloop.close()
        self._on_lost()

    def _serve(self, connection: BulkConnection) -> None:
        """Run the connection's loop until it ends; an error in a callback ends it too, and never only the thread."""
        try:
            connection.ioloop.start()
        except Exception as error:  # noqa: BLE001 - raised to whoever uses the link
            if not isinstance(error, _LOST):
                self.failure = RestartRequired(f"{self._client}: the connection's thread has failed: {error!r}")
            connection.abandon()

    def _connected(self, connection: BulkConnection) -> None:
        connection.receive_in_pieces_of(_RECEIVE_BYTES)
        connection.channel(on_open_callback=lambda channel: self._channel_open(connection, channel))

    def _channel_open(self, connection: BulkConnection, channel: Channel) -> None:
        channel.add_on_close_callback(lambda _, reason: self._channel_closed(connection, reason))
        self.connections += 1
        self._on_open(connection, channel)

    def _channel_closed(self, connection: BulkConnection, reason: Exception) -> None:
        self._judge(reason)
        if connection.is_open:
            connection.close()

    def _ended(self, connection: Any, reason: Exception | str) -> None:
        self._judge(reason)
        connection.ioloop.stop()

    def _judge(self, reason: Exception | str) -> None:
        """Note the failure if trying again would not help."""
        has_served = self._served.is_set()
        final = {_FORBIDDEN} if has_served else _REFUSALS
        refused = isinstance(reason, exceptions.ProbableAuthenticationError | exceptions.ProbableAccessDeniedError)
        if (refused and not has_served) or getattr(reason, "reply_code", None) in final:
            self.failure = SetupError(
                f"RabbitMQ at {self._address} refuses {self._client}: {reason}",
                "check that the queues were made, and the user's password and permissions",
            )

    def _block(self, *, is_blocked: bool) -> None:
        self.is_blocked = is_blocked
