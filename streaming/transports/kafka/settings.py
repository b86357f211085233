"""Named safe presets, under the client's own names: what each kind of client of this lab is configured with.

Invariant: no preset can lose or double a record by itself: nothing is committed automatically, no offset is guessed,
and a producer that meets an outage waits. (librdkafka's CONFIGURATION.md says what each name means.)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

Settings = Mapping[str, str | int | float | bool]

TRANSACTION_TIMEOUT_MS: Final = 15_000  # an orphaned transaction blocks committed readers for as long
SESSION_TIMEOUT_MS: Final = 10_000
LARGEST_MESSAGE_BYTES: Final = 16 * 1024**2  # snapshots; a topic's own limit may be lower

_CLIENT: Final[Settings] = MappingProxyType(
    {
        "socket.keepalive.enable": True,
        "reconnect.backoff.max.ms": 2_000,
        "log.connection.close": False,  # idle connections are closed by the broker: no news
    }
)

ADMIN: Final[Settings] = MappingProxyType(
    {
        **_CLIENT,
        "log_level": 2,  # its complaints about absent brokers would come before our own sentence about them
        # A request for the controller waits for it while its broker is away. With sparse connections (the default) the
        # client spins meanwhile, and takes more than a core.
        "enable.sparse.connections": False,
    }
)

PRODUCER: Final[Settings] = MappingProxyType(
    {
        **_CLIENT,
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 5,
        "compression.type": "lz4",  # zstd can stall a reader for good: librdkafka #5260
        "partitioner": "murmur2_random",  # the Java client's: the same key goes to the same partition from everywhere
        "batch.size": 1_000_000,
        "batch.num.messages": 20_000,
        "queue.buffering.max.messages": 200_000,
        "queue.buffering.max.kbytes": 65_536,
        "message.timeout.ms": 0,  # never give up: an outage blocks the sender instead of losing what it has sent
        "delivery.report.only.error": True,
    }
)

TRANSACTIONAL_PRODUCER: Final[Settings] = MappingProxyType(
    {
        **PRODUCER,
        "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
        "message.timeout.ms": TRANSACTION_TIMEOUT_MS - 1_000,  # the transaction is over by then anyway
        "message.max.bytes": LARGEST_MESSAGE_BYTES,
    }
)

_COMMITTED_READER: Final[Settings] = MappingProxyType(
    {
        **_CLIENT,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        "auto.offset.reset": "error",  # never jump: the keeper says where to read
        "check.crcs": True,
        # An answer to each record costs more than the record: at 600 records a second three brokers took 0.82 of a core
        # with fetch.min.bytes=1, 0.55 with this. A record waits a tenth of a second at most; a full stream never does.
        "fetch.wait.max.ms": 100,
        "fetch.min.bytes": 65_536,
        "fetch.message.max.bytes": 2 * 1024**2,
        "fetch.max.bytes": 16 * 1024**2,
        "queued.min.messages": 100_000,
        "queued.max.messages.kbytes": 32_768,  # bounds resident memory
        # How long fetching rests once so much is queued. By default a second, in which a fast reader empties the queue
        # and starves: 224,000 records a second instead of 1,000,000. With 0 the client spins.
        "fetch.queue.backoff.ms": 20,
    }
)

CLASSIC_CONSUMER: Final[Settings] = MappingProxyType(
    {
        **_COMMITTED_READER,
        "group.protocol": "classic",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": SESSION_TIMEOUT_MS,
        "heartbeat.interval.ms": 2_000,
        "max.poll.interval.ms": 300_000,
    }
)

READER: Final[Settings] = MappingProxyType(
    {
        **_COMMITTED_READER,
        "enable.partition.eof": True,  # the only sure sign of the end: control records make offsets end anywhere
        "group.id": "streamgauge-reader",  # required by the client; a reader never joins it
        # It goes to an end and stops there: with the waits above each look at a partition's snapshot took 0.3 s, and a
        # transformer that starts (or is given more) takes six of them one after the other.
        "fetch.wait.max.ms": 10,
        "fetch.min.bytes": 1,
    }
)
