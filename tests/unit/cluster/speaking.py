"""Something that answers a look at a broker in Kafka's protocol, where a unit test can't have a real one."""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Mapping

from streaming.cluster.wire import Address

# ApiVersions, version 3, as the classes of Kafka 4.3.1 write it: group.version to 1, metadata.version from 7 to 30.
FEATURES_OF_4_3 = bytes.fromhex(
    "000004000300000"
    "00c0000120000000c0000200000000c000000000003002a030e67726f75702e76657273696f6e00010001001"
    "16d657461646174612e76657273696f6e0007001e0001080000000000000007021702116d657461646174612e76657273696f6e0019000700"
)


class Door(socketserver.ThreadingTCPServer):
    """One listener of broker `number`: tells `brokers` (as advertised on it), its settings and its features."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, number: int, brokers: Mapping[int, Address], settings: Mapping[str, str]) -> None:
        super().__init__(("127.0.0.1", port), _Talk)
        self.number, self.brokers, self.settings = number, brokers, settings
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Talk(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while size := self.rfile.read(4):
            request = self.rfile.read(struct.unpack(">i", size)[0])
            key, version = struct.unpack_from(">hh", request)
            body = struct.pack(">i", key) + self._answer(key, version, request)
            self.wfile.write(struct.pack(">i", len(body)) + body)

    def _answer(self, key: int, version: int, request: bytes) -> bytes:
        door = self.server
        assert isinstance(door, Door)
        if key == 18:
            return FEATURES_OF_4_3 if version == 3 else struct.pack(">hihhh", 0, 1, 3, 0, 12)
        if key == 3:
            told = [
                struct.pack(">i", n) + _text(host) + struct.pack(">ih", port, -1)
                for n, (host, port) in door.brokers.items()
            ]
            return struct.pack(">i", len(told)) + b"".join(told) + _text("one")
        is_mine = _text(str(door.number)) in request
        settings = [
            _text(name) + _text(value) + b"\0\0\0" + struct.pack(">i", 0) for name, value in door.settings.items()
        ]
        head = struct.pack(">iih", 0, 1, 0 if is_mine else 42) + struct.pack(">hb", -1, 4) + _text(str(door.number))
        return head + struct.pack(">i", len(settings)) + b"".join(settings)


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()
