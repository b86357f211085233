"""Publishing to queues: persistent, mandatory, confirmed within a bounded window; implements interfaces.Publisher.

Invariant: a message leaves the window only when the broker has confirmed it. After a lost connection everything in the
window is sent again, in order: the broker may hold such a message twice, and its identity, which is part of the
payload, lets the next stage drop the second. A message that the broker refuses (a full queue) is sent again later.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import islice, takewhile
from typing import Any, Final

from pika import spec
from pika.channel import Channel

from streaming.batch import Outgoing
from streaming.errors import OutcomeUnknown, SetupError, StreamgaugeError
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.link import Link
from streaming.transports.rabbitmq.wire import BulkConnection, messages

WINDOW: Final = 5_000  # messages sent and not confirmed
PATIENCE_S: Final = 120.0  # how long without a connection or a confirm; Kafka's delivery.timeout.ms
_PIECE: Final = 500  # messages handed over at once
_REFUSED_WAIT_S: Final = 0.25
_CLOSE_TIMEOUT_S: Final = 10.0


class QueuePublisher:
    """A publisher with its own connection. `publish()` blocks while the window is full or the broker is blocked."""

    def __init__(self, address: Address, client: str, *, window: int = WINDOW, patience_s: float = PATIENCE_S) -> None:
        self._exchange, self._prefix, self._client = address.exchange, address.prefix, client
        self._window, self._patience_s = window, patience_s
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()  # not sent yet
        self._unconfirmed: dict[int, bytes] = {}  # delivery tag → message, rising
        self._refused = 0  # waiting to be sent again
        self._next_tag = 1
        self._connection: BulkConnection | None = None
        self._moved_at = time.monotonic()  # when a confirm, or a connection, came or went
        self._failure: StreamgaugeError | None = None
        self._frame_max = 0
        self.resent = 0  # messages that were sent again after a lost connection or a refusal
        self._link = Link(address, client, on_open=self._opened, on_lost=self._lost)
        self._link.wait_open()

    @property
    def is_blocked(self) -> bool:
        """Whether the broker has told producers to wait (memory or disk alarm)."""
        return self._link.is_blocked

    @property
    def outstanding(self) -> int:
        """Messages waiting, sent and not confirmed, or refused and to be sent again."""
        return len(self._waiting) + len(self._unconfirmed) + self._refused

    def publish(self, outgoing: Outgoing) -> None:
        """Send the records; blocks while the window is full. See interfaces.Publisher."""
        encoded = messages(self._exchange, outgoing.stream, outgoing.values, outgoing.keys, self._frame_max)
        while piece := list(islice(encoded, _PIECE)):
            with self._changed:
                self._wait_for(lambda: self.outstanding < self._window, None)
                self._waiting.extend(piece)
            self._link.call(self._send)

    def flush(self, timeout_s: float) -> bool:
        """True when everything is confirmed in time."""
        with self._changed:
            return self._wait_for(lambda: self.outstanding == 0, timeout_s)

    def close(self) -> None:
        """Flush what can be flushed and let go."""
        try:
            self.flush(_CLOSE_TIMEOUT_S)
        except StreamgaugeError:  # has been raised to whoever published
            pass
        finally:
            self._link.close()

    def _wait_for(self, is_done: Any, timeout_s: float | None) -> bool:
        """Wait, under the lock, until `is_done()`; False on time-out. Raises what has gone wrong for good."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._raise_failure()
            if is_done():
                return True
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            self._changed.wait(min(1.0, deadline - now if deadline is not None else 1.0))

    def _raise_failure(self) -> None:
        if failure := self._failure or self._link.failure:
            raise failure
        if self.is_blocked or not self.outstanding:
            self._moved_at = time.monotonic()
        if time.monotonic() - self._moved_at > self._patience_s:
            what = "connection" if self._connection is None else "confirm"
            self._failure = OutcomeUnknown(
                f"{self._client}: no {what} for {self._patience_s:.0f} s, {self.outstanding} messages unconfirmed"
            )
            raise self._failure

    # From here on: on the connection's thread.

    def _opened(self, connection: BulkConnection, channel: Channel) -> None:
        self._frame_max = connection.frame_max
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._confirmed, callback=lambda _: self._ready(connection))

    def _ready(self, connection: BulkConnection) -> None:
        with self._changed:
            self._connection, self._next_tag = connection, 1
            self._waiting.extendleft(reversed(self._unconfirmed.values()))
            self.resent += len(self._unconfirmed)
            self._unconfirmed.clear()
            self._moved_at = time.monotonic()
        self._link.serves()
        self._send()

    def _lost(self) -> None:
        with self._changed:
            if self._connection is not None:
                self._moved_at = time.monotonic()
            self._connection = None

    def _send(self) -> None:
        with self._changed:
            connection = self._connection
            if connection is None or not self._waiting or not connection.is_open:
                return
            first = self._next_tag
            self._next_tag += len(self._waiting)
            self._unconfirmed.update(zip(range(first, self._next_tag), self._waiting, strict=True))
            joined = b"".join(self._waiting)
            self._waiting.clear()
        connection.emit(joined)

    def _confirmed(self, confirm: Any) -> None:
        tag, is_multiple = confirm.method.delivery_tag, confirm.method.multiple
        with self._changed:
            self._moved_at = time.monotonic()
            tags = list(takewhile(lambda sent: sent <= tag, self._unconfirmed)) if is_multiple else [tag]
            taken = [self._unconfirmed.pop(each) for each in tags if each in self._unconfirmed]
            if isinstance(confirm.method, spec.Basic.Nack):
                self._refuse(taken)
            self._changed.notify_all()

    def _refuse(self, taken: list[bytes]) -> None:
        """The broker took none of these (a queue is full): once more in a while."""
        self._refused += len(taken)
        if self._connection is not None:
            self._connection.ioloop.call_later(_REFUSED_WAIT_S, lambda: self._again(taken))

    def _again(self, taken: list[bytes]) -> None:
        with self._changed:
            self._refused -= len(taken)
            self._waiting.extend(taken)
            self.resent += len(taken)
        self._send()

    def _returned(self, _channel: Channel, method: Any, _properties: Any, _body: bytes) -> None:
        with self._changed:
            self._failure = SetupError(
                f"{self._client}: no queue takes what is published with routing key {method.routing_key}",
                "make the queues first (Transport.create); nothing was stored of this message",
            )
            self._changed.notify_all()
