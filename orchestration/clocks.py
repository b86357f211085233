"""Clocks: whether this machine's is right as far as can be known, and how far the brokers' are from it.

Invariant: what the kernel does not know is unknown, not fine. Only `of_brokers`, which is asked for by name, changes a
cluster: it makes a topic of its own and deletes it.
"""

from __future__ import annotations

import ctypes
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from streaming.cluster.machine import Finding
from streaming.errors import BrokerUnavailable
from streaming.home import Home

if TYPE_CHECKING:
    from confluent_kafka import Producer

LARGEST_SKEW_S: Final = 1.0  # half of a window: beyond it, event times of two machines no longer meet
_UNSYNCHRONISED: Final = 5  # adjtimex(2): TIME_ERROR
_TRIES: Final = 5
_PATIENCE_S: Final = 10.0


def examine(home: Home) -> list[Finding]:
    """This machine's clock, and whether it was put back since the lab last wrote."""
    return [_synchronised(), *_put_back(home)]


def of_brokers(bootstrap_servers: str, *, now: Callable[[], float] = time.time) -> list[Finding]:
    """How far each broker's clock is from `now` (seconds since 1970), by the time at which it appends a record.

    Makes a topic of its own, one partition led by each broker, and deletes it. BrokerUnavailable when that fails.
    """
    with _topic_on_each_broker(bootstrap_servers) as (topic, brokers, producer):
        skews = {number: _skew(producer, topic, at, now) for at, number in enumerate(brokers)}
    return [
        Finding(
            f"clock of broker {number}",
            abs(skew_s) - doubt_s <= LARGEST_SKEW_S,
            f"{skew_s:+.3f} s from this machine's (known to {doubt_s:.3f} s)",
            "let both machines follow a time server: timedatectl set-ntp true",
        )
        for number, (skew_s, doubt_s) in skews.items()
    ]


def _synchronised() -> Finding:
    """What the kernel says of its clock (adjtimex; asking changes nothing and needs no right)."""
    timex = ctypes.create_string_buffer(512)  # larger than the structure; its first field, what to change, is 0
    state = ctypes.CDLL(None).adjtimex(timex)
    (largest_error_us,) = struct.unpack_from("q", timex, 24)
    if 0 <= state < _UNSYNCHRONISED:
        return Finding("clock", ok=True, detail=f"synchronised, wrong by {largest_error_us / 1e6:.3f} s at most")
    return Finding(
        "clock",
        ok=False,
        detail="unknown whether it is right: the kernel knows of no time server",
        remedy="timedatectl set-ntp true (in a container or virtual machine: on its host)",
        matters=False,
    )


def _put_back(home: Home, *, allowed_s: float = 5.0) -> list[Finding]:
    """A finding when the lab has written files that are newer than now."""
    written = [home.root / "lab.json", *home.run.glob("*.json"), *home.logs.glob("*.log")]
    ahead = {path: path.stat().st_mtime - time.time() for path in written if path.exists()}
    newest = max(ahead, key=lambda path: ahead[path], default=None)
    if newest is None or ahead[newest] <= allowed_s:
        return []
    detail = f"{newest} was written {ahead[newest]:.0f} s in the future"
    remedy = "set the clock right (timedatectl), then streamgauge down; streamgauge up"
    return [Finding("clock put back", ok=False, detail=detail, remedy=remedy)]


@contextmanager
def _topic_on_each_broker(bootstrap_servers: str) -> Iterator[tuple[str, list[int], Producer]]:
    """A topic's name, the brokers in the order in which they lead its partitions, and a producer."""
    from confluent_kafka import KafkaException, Producer  # noqa: PLC0415 - a quarter of a second, only when asked for
    from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # noqa: PLC0415

    client: dict[str, Any] = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
    topic = f"streamgauge-doctor-{uuid.uuid4().hex[:8]}"
    settings = {"message.timestamp.type": "LogAppendTime", "min.insync.replicas": "1", "retention.ms": "60000"}
    admin = AdminClient(client)
    try:
        brokers = sorted(admin.list_topics(timeout=_PATIENCE_S).brokers)
        leaders = [[number] for number in brokers]
        made = NewTopic(topic, len(brokers), replica_assignment=leaders, config=settings)
        admin.create_topics([made])[topic].result(_PATIENCE_S)
        try:
            yield topic, brokers, Producer({**client, "linger.ms": 0, "message.timeout.ms": int(_PATIENCE_S * 1000)})
        finally:
            admin.delete_topics([topic])[topic].result(_PATIENCE_S)
    except KafkaException as error:
        raise BrokerUnavailable(f"the brokers' clocks can't be measured: {error.args[0].str()}") from error


def _skew(producer: Producer, topic: str, partition: int, now: Callable[[], float]) -> tuple[float, float]:
    """Skew and doubt of the quickest of some records, in seconds. The first one also finds the broker."""
    return min((_measure(producer, topic, partition, now) for _ in range(_TRIES)), key=lambda each: each[1])


def _measure(producer: Producer, topic: str, partition: int, now: Callable[[], float]) -> tuple[float, float]:
    said: list[tuple[Any, Any, float]] = []
    sent_at = now()
    producer.produce(
        topic, b"", partition=partition, on_delivery=lambda error, record: said.append((error, record, now()))
    )
    producer.flush(2 * _PATIENCE_S)
    if not said or said[0][0]:
        raise BrokerUnavailable(f"the brokers' clocks can't be measured: {said[0][0].str() if said else 'no answer'}")
    _, record, answered_at = said[0]
    return record.timestamp()[1] / 1000 - (sent_at + answered_at) / 2, (answered_at - sent_at) / 2 + 0.001
