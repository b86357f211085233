"""The one loop of every producer: take what is due, number it, encode it, write it down, send it, confirm it.

Invariant: a sequence is in the ledger's reserved ranges, on disk, before it is handed to the publisher; it is confirmed
in the ledger only after the publisher had nothing outstanding.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import polars as pl
import pyarrow as pa

from streaming.batch import Outgoing
from streaming.errors import OutcomeUnknown
from streaming.events import MARK
from streaming.generators.ledger import Ledger
from streaming.generators.pacing import Clock, Pacing, SystemClock, wait_for_own_mark
from streaming.interfaces import Codec, Publisher
from streaming.progress import Progress
from streaming.service import Limits
from streaming.topology import Stream, StreamKind, stream
from streaming.transformers.windows import LATENESS_US, WINDOW_US

_log = logging.getLogger(__name__)
SETTLE_US: Final = WINDOW_US + LATENESS_US  # a mark this far behind the last event closes its window
CONFIRM_S: Final = 1.0  # from then on, whenever nothing is outstanding
FLUSH_AFTER_S: Final = 2.0  # then wait until nothing is
FLUSH_AFTER_RECORDS: Final = 200_000
LAST_FLUSH_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a generator has due: rows without producer, epoch and sequence, in event-time order.

    A chunk without rows says that nothing will come for some time, and `mark_us` that nothing older than that will.
    """

    rows: pl.DataFrame
    mark_us: int | None = None


class Generator(Protocol):
    """Makes one stream's events, on a schedule of its own."""

    @property
    def stream(self) -> str:
        """The name of the stream."""
        ...

    @property
    def is_live(self) -> bool:
        """Whether event times are the wall clock's; then a restarted producer waits for its own earlier mark."""
        ...

    @property
    def pacing(self) -> Pacing:
        """Its schedule: how late it is."""
        ...

    def chunks(self, after_us: int, stop: threading.Event) -> Iterator[Chunk]:
        """Wait for what is due and yield it, until `stop` is set or all is told.

        Nothing is older than `after_us`, which the producer's earlier lives have promised (0: nothing).
        """
        ...


@dataclass(slots=True)
class Sent:
    """What a producer has sent in this epoch: sequences [0, attempted), of which [0, confirmed) are on the brokers.

    `event_time_us` is the latest. `worst_delay_s` is how late, at most, a send was against its schedule.
    """

    producer: str
    epoch: int
    attempted: int = 0
    confirmed: int = 0
    event_time_us: int | None = None
    worst_delay_s: float = 0.0


def produce(
    generator: Generator,
    publisher: Publisher,
    codec: Codec,
    ledger: Ledger,
    *,
    stop: threading.Event,
    limits: Limits | None = None,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> Sent:
    """Send everything `generator` has until `stop` is set or a limit is reached; then flush, mark and close the ledger.

    The publisher stays open; reaching `limits.for_s` sets `stop`. `progress` counts and is written about once a second.
    OutcomeUnknown from the publisher passes through after the ledger has it.
    """
    limits, clock, progress = limits or Limits(), clock or SystemClock(), progress or Progress(ledger.producer)
    timer = threading.Timer(limits.for_s, stop.set) if limits.for_s is not None else None
    if timer:
        timer.daemon = True
        timer.start()
    sender = _Sender(stream(generator.stream), publisher, codec, ledger, clock, generator.pacing, progress, stop)
    try:
        after_us = ledger.previous_mark_us or 0
        if not generator.is_live or wait_for_own_mark(clock, after_us, ledger.producer, stop):
            progress.begins()
            _send_all(sender, generator.chunks(after_us, stop), limits.messages)
            sender.waited()
            progress.ends()
        sender.finish()
    except BaseException:
        sender.give_up()
        raise
    finally:
        if timer:
            timer.cancel()
    return sender.sent


def _send_all(sender: _Sender, chunks: Iterator[Chunk], records: int | None) -> None:
    for chunk in chunks:
        left = None if records is None else records - sender.sent.attempted
        if chunk.rows.is_empty():
            sender.rest(chunk.mark_us)
        else:
            sender.send(chunk.rows if left is None else chunk.rows.head(left))
        if records is not None and sender.sent.attempted >= records:
            return


@dataclass(slots=True)
class _Sender:
    """Numbers, encodes, records and publishes."""

    stream: Stream
    publisher: Publisher
    codec: Codec
    ledger: Ledger
    clock: Clock
    pacing: Pacing
    progress: Progress
    stop: threading.Event
    sent: Sent = field(init=False)
    _confirmed_at_s: float = field(init=False)
    _paced_s: float = 0.0  # of the pacing's waiting, what progress knows

    def __post_init__(self) -> None:
        self.sent = Sent(self.ledger.producer, self.ledger.epoch)
        self._confirmed_at_s = self.clock.monotonic_s()

    def send(self, rows: pl.DataFrame) -> None:
        """Publish rows under the next sequence numbers."""
        sent = self.sent
        first = sent.attempted
        numbered = self._numbered(rows, pl.int_range(first, first + rows.height, dtype=pl.Int64))
        values, keys = self.codec.encode(numbered), numbered[self.stream.key].cast(pl.Binary).to_list()
        self._confirm_when_due()
        self.ledger.reserve(first + rows.height)
        sent.attempted += rows.height  # before publish(): when it fails half-way, all of it may be sent
        sent.event_time_us = max(sent.event_time_us or 0, rows["event_time"].to_physical()[-1])
        self.publisher.publish(Outgoing(self.stream.name, values, keys))
        self.progress.took(rows.height)
        sent.worst_delay_s = self.pacing.worst_delay_s
        self.waited()
        self.progress.tick()

    def rest(self, mark_us: int | None) -> None:
        """Nothing will come for some time: close windows by a mark, and confirm what was sent."""
        if mark_us is not None:
            self.mark(mark_us)
        if self._is_flushed(FLUSH_AFTER_S):
            self._confirm()
        self.waited()
        self.progress.tick()
        self.progress.write()

    def waited(self) -> None:
        """What was waited for the schedule until now is waiting of this turn."""
        self.progress.waited_s += self.pacing.waited_s - self._paced_s
        self._paced_s = self.pacing.waited_s

    def mark(self, mark_us: int) -> None:
        """Promise on every partition that nothing older than `mark_us` follows."""
        if self.stream.kind is not StreamKind.SOURCE:
            return
        self.ledger.mark(mark_us)
        row = blank_row(self.stream.schema).with_columns(
            pl.lit(mark_us).cast(pl.Datetime("us", "UTC")).alias("event_time")
        )
        value = self.codec.encode(self._numbered(row, pl.lit(MARK, pl.Int64)))[0]
        count = self.stream.partitions
        self.publisher.publish(Outgoing(self.stream.name, [value] * count, [b""] * count, range(count)))

    def finish(self) -> None:
        """Everything confirmed, windows closed by a mark, ledger closed."""
        self._flush()
        if self.sent.event_time_us is not None:
            self.mark(self.sent.event_time_us + SETTLE_US)
            self._flush()
        self.ledger.close(self.sent.attempted)
        self.progress.write()

    def give_up(self) -> None:
        """Write down that what is not confirmed may or may not have been sent."""
        try:
            self.ledger.unknown(self.sent.confirmed, self.sent.attempted)
            self.ledger.close(self.sent.attempted)
        finally:
            self.ledger.abandon()

    def _numbered(self, rows: pl.DataFrame, sequence: pl.Expr) -> pl.DataFrame:
        known = {
            "producer": pl.lit(self.ledger.producer),
            "epoch": pl.lit(self.ledger.epoch, pl.Int64),
            "sequence": sequence,
        }
        names = self.stream.schema.names
        return rows.select(known[name].alias(name) if name in known else pl.col(name) for name in names)

    def _confirm_when_due(self) -> None:
        """Confirm about once a second, at a moment when nothing is outstanding if there is one."""
        waited_s = self.clock.monotonic_s() - self._confirmed_at_s
        waiting = self.sent.attempted - self.sent.confirmed
        if waited_s >= FLUSH_AFTER_S or waiting >= FLUSH_AFTER_RECORDS:
            is_settled = self._is_flushed(FLUSH_AFTER_S)
        else:
            is_settled = waited_s >= CONFIRM_S and self._is_flushed(0)
        if is_settled:
            self._confirm()

    def _is_flushed(self, timeout_s: float) -> bool:
        with self.progress.waiting():
            return self.publisher.flush(timeout_s)

    def _flush(self) -> None:
        """Wait out an outage, for as long as the publisher does; but once told to stop, LAST_FLUSH_S at most."""
        while not self._is_flushed(LAST_FLUSH_S):
            left = f"{self.publisher.outstanding:,} records were not confirmed within {LAST_FLUSH_S:.0f} s"
            if self.stop.is_set():
                raise OutcomeUnknown(f"{self.stream.name}: {left}")
            _log.warning("%s: %s; waiting on", self.stream.name, left)
        self._confirm()

    def _confirm(self) -> None:
        self.ledger.confirm(self.sent.confirmed, self.sent.attempted)
        self.progress.commits(self.sent.attempted - self.sent.confirmed)
        self.sent.confirmed = self.sent.attempted
        self._confirmed_at_s = self.clock.monotonic_s()


def blank_row(schema: pa.Schema) -> pl.DataFrame:
    """One row of a schema that says nothing: null where that is allowed, else zero, "" or []."""
    frame = pl.from_arrow(pa.Table.from_pylist([{field.name: _blank(field) for field in schema}], schema=schema))
    if not isinstance(frame, pl.DataFrame):
        raise TypeError(schema)
    return frame


def _blank(column: pa.Field) -> Any:
    if column.nullable:
        return None
    if pa.types.is_struct(column.type):
        return {inner.name: _blank(inner) for inner in column.type}
    if pa.types.is_list(column.type):
        return []
    return "" if pa.types.is_string(column.type) else 0
