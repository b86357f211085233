"""Publishing to RabbitMQ streams with publishing ids; implements interfaces.Publisher.

Invariant: a record keeps its publishing id however often it is sent, and the broker drops what comes under a name with
an id not above that name's last. So what is sent again after a lost connection is stored once. Names must not be shared
by publishers that live at the same time: the broker would confirm and drop what the slower one sends.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from rstream import schema
from rstream.client import Client

from streaming.batch import Outgoing
from streaming.errors import OutcomeUnknown, StreamgaugeError
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.stream_frames import pack
from streaming.transports.rabbitmq.stream_loop import EventLoop, StreamLink

WINDOW: Final = 50_000  # records sent and not confirmed, for each stream
PATIENCE_S: Final = 120.0  # how long without a connection
_FRAME_BYTES: Final = 512 * 1024
_CLOSE_TIMEOUT_S: Final = 10.0
_PUBLISHER_ID: Final = 0  # one publisher a connection


class _Lane:
    """One stream's records on their way, over a connection of its own."""

    def __init__(
        self, loop: EventLoop, address: Address, stream: str, reference: str, first_id: int | None, changed: Any
    ) -> None:
        self.waiting: deque[tuple[int, bytes]] = deque()  # publishing id, message: not sent yet
        self.unconfirmed: dict[int, bytes] = {}
        self.next_id = first_id or 1
        self.lost_at = time.monotonic()
        self.resent = 0
        self._stream, self._reference, self._changed = stream, reference, changed
        self._client: Client | None = None
        self.link = StreamLink(loop, address, reference, address.log(stream), on_open=self._opened, on_lost=self._lost)
        self._log = address.log(stream)
        self.link.wait_open()

    @property
    def outstanding(self) -> int:
        return len(self.waiting) + len(self.unconfirmed)

    @property
    def is_connected(self) -> bool:
        return self._client is not None

    def add(self, messages: list[bytes]) -> None:
        """Under the lock."""
        self.waiting.extend(zip(range(self.next_id, self.next_id + len(messages)), messages, strict=True))
        self.next_id += len(messages)

    # From here on: on the event loop.

    async def _opened(self, client: Client) -> None:
        await client.declare_publisher(self._log, self._reference, _PUBLISHER_ID)
        client.add_handler(schema.PublishConfirm, self._confirmed, name="confirmed")
        client.add_handler(schema.PublishError, lambda _: self.link.drop(), name="refused")
        with self._changed:
            self.waiting.extendleft(reversed(self.unconfirmed.items()))
            self.resent += len(self.unconfirmed)
            self.unconfirmed.clear()
            self._client = client
        await self.send()

    def _lost(self) -> None:
        with self._changed:
            if self._client is not None:
                self.lost_at = time.monotonic()
            self._client = None

    async def send(self) -> None:
        """Send what waits, in frames."""
        while (client := self._client) is not None and (taken := self._take()):
            messages = [schema.Message(number, None, data) for number, data in taken]
            await client.send_publish_frame(schema.Publish(_PUBLISHER_ID, messages))

    def _take(self) -> list[tuple[int, bytes]]:
        taken, size = [], 0
        with self._changed:
            while self.waiting and size < _FRAME_BYTES:
                taken.append(self.waiting.popleft())
                size += len(taken[-1][1])
            self.unconfirmed.update(taken)
        return taken

    def _confirmed(self, confirm: schema.PublishConfirm) -> None:
        with self._changed:
            for number in confirm.publishing_ids:
                self.unconfirmed.pop(number, None)
            self._changed.notify_all()


class StreamPublisher:
    """A publisher with one connection for each stream it writes to.

    Without `name` it has one of its own, and ids from 1. With a stable name, `first_ids` says with which id each stream
    goes on: ids the broker has already seen are confirmed and not stored again.
    """

    def __init__(
        self,
        loop: EventLoop,
        address: Address,
        client: str,
        *,
        name: str | None = None,
        first_ids: Mapping[str, int] | None = None,
        window: int = WINDOW,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._loop, self._address, self._client = loop, address, client
        self._reference = name or f"{client}-{uuid.uuid4().hex[:12]}"
        self._first_ids = dict(first_ids or {})
        self._window, self._patience_s = window, patience_s
        self._changed = threading.Condition()
        self._lanes: dict[str, _Lane] = {}

    @property
    def outstanding(self) -> int:
        """Records waiting or not confirmed."""
        return sum(lane.outstanding for lane in self._lanes.values())

    @property
    def resent(self) -> int:
        """Records that were sent again after a lost connection."""
        return sum(lane.resent for lane in self._lanes.values())

    @property
    def next_ids(self) -> Mapping[str, int]:
        """The publishing id that each stream's next record gets."""
        return {**self._first_ids, **{stream: lane.next_id for stream, lane in self._lanes.items()}}

    def begin(self, stream: str, first_id: int) -> None:
        """The publishing id of the stream's first record. Before anything is published to it."""
        self._first_ids[stream] = first_id

    def publish(self, outgoing: Outgoing) -> None:
        """Send the records; blocks while the stream's window is full. Keys are part of the payloads already."""
        lane = self._lane(outgoing.stream)
        messages = iter(pack(outgoing.values))
        while piece := list(islice(messages, 2_000)):
            with self._changed:
                self._wait_for(lambda: lane.outstanding < self._window, None)
                lane.add(piece)
            lane.link.call(lane.send)

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
            for lane in self._lanes.values():
                lane.link.close()

    def _lane(self, stream: str) -> _Lane:
        if stream not in self._lanes:
            first = self._first_ids.get(stream)
            self._lanes[stream] = _Lane(self._loop, self._address, stream, self._reference, first, self._changed)
        return self._lanes[stream]

    def _wait_for(self, is_done: Callable[[], bool], timeout_s: float | None) -> bool:
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
        for lane in self._lanes.values():
            if lane.link.failure:
                raise lane.link.failure
            if not lane.is_connected and time.monotonic() - lane.lost_at > self._patience_s:
                raise OutcomeUnknown(
                    f"{self._client}: no connection for {self._patience_s:.0f} s, {self.outstanding} unconfirmed"
                )
