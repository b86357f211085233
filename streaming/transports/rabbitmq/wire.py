"""AMQP 0-9-1 frames of many messages at once: what pika would do message by message, for publishing and receiving.

pika makes three objects a frame and three frames a message, which costs more than the broker does. So a connection of
pika's is used for everything except the two hot loops: messages to publish are joined to one piece of bytes, and runs
of deliveries are cut out of what was received before pika sees it. Invariant: bytes that are not whole deliveries are
left to pika, untouched and in order.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import pika
from pika import frame, spec

CHANNEL: Final = 1  # one channel a connection
_METHOD, _HEADER, _BODY, _END = 1, 2, 3, b"\xce"
_DELIVER: Final = 60 << 16 | 60
_FRAME = struct.Struct(">BHI")
_FRAME_AND_METHOD = struct.Struct(">BHIIB")  # …, class and method, length of the consumer tag
_CONTENT = struct.Struct(">3xI4xQ")  # a header frame's length, and its body's
_LENGTH = struct.Struct(">3xI")  # a frame's
_SIZE = struct.Struct(">Q")
_TAG = struct.Struct(">Q?")
_FRAME_SIZE: Final = 8  # a frame's bytes beyond its payload
_LONGEST_KEY: Final = 255  # bytes of a routing key
_PERSISTENT: Final = spec.BasicProperties(delivery_mode=2, content_type="application/octet-stream")
_HEADER_BYTES: Final = frame.Header(CHANNEL, 0, _PERSISTENT).marshal()
_BEFORE_SIZE, _AFTER_SIZE = _HEADER_BYTES[:11], _HEADER_BYTES[19:]


def messages(
    exchange: str, stream: str, values: Sequence[bytes], keys: Sequence[bytes], frame_max: int
) -> Iterator[bytes]:
    """Each record as the bytes of a persistent, mandatory publish with routing key <stream>.<key>."""
    room = frame_max - _FRAME_SIZE
    for value, key in zip(values, keys, strict=True):
        size = len(value)
        head = _publish(exchange, stream, key) + _BEFORE_SIZE + _SIZE.pack(size) + _AFTER_SIZE
        if 0 < size <= room:
            yield head + _FRAME.pack(_BODY, CHANNEL, size) + value + _END
        else:
            yield head + b"".join(_body(value[at : at + room]) for at in range(0, size, room))


@lru_cache(maxsize=4096)
def _publish(exchange: str, stream: str, key: bytes) -> bytes:
    routing_key = f"{stream}.{key.decode(errors='replace')}".encode()[:_LONGEST_KEY].decode(errors="ignore")
    method = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    return bytes(frame.Method(CHANNEL, method).marshal())


def _body(part: bytes) -> bytes:
    return _FRAME.pack(_BODY, CHANNEL, len(part)) + part + _END


class Deliveries:
    """Collects deliveries out of received bytes, in parallel lists: tags, whether redelivered, and payloads."""

    def __init__(self) -> None:
        self.tags: list[int] = []
        self.again: list[bool] = []
        self.values: list[bytes] = []

    def __len__(self) -> int:
        return len(self.values)

    def clear(self) -> None:
        """Forget them."""
        self.tags, self.again, self.values = [], [], []

    def take(self, data: bytes, at: int) -> tuple[int, bool]:
        """Take whole deliveries from `data[at:]`; returns where they end, and whether a part of one is next."""
        end = len(data)
        while at + 12 <= end:
            kind, _, size, method, tag_length = _FRAME_AND_METHOD.unpack_from(data, at)
            if kind != _METHOD or method != _DELIVER:
                return at, False
            header_at = at + size + _FRAME_SIZE
            if header_at + 19 > end:
                return at, True
            header_size, wanted = _CONTENT.unpack_from(data, header_at)
            body_at = header_at + header_size + _FRAME_SIZE
            after = body_at + wanted + _FRAME_SIZE
            # One frame has it all, as nearly always. An empty message has none, though a heartbeat looks like one.
            if wanted and after <= end and _LENGTH.unpack_from(data, body_at)[0] == wanted:
                value = data[body_at + 7 : after - 1]
            else:
                value, after = self._join(data, body_at, wanted, end)
                if after > end:
                    return at, True
            tag, again = _TAG.unpack_from(data, at + 12 + tag_length)
            self.tags.append(tag)
            self.again.append(again)
            self.values.append(value)
            at = after
        return at, False

    @staticmethod
    def _join(data: bytes, at: int, wanted: int, end: int) -> tuple[bytes, int]:
        """A payload of none or several frames, and where they end: beyond `end` if that is not here yet."""
        parts: list[bytes] = []
        while wanted > 0:
            if at + _FRAME_SIZE > end:
                return b"", end + 1
            size = _LENGTH.unpack_from(data, at)[0]
            after = at + size + _FRAME_SIZE
            if after > end:
                return b"", after
            parts.append(data[at + 7 : after - 1])
            wanted -= size
            at = after
        return b"".join(parts), at


class BulkConnection(pika.SelectConnection):  # type: ignore[misc]
    """pika's connection with a way out for joined messages and a way in for runs of deliveries.

    It overrides two of pika's protected methods (1.4); tests/brokers hold it to what plain pika does.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._frame_buffer = b""
        self.deliveries = Deliveries()
        self.on_deliveries: Callable[[], None] = lambda: None
        super().__init__(*arguments, **options)

    def emit(self, joined: bytes) -> None:
        """Send whole frames. Only on the connection's own thread."""
        self._output_marshaled_frames([joined])

    @property
    def frame_max(self) -> int:
        """The longest frame both sides agreed on."""
        return int(self._body_max_length) + _FRAME_SIZE

    def abandon(self) -> None:
        """Close the socket without a word, whatever state the connection and its loop are in."""
        with contextlib.suppress(Exception):
            self._transport.abort()
            self.ioloop.start()  # until the end of the transport has been told

    def leave(self) -> None:
        """Close, unless it is closing already."""
        if not (self.is_closing or self.is_closed):
            self.close(320, "to be opened again")

    def _on_data_available(self, data_in: bytes) -> None:
        data = self._frame_buffer + data_in
        at = 0
        while at < len(data):
            at, is_partial = self.deliveries.take(data, at)
            if is_partial or len(data) - at < _FRAME_SIZE:
                break
            size = _FRAME.unpack_from(data, at)[2] + _FRAME_SIZE
            if data.startswith(b"AMQP", at):
                size = _FRAME_SIZE
            if at + size > len(data) or self._is_split_delivery(data, at):
                break
            _, value = frame.decode_frame(data[at : at + size])
            at += size
            # pika's own books: the heartbeat's check reads the count of received bytes.
            self._process_frame(value)
        self.bytes_received += at
        self._frame_buffer = data[at:]
        if self.deliveries:
            self.on_deliveries()

    def receive_in_pieces_of(self, size_bytes: int) -> None:
        """Read up to so much at once; pika's 4 KiB are twenty messages."""
        self._transport._MAX_RECV_BYTES = size_bytes

    @staticmethod
    def _is_split_delivery(data: bytes, at: int) -> bool:
        """Whether fewer than 12 bytes are here, which may become a delivery."""
        return len(data) - at < 12 and data[at] == _METHOD
