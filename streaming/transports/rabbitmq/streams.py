"""RabbitMQ streams as a transport: a log with offsets for each stream, of one partition.

What it can: replay from any offset, so a sink's chain of offsets works as on Kafka; publishing ids, so that what is
sent twice is stored once. What it cannot: transactions over several streams (see outbox), groups that share one stream.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from rstream import exceptions, schema
from rstream.client import Client
from rstream.constants import OffsetType

from streaming.batch import Batch
from streaming.errors import UsageError
from streaming.interfaces import Extent, Identity, Keeper, Remembered
from streaming.topology import Stream, StreamKind
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.declaring import channel_of, ready_in
from streaming.transports.rabbitmq.outbox import OutboxFile, OutboxTransaction
from streaming.transports.rabbitmq.stream_flow import StreamInput, StreamOutput
from streaming.transports.rabbitmq.stream_frames import unpack
from streaming.transports.rabbitmq.stream_loop import EventLoop, close, connect, translated
from streaming.transports.rabbitmq.stream_publisher import StreamPublisher
from streaming.transports.rabbitmq.stream_source import CREDIT, PARTITION, StreamSource, offsets_of

MAX_STREAM_BYTES: Final = 8 * 1024**3
SEGMENT_BYTES: Final = 64 * 1024**2
# A stream's identity is kept as the "offset" of a reader of this name: it lives and dies with the stream.
_IDENTITY: Final = "streamgauge.identity"
_IDENTITY_BASE: Final = 2**61  # above every real offset, so that retention never forgets it
_EMPTY_WAIT_S, _ANSWER_WAIT_S = 0.3, 10.0


class RabbitStreams:
    """Implements Transport over RabbitMQ streams; replays."""

    name = "rabbitmq-stream"

    def __init__(self, address: Address, *, outbox: Path | None = None) -> None:
        if address.stream_port is None:
            raise UsageError(f"{address}: the port of the stream plugin is missing")
        self._address, self._outbox = address, outbox

    @cached_property
    def _loop(self) -> EventLoop:
        return EventLoop()

    def close(self) -> None:
        """End the event loop's thread; for tests, a process that ends need not."""
        self._loop.close()

    def create(self, streams: Iterable[Stream], *, replication: int) -> None:
        """Make what is missing. UsageError for what exists in another shape. Needs a user who may configure."""
        wanted = [stream for stream in streams if stream.kind is not StreamKind.STATE]  # kept beside the outbox
        with channel_of(self._address) as channel:
            for stream in wanted:
                channel.queue_declare(
                    self._address.log(stream.name), durable=True, arguments=_arguments(stream, replication)
                )
        for stream in wanted:
            self._loop.run(self._identify(stream.name))

    def publisher(self, client: str) -> StreamPublisher:
        """A publisher of its own name."""
        return StreamPublisher(self._loop, self._address, client)

    def named_publisher(self, name: str, next_ids: Mapping[str, int]) -> StreamPublisher:
        """A publisher that goes on with these publishing ids; nobody else may use the name at the same time."""
        return StreamPublisher(self._loop, self._address, name, name=name, first_ids=next_ids)

    def last_id(self, stream: str, name: str) -> int:
        """The highest publishing id of this name that the broker has stored; 0 when there is none."""
        return self._loop.run(self._last_id(stream, name))

    def source(self, stream: str, group: str, keeper: Keeper, *, instance: int = 0) -> StreamSource:
        """Read from where the keeper says."""
        return StreamSource(
            self._loop,
            self._address,
            stream,
            group,
            keeper,
            lambda: self.extents(stream)[PARTITION],
            instance=instance,
        )

    def transaction(
        self,
        reads: str,
        state: str,  # noqa: ARG002 - kept in the outbox
        role: str,
        *,
        restore: Callable[[int, bytes | None], None],
        forget: Callable[[int], None],
        instance: int = 0,
        checkpoint: Callable[[str], None] = lambda _: None,
    ) -> OutboxTransaction:
        """Read, compute, write as one, by an outbox file. UsageError without a folder for it.

        Fenced while another process of this machine works as the same role and instance.
        """
        if self._outbox is None:
            raise UsageError("transformers on RabbitMQ streams need a folder for their outbox")
        name = f"{role}-{instance}"
        return OutboxTransaction(
            self._outbox / name,
            StreamInput(
                lambda keeper: self.source(reads, role, keeper, instance=instance), reads, self.identity(reads).topic_id
            ),
            StreamOutput(lambda ids: self.named_publisher(name, ids), lambda stream: self.last_id(stream, name)),
            restore=restore,
            forget=forget,
            checkpoint=checkpoint,
        )

    def remembered(self, role: str) -> Remembered | None:
        """What the role's outbox on this machine holds; UsageError without the outboxes' folder."""
        if self._outbox is None:
            raise UsageError("a transformer's state is in its outbox: say in which folder")
        return OutboxFile(self._outbox / f"{role}-0").remembered(lambda used: int(used[0]))

    def read_all(self, stream: str) -> list[Batch]:
        """Every record from the oldest to the present end."""
        extent = self.extents(stream)[PARTITION]
        batch = self._read(stream, extent.low, extent.high)
        return [batch] if len(batch) else []

    def count_between(self, stream: str, partition: int, start: int, end: int) -> int:
        """How many records lie in [start, end): counted by reading, for the broker's own entries take offsets too."""
        extent = self.extents(stream)[partition]
        return len(self._read(stream, max(start, extent.low), min(end, extent.high)))

    def extents(self, stream: str) -> Mapping[int, Extent]:
        """The readable range. UsageError when there is no such stream."""
        log = self._address.log(stream)
        with channel_of(self._address) as channel:
            has_records = ready_in(channel, log) > 1  # the identity is an entry too
        return {PARTITION: self._loop.run(self._extent(log, has_records=has_records))}

    def identity(self, stream: str) -> Identity:
        """The cluster's name, and a number that was given to the stream when it was made."""
        cluster, number = self._loop.run(self._identity(stream))
        return Identity(cluster, f"{number:016x}" if number else "")

    def _read(self, stream: str, start: int, end: int) -> Batch:
        chunks = self._loop.run(self._chunks(self._address.log(stream), start, end), 600.0) if start < end else []
        offsets = offsets_of(chunks)
        values = [value for _, part in chunks for value in part]
        chosen = slice(*np.searchsorted(offsets, [start, end]).tolist())
        return Batch(stream, PARTITION, values[chosen], offsets[chosen])

    # From here on: on the event loop.

    async def _chunks(self, log: str, start: int, end: int) -> list[tuple[int, list[bytes]]]:
        client, _ = await connect(self._address, "reader", log)
        try:
            return await _read_chunks(client, log, schema.OffsetSpec.from_params(OffsetType.OFFSET, start), end)
        finally:
            await close(client)

    async def _extent(self, log: str, *, has_records: bool) -> Extent:
        client, _ = await connect(self._address, "extents", log)
        try:
            first = await _one_chunk(client, log, 0, OffsetType.FIRST, has_records=has_records)
            if first is None:
                return Extent(0, 0)
            last = await _one_chunk(client, log, 1, OffsetType.LAST, has_records=True) or first
            return Extent(first.chunk_first_offset, last.chunk_first_offset + last.num_records)
        finally:
            await close(client)

    async def _last_id(self, stream: str, name: str) -> int:
        client, _ = await connect(self._address, name, self._address.log(stream))
        try:
            return await client.query_publisher_sequence(self._address.log(stream), name)
        finally:
            await close(client)

    async def _identity(self, stream: str) -> tuple[str, int]:
        client, _ = await connect(self._address, "identity", self._address.log(stream))
        try:
            cluster = (client.server_properties or {}).get("cluster_name", "rabbitmq")
            return cluster, await _stored_identity(client, self._address.log(stream))
        finally:
            await close(client)

    async def _identify(self, stream: str) -> None:
        """Give a stream that has none its identity."""
        log = self._address.log(stream)
        client, _ = await connect(self._address, "identity", log)
        try:
            if await _stored_identity(client, log):
                return
            number = _IDENTITY_BASE + secrets.randbelow(_IDENTITY_BASE)
            await client.store_offset(log, _IDENTITY, number)
            for _ in range(200):
                if await _stored_identity(client, log) == number:
                    return
                await asyncio.sleep(0.02)
        except (exceptions.ServerError, OSError) as error:
            raise translated(error, self._address) from error
        finally:
            await close(client)


async def _stored_identity(client: Client, log: str) -> int:
    try:
        return await client.query_offset(log, _IDENTITY)
    except exceptions.OffsetNotFound:
        return 0


async def _one_chunk(
    client: Client, log: str, number: int, where: OffsetType, *, has_records: bool
) -> schema.Deliver | None:
    """The first or last chunk; None when there is none."""
    arrived: asyncio.Queue[schema.Deliver] = asyncio.Queue()
    client.add_handler(schema.Deliver, arrived.put_nowait, name=str(number))
    await client.run_queue_listener_task(number, arrived.put_nowait)
    await client.subscribe(log, number, schema.OffsetSpec.from_params(where, None), initial_credit=1)
    try:
        return await asyncio.wait_for(arrived.get(), _ANSWER_WAIT_S if has_records else _EMPTY_WAIT_S)
    except TimeoutError:
        return None
    finally:
        client.remove_handler(schema.Deliver, str(number))


async def _read_chunks(client: Client, log: str, where: schema.OffsetSpec, end: int) -> list[tuple[int, list[bytes]]]:
    arrived: asyncio.Queue[schema.Deliver] = asyncio.Queue()
    client.add_handler(schema.Deliver, arrived.put_nowait, name="0")
    await client.run_queue_listener_task(0, arrived.put_nowait)
    await client.subscribe(log, 0, where, initial_credit=CREDIT)
    chunks = []
    reached = -1
    while reached < end:
        chunk = await arrived.get()
        chunks.append((chunk.chunk_first_offset, unpack(chunk)))
        reached = chunk.chunk_first_offset + chunk.num_records
        await client.credit(0, 1)
    return chunks


def _arguments(stream: Stream, replication: int) -> dict[str, object]:
    arguments: dict[str, object] = {
        "x-queue-type": "stream",
        "x-initial-cluster-size": replication,
        "x-stream-max-segment-size-bytes": SEGMENT_BYTES,
    }
    if retention_ms := stream.settings.get("retention.ms"):
        arguments |= {"x-max-age": f"{int(retention_ms) // 1000}s", "x-max-length-bytes": MAX_STREAM_BYTES}
    return arguments
