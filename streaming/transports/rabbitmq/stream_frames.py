"""Records inside a RabbitMQ stream: one AMQP 1.0 data section each, so that any client and the management UI can read.

Invariant: pack() and unpack() are inverse; what other publishers wrote (AMQP 0-9-1 through an exchange, with sections
of properties before the data) is understood too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rstream import amqp_decoder, schema

_DATA: Final = b"\x00\x53\x75\xb0"  # described type 0x75, then binary with a length of four bytes
_SUB_BATCH: Final = 0x80


def pack(values: Sequence[bytes]) -> list[bytes]:
    """Each payload as a message of a stream."""
    return [_DATA + len(value).to_bytes(4) + value for value in values]


def unpack(chunk: schema.Deliver) -> list[bytes]:
    """The payloads of one delivered chunk, in offset order."""
    data, at, values = chunk.data, 0, []
    for _ in range(chunk.num_entries):
        if data[at] & _SUB_BATCH:
            return [_body(bytes(message)) for message in chunk.get_messages()]
        start = at + 4
        at = start + int.from_bytes(data[at:start])
        if data[start : start + 4] == _DATA:
            values.append(data[start + 8 : at])
        else:
            values.append(_body(data[start:at]))
    return values


def _body(message: bytes) -> bytes:
    """The payload of a message with any sections."""
    body = amqp_decoder(message).body
    parts = body if isinstance(body, list) else [body]
    return b"".join(bytes(part) for part in parts)
