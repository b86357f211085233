"""What a Kafka broker says about its cluster's listeners, by one request on a plain socket.

A broker that accepts connections is not yet a cluster, and a broker that answers may advertise an address that this
machine cannot reach; both show here in milliseconds, without a client.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from streaming.cluster.machine import Finding

TIMEOUT_S: Final = 3.0


def advertised(host: str, port: int, *, timeout_s: float = TIMEOUT_S) -> dict[int, tuple[str, int]]:
    """Broker number → host and port that it advertises, for each broker alive; empty when nobody answers there."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            return _ask(connection)
    except (OSError, struct.error, UnicodeDecodeError):  # nobody, an early end, or something that is no Kafka broker
        return {}


def examine(bootstrap_servers: str) -> list[Finding]:
    """Whether some given address answers, and whether each broker can be reached where it says it is."""
    given = [_split(address) for address in bootstrap_servers.split(",")]
    found: dict[int, tuple[str, int]] = {}
    for host, port in given:
        found |= advertised(host, port)
    answer = Finding(
        "bootstrap servers",
        bool(found),
        f"{bootstrap_servers}: {len(found)} brokers" if found else f"{bootstrap_servers}: no broker answers",
        "start the brokers, or correct --bootstrap-servers (plain listeners only)",
    )
    return [answer, *(_examine(number, host, port) for number, (host, port) in sorted(found.items()))]


def _examine(number: int, host: str, port: int) -> Finding:
    return Finding(
        f"broker {number}",
        bool(advertised(host, port)),
        f"advertises {host}:{port}",
        f"make {host}:{port} reachable from here, or let the broker advertise another address (advertised.listeners)",
    )


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.strip().rpartition(":")
    return (host, int(port)) if host and port.isdigit() else (address.strip(), 9092)


def _ask(connection: socket.socket) -> dict[int, tuple[str, int]]:
    """The protocol's Metadata request (key 3, version 1) about no topic; its answer begins with the brokers."""
    body = struct.pack(">hhihi", 3, 1, 1, -1, 0)  # key, version, correlation id, no client id, no topics
    connection.sendall(struct.pack(">i", len(body)) + body)
    with connection.makefile("rb") as answer:
        (size,) = struct.unpack(">i", answer.read(4))
        payload = answer.read(min(max(size, 0), 1024**2))
    _, count = struct.unpack_from(">ii", payload)
    found, at = {}, 8
    for _ in range(count):
        number, host_length = struct.unpack_from(">ih", payload, at)
        host = payload[at + 6 : at + 6 + host_length].decode()
        port, rack_length = struct.unpack_from(">ih", payload, at + 6 + host_length)
        at += 12 + host_length + max(rack_length, 0)
        found[number] = (host, port)
    return found
