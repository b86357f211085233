"""RabbitMQ's part of each story: queues and streams, each of one partition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from streaming.batch import Decoded
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.declaring import channel_of
from streaming.transports.rabbitmq.queues import RabbitQueues
from streaming.transports.rabbitmq.streams import RabbitStreams
from tests.conformance.scenes import EVENTS, Notebook, take

GROUPS = {"events": ("readers", "adders"), "results": ("readers",)}


class NumberCodec:
    """A number in decimal is an event: the one of that sequence. All that queues know an event by."""

    name = "number"

    def decode(self, values: Sequence[bytes]) -> Decoded:
        table = pl.DataFrame({"producer": ["tests"] * len(values), "epoch": 1, "sequence": [*map(int, values)]})
        return Decoded(table, np.arange(len(values), dtype=np.int64))

    def encode(self, table: pl.DataFrame) -> list[bytes]:
        return [b"%d" % number for number in table["sequence"]]


class QueueBroker:
    partitions = 1
    first = 1

    def __init__(self, address: Address, folder: Path) -> None:
        self._address = address
        self.transport = RabbitQueues(
            self._address,
            readers=lambda stream: GROUPS[stream],
            outbox=folder,
            codec=lambda _: NumberCodec(),
        )

    def texts(self, stream: str) -> list[bytes]:
        """What waits for its readers, who give it back."""
        waiting = self.transport.depths(stream)["readers"]
        source = self.transport.source(stream, "readers", Notebook())
        found = [value for batch in take(source, waiting) for value in batch.values]
        source.close()
        return found

    def forget_group(self) -> None:
        """Queues have no groups' offsets that could expire."""

    def close(self) -> None:
        with channel_of(self._address) as channel:
            for stream, groups in GROUPS.items():
                for group in groups:
                    channel.queue_delete(self._address.queue(stream, group))
            channel.queue_delete(self._address.dead_letters)
            for exchange in (self._address.exchange, self._address.dead_letters):
                channel.exchange_delete(exchange)
        self.transport.close()


class StreamBroker:
    partitions = 1
    first = 1  # the stream's identity takes offset 0

    def __init__(self, address: Address, folder: Path) -> None:
        self._address = address
        self.transport = RabbitStreams(self._address, outbox=folder)

    def texts(self, stream: str) -> list[bytes]:
        return [value for batch in self.transport.read_all(stream) for value in batch.values]

    def recreate(self) -> None:
        with channel_of(self._address) as channel:
            channel.queue_delete(self._address.log("events"))
        self.transport.create([EVENTS], replication=1)

    def forget_group(self) -> None:
        """A group's offset is a hint for lag tools, and is never asked for."""

    def close(self) -> None:
        with channel_of(self._address) as channel:
            for stream in GROUPS:
                channel.queue_delete(self._address.log(stream))
        self.transport.close()
