"""Kafka's protocol on a plain socket, as far as a look at a broker needs it: five questions, no client, milliseconds.

Invariant: only reading requests are sent. What does not answer in Kafka's way ends in an OSError or a ValueError,
never in a wait beyond the time-out or a large allocation.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")
Address = tuple[str, int]

METADATA: Final = 3
_API_VERSIONS: Final = 18
_DESCRIBE_CONFIGS: Final = 32
_BROKER: Final = 4  # a resource type
_SUPPORTED_FEATURES: Final = 0  # a tag
_LARGEST_ANSWER_BYTES: Final = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class Metadata:
    """A cluster as one broker sees it: the brokers alive, each with the address that it advertises on this listener."""

    cluster_id: str | None
    brokers: Mapping[int, Address]


class Answer:
    """A response's bytes, read in order. ValueError when they end early."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def number(self, kind: str) -> int:
        """The next big-endian integer, `kind` as in `struct`."""
        try:
            (found,) = struct.unpack_from(f">{kind}", self._payload, self._at)
        except struct.error as error:
            raise ValueError("the answer ends early") from error
        self._at += struct.calcsize(kind)
        return int(found)

    def compact(self) -> int:
        """The next unsigned integer of the newer, flexible answers: seven bits a byte."""
        found = shift = 0
        while (byte := self.number("B")) & 0x80:
            if shift > 21:
                raise ValueError("a number without an end")
            found, shift = found | (byte & 0x7F) << shift, shift + 7
        return found | byte << shift

    def raw(self, length: int) -> bytes:
        """The next `length` bytes."""
        start, self._at = self._at, self._at + length
        if not start <= self._at <= len(self._payload):
            raise ValueError("the answer ends early")
        return self._payload[start : self._at]

    def tagged(self) -> dict[int, bytes]:
        """The optional fields that end a structure of a flexible answer: tag → its bytes."""
        return {self.compact(): self.raw(self.compact()) for _ in range(self.compact())}

    def text(self) -> str | None:
        """The next string, or null."""
        length = self.number("h")
        if length < 0:
            return None
        start, self._at = self._at, self._at + length
        return self._payload[start : self._at].decode()

    def many(self, read: Callable[[], T]) -> list[T]:
        """The next array, each element read by `read`."""
        return [read() for _ in range(self.number("i"))]


class Connection:
    """An open connection to what may be a Kafka broker."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._file = connected.makefile("rb")

    def apis(self) -> set[int]:
        """The keys of the requests that this listener understands. Also answered before authentication."""
        answer = self._ask(_API_VERSIONS, 0)
        if error := answer.number("h"):
            raise ValueError(f"error {error} to the question for its versions")
        return set(answer.many(lambda: (answer.number("h"), answer.number("h"), answer.number("h"))[0]))

    def features(self) -> dict[str, int]:
        """Feature → the newest level of it that this broker can have; empty for a broker that does not tell."""
        client = b"".join(bytes([len(word) + 1]) + word for word in (b"streamgauge", b"1"))
        answer = self._ask(_API_VERSIONS, 3, b"\0" + client + b"\0")
        if answer.number("h"):  # an older broker does not know the question
            return {}
        for _ in range(answer.compact() - 1):
            answer.number("h"), answer.number("h"), answer.number("h"), answer.tagged()
        answer.number("i")  # throttled for
        told = Answer(answer.tagged().get(_SUPPORTED_FEATURES, b"\1"))
        return dict(_feature(told) for _ in range(told.compact() - 1))

    def metadata(self) -> Metadata:
        """The cluster's id and brokers."""
        answer = self._ask(METADATA, 2, struct.pack(">i", 0))  # about no topic
        brokers = dict(answer.many(lambda: _broker(answer)))
        return Metadata(answer.text(), brokers)

    def settings(self, number: int) -> dict[str, str] | None:
        """The settings of broker `number`, as it runs; None when another broker sits at this end."""
        name = str(number).encode()
        body = struct.pack(f">ibh{len(name)}sib", 1, _BROKER, len(name), name, -1, 0)
        answer = self._ask(_DESCRIBE_CONFIGS, 1, body)
        answer.number("i")  # throttled for
        (found,) = answer.many(lambda: _settings(answer))
        return found

    def _ask(self, key: int, version: int, body: bytes = b"") -> Answer:
        """Send a request (its correlation id is its key; no client id) and read its answer."""
        request = struct.pack(">hhih", key, version, key, -1) + body
        self._socket.sendall(struct.pack(">i", len(request)) + request)
        head = self._file.read(4)
        if len(head) < 4:
            raise ConnectionAbortedError(f"hung up after {head!r}" if head else "hung up without a word")
        (size,) = struct.unpack(">i", head)
        if not 4 <= size <= _LARGEST_ANSWER_BYTES:
            raise ValueError(f"the answer begins with {head!r}")
        answer = Answer(self._file.read(size))
        if answer.number("i") != key:
            raise ValueError("an answer to another question")
        return answer


@contextlib.contextmanager
def connect(host: str, port: int, *, timeout_s: float) -> Iterator[Connection]:
    """A connection, closed at the end. OSError when nobody accepts it; the time-out holds for each answer too."""
    with socket.create_connection((host, port), timeout=timeout_s) as connected:
        yield Connection(connected)


def _feature(answer: Answer) -> tuple[str, int]:
    name = answer.raw(answer.compact() - 1).decode()
    answer.number("h")  # the oldest level
    newest = answer.number("h")
    answer.tagged()
    return name, newest


def _broker(answer: Answer) -> tuple[int, Address]:
    number, host, port = answer.number("i"), answer.text(), answer.number("i")
    answer.text()  # rack
    return number, (host or "", port)


def _settings(answer: Answer) -> dict[str, str] | None:
    error = answer.number("h")
    answer.text()  # in words
    answer.number("b"), answer.text()  # which resource
    found = dict(answer.many(lambda: _setting(answer)))
    return None if error else {name: value for name, value in found.items() if value is not None}


def _setting(answer: Answer) -> tuple[str, str | None]:
    name, value = answer.text(), answer.text()
    answer.number("b"), answer.number("b"), answer.number("b")  # read-only, source, sensitive
    answer.many(lambda: (answer.text(), answer.text(), answer.number("b")))  # synonyms, none were asked for
    return name or "", value
