"""Reading a queue as the one active consumer of its group; implements interfaces.Source.

A queue has no offsets. What stands for them here are the channel's delivery tags, made to rise through the life of the
source: the tags of each new connection go on behind the last one's. So an acknowledgement that belongs to a lost
connection is recognised and ignored, and can never acknowledge what came after it.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pika.channel import Channel

from streaming.batch import Batch
from streaming.interfaces import Keeper, Offsets
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.link import Link
from streaming.transports.rabbitmq.wire import BulkConnection

PREFETCH: Final = 60_000  # unacknowledged messages: more than a sink's file has rows, less than AMQP's 65,535
PARTITION: Final = 0


class QueueSource:
    """One consumer. Of a lost connection the keeper learns by `release(lost=True)` in poll(), before new batches."""

    def __init__(
        self, address: Address, stream: str, group: str, keeper: Keeper, *, instance: int = 0, prefetch: int = PREFETCH
    ) -> None:
        self._stream, self._keeper, self._prefetch = stream, keeper, prefetch
        self._queue = address.queue(stream, group)
        self._changed = threading.Condition()
        self._tags: list[int] = []
        self._values: list[bytes] = []
        self._channel: Channel | None = None
        self._behind = 0  # the offset of this connection's delivery tag 0
        self._last = 0  # the highest offset given to a delivery
        self._acknowledged = 0
        self._served = 0  # connections on which consuming began
        self._known = 0  # those the keeper knows of
        self._is_paused = False
        self._is_closed = False
        self.redelivered = 0  # deliveries that the broker marked as such
        self._link = Link(
            address, f"{group}-{instance}", on_open=self._opened, on_lost=self._lost, on_data=self._arrived
        )
        self._link.wait_open()

    def poll(self, timeout_s: float) -> list[Batch]:
        """What has arrived, as one batch of partition 0; empty on time-out. SetupError when the broker refuses."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._tell_keeper()
            with self._changed:
                if self._known == self._served and self._values and not self._is_paused:
                    return [self._taken()]
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return []
                if self._known == self._served:
                    self._changed.wait(min(left_s, 1.0))
            if self._link.failure:
                raise self._link.failure

    def acknowledge(self, offsets: Offsets) -> None:
        """Everything before the offset is done with; what belongs to a lost connection is ignored."""
        with self._changed:
            tag = offsets.get(PARTITION, 0) - 1 - self._behind
            if tag <= self._acknowledged or self._channel is None:
                return
            self._acknowledged = tag
            channel = self._channel
        self._link.call(lambda: channel.is_open and channel.basic_ack(tag, multiple=True))

    def seek(self, partition: int, offset: int) -> None:  # noqa: ARG002 - a queue has one place to go back to
        """Read again what is not acknowledged: the connection is opened anew, and the keeper is told so."""
        self._link.drop()

    def pause(self) -> None:
        """Deliver nothing; at most `prefetch` messages wait in memory. The connection stays alive by itself."""
        self._is_paused = True

    def resume(self) -> None:
        """Deliver again."""
        self._is_paused = False

    def close(self) -> None:
        """Release and disconnect: the broker gives what is unacknowledged to the next consumer."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._known:
            self._keeper.release([PARTITION], lost=self._known != self._served)
        self._link.close()

    def _tell_keeper(self) -> None:
        """Bring the keeper up to date with the connections, before anything of a new one is delivered."""
        served = self._served
        if self._known == served:
            return
        if self._known:
            self._keeper.release([PARTITION], lost=True)
        self._keeper.resume(PARTITION)
        self._known = served

    def _taken(self) -> Batch:
        offsets: NDArray[np.int64] = np.array(self._tags, np.int64) + self._behind
        batch = Batch(self._stream, PARTITION, self._values, offsets)
        self._tags, self._values = [], []
        return batch

    # From here on: on the connection's thread.

    def _opened(self, _connection: BulkConnection, channel: Channel) -> None:
        channel.add_on_cancel_callback(lambda _: channel.close())  # the queue moved or went: look again
        channel.basic_qos(prefetch_count=self._prefetch, callback=lambda _: self._consume(channel))

    def _consume(self, channel: Channel) -> None:
        with self._changed:
            self._channel, self._behind, self._acknowledged = channel, self._last, 0
            self._tags, self._values = [], []
            self._served += 1
        channel.basic_consume(self._queue, _unexpected, callback=self._granted)

    def _granted(self, _answer: Any) -> None:
        self._link.serves()

    def _arrived(self, connection: BulkConnection) -> None:
        deliveries = connection.deliveries
        with self._changed:
            self._tags += deliveries.tags
            self._values += deliveries.values
            self._last = self._behind + deliveries.tags[-1]
            self.redelivered += sum(deliveries.again)
            self._changed.notify_all()
        deliveries.clear()

    def _lost(self) -> None:
        with self._changed:
            self._channel = None


def _unexpected(*_: Any) -> None:
    raise AssertionError("a delivery came through pika instead of through wire.Deliveries")
