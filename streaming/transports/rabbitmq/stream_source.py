"""Reading a RabbitMQ stream from an offset; implements interfaces.Source.

Invariant: offsets are handed out rising and without repeats. The broker sends whole chunks, so what lies before the
wanted offset is cut away, and a lost connection is taken up again where the last batch ended: the keeper notices
nothing. At most CREDIT chunks are in memory; the broker sends another for each that poll() has taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rstream import schema
from rstream.client import Client
from rstream.constants import OffsetType

from streaming.batch import Batch
from streaming.errors import RetentionGap
from streaming.interfaces import Extent, Keeper, Offsets
from streaming.transports.positions import checked_start
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.stream_frames import unpack
from streaming.transports.rabbitmq.stream_loop import EventLoop, StreamLink

CREDIT: Final = 10  # chunks, of up to some thousand records
PARTITION: Final = 0


class StreamSource:
    """One reader. Reading begins where the keeper says; `extent` is asked for the stream's readable range."""

    def __init__(
        self,
        loop: EventLoop,
        address: Address,
        stream: str,
        group: str,
        keeper: Keeper,
        extent: Callable[[], Extent],
        *,
        instance: int = 0,
    ) -> None:
        self._stream, self._group, self._keeper, self._extent = stream, group, keeper, extent
        self._log = address.log(stream)
        self._changed = threading.Condition()
        self._chunks: list[tuple[int, list[bytes]]] = []  # first offset, payloads
        self._client: Client | None = None
        self._is_paused = False
        self._is_closed = False
        wanted = keeper.resume(PARTITION)
        self._next = checked_start(stream, PARTITION, wanted, extent())
        self._is_first_start = wanted is None  # then the oldest record will do, wherever it is
        self._link = StreamLink(
            loop, address, f"{group}-{instance}", self._log, on_open=self._opened, on_lost=self._lost
        )
        self._link.wait_open()

    def poll(self, timeout_s: float) -> list[Batch]:
        """What has arrived, as one batch of partition 0. RetentionGap when records were deleted before they came."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self._link.failure:
                raise self._link.failure
            with self._changed:
                chunks = [] if self._is_paused else self._taken()
                if not chunks:
                    left_s = deadline - time.monotonic()
                    if left_s <= 0:
                        return []
                    self._changed.wait(min(left_s, 1.0))
            if chunks and (batch := self._batch(chunks)) is not None:
                return [batch]

    def acknowledge(self, offsets: Offsets) -> None:
        """Nothing is told to the broker: where to go on is in the files and the outbox, the only place that counts.

        An offset stored on the broker would be read by nobody here, is an entry of the stream itself, and needs the
        right to write: a sink could then publish into what it reads.
        """

    def seek(self, partition: int, offset: int) -> None:  # noqa: ARG002 - there is one
        """Read from here on."""
        with self._changed:
            self._next, self._chunks, self._client = offset, [], None
        self._link.drop()

    def pause(self) -> None:
        """Deliver nothing; the broker stops when its credit is used up."""
        self._is_paused = True

    def resume(self) -> None:
        """Deliver again."""
        self._is_paused = False

    def close(self) -> None:
        """Release and disconnect."""
        if not self._is_closed:
            self._is_closed = True
            self._keeper.release([PARTITION], lost=False)
            self._link.close()

    def _taken(self) -> list[tuple[int, list[bytes]]]:
        """All chunks that wait; as many may come after them."""
        taken, self._chunks = self._chunks, []
        client = self._client
        if taken and client is not None:
            self._link.call(lambda: client.credit(0, len(taken)))
        return taken

    def _batch(self, chunks: list[tuple[int, list[bytes]]]) -> Batch | None:
        """One batch of the chunks' records from the wanted offset on, up to what retention has taken."""
        chunks = self._before_a_gap(chunks)
        offsets = offsets_of(chunks)
        joined = [value for _, values in chunks for value in values] if len(chunks) > 1 else chunks[0][1]
        skipped = int(np.searchsorted(offsets, self._next))
        if skipped == len(offsets):
            return None
        batch = Batch(self._stream, PARTITION, joined[skipped:] if skipped else joined, offsets[skipped:])
        self._next, self._is_first_start = batch.next_offset, False
        return batch

    def _before_a_gap(self, chunks: list[tuple[int, list[bytes]]]) -> list[tuple[int, list[bytes]]]:
        """The chunks up to the first that retention has left a gap before; RetentionGap when there are none.

        A reader that retention overtakes is sent on by the broker without a word, also between two chunks.
        """
        expected, may_begin_anywhere = self._next, self._is_first_start
        for place, (first, values) in enumerate(chunks):
            # The broker's own entries leave gaps too.
            if first > expected and not may_begin_anywhere and (low := self._extent().low) > expected:
                if place == 0:
                    raise RetentionGap(self._stream, PARTITION, expected, low)
                with self._changed:
                    self._chunks[:0] = chunks[place:]  # to be met first the next time
                return chunks[:place]
            expected, may_begin_anywhere = max(expected, first + len(values)), False
        return chunks

    # From here on: on the event loop.

    async def _opened(self, client: Client) -> None:
        def delivered(chunk: schema.Deliver) -> None:
            values = unpack(chunk)
            with self._changed:
                if self._client is client:
                    self._chunks.append((chunk.chunk_first_offset, values))
                    self._changed.notify_all()

        client.add_handler(schema.Deliver, delivered, name="0")
        await client.run_queue_listener_task(0, delivered)
        with self._changed:
            self._client, self._chunks = client, []
            start = self._next
        where = schema.OffsetSpec.from_params(OffsetType.OFFSET, start)
        await client.subscribe(self._log, 0, where, initial_credit=CREDIT)

    def _lost(self) -> None:
        with self._changed:
            self._client = None


def offsets_of(chunks: Sequence[tuple[int, list[bytes]]]) -> NDArray[np.int64]:
    """Each record's offset; a chunk is its first offset and its payloads."""
    ranges = [np.arange(first, first + len(values), dtype=np.int64) for first, values in chunks]
    return np.concatenate(ranges) if ranges else np.empty(0, np.int64)
