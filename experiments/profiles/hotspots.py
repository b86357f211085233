"""Hot spots that profiles found in our own code, and what their remedies brought: both ways measured side by side.

Invariant: the former way is kept here as it was, gives the same result as the present one (checked before it is timed),
and is measured in the same process, in turns with it: what else the machine does meets both. Processor time, not the
clock's: the machine is shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import polars as pl
from pika import frame, spec

from experiments.profiles import inputs
from experiments.statistics import Interval, median_interval, ratio_interval
from streaming.codecs.json import JsonCodec
from streaming.topology import stream
from streaming.transformers import windows
from streaming.transports.rabbitmq import wire

ROWS: Final = 20_000
ROUNDS: Final = 101


@dataclass(frozen=True, slots=True)
class HotSpot:
    """A place in our code: who found it, what was done, and both ways as functions without arguments."""

    name: str
    where: str
    found_by: str
    remedy: str
    before: Callable[[], Any]
    after: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Gain:
    """Milliseconds of processor time a batch of 20,000 records; `ratio`: after to before."""

    spot: HotSpot
    before_ms: Interval
    after_ms: Interval
    ratio: Interval


def hot_spots() -> list[HotSpot]:
    """All of them, with their data made."""
    return [_encoding(), _hops(), _deliveries()]


def measure(spot: HotSpot, rounds: int = ROUNDS) -> Gain:
    """Both ways in turns. ValueError when they do not give the same."""
    if not _same(spot.before(), spot.after()):
        raise ValueError(f"{spot.name}: the two ways give different results")
    pairs = [(_cost_ms(spot.before), _cost_ms(spot.after)) for _ in range(rounds)]
    before, after = ([pair[place] for pair in pairs] for place in (0, 1))
    return Gain(spot, median_interval(before), median_interval(after), ratio_interval(after, before))


def _encoding() -> HotSpot:
    codec = JsonCodec(stream("positions").schema)
    rows = inputs.rows("positions", ROWS, 20, 1)

    def former() -> list[bytes]:
        times = [name for name, kind in rows.schema.items() if isinstance(kind, pl.Datetime)]
        wire = rows.with_columns(pl.col(times).cast(pl.Int64))
        return wire.write_ndjson().encode().splitlines()

    return HotSpot(
        "JSON out by way of a str",
        "streaming/codecs/json.py, JsonCodec.encode",
        "cProfile of positions-generator: `str.encode` was among its first calls by own time, below `encoding`",
        "polars writes into a buffer of bytes; no str is made and encoded again",
        former,
        lambda: codec.encode(rows),
    )


def _hops() -> HotSpot:
    fixes = _keyed(inputs.rows("positions", ROWS, 20, 1))

    def former() -> pl.DataFrame:
        return fixes.sort("window", "event_time_us", "epoch", "sequence").select("window", "latitude_n", "longitude_n")

    return HotSpot(
        "sorting what is sorted",
        "streaming/transformers/windows.py, _hops",
        "cProfile of means-transformer: `collect` leads `computing the step`; taken apart, the sort of fixes by four "
        "columns is about a sixth of a step",
        "fixes nearly always come in order: it is checked, and then they are only grouped by window, in three columns",
        former,
        lambda: windows._by_window(fixes).select("window", "latitude_n", "longitude_n"),
    )


class _OneByOne(wire.Deliveries):
    """Cuts deliveries out of the bytes as it did: a call and a list for each."""

    def take(self, data: bytes, at: int) -> tuple[int, bool]:
        end = len(data)
        while at + 12 <= end:
            kind, _, size, method, tag_length = wire._FRAME_AND_METHOD.unpack_from(data, at)
            if kind != wire._METHOD or method != wire._DELIVER:
                return at, False
            after = self._take_one(data, at + 12 + tag_length, at + size + 8, end)
            if after < 0:
                return at, True
            at = after
        return at, False

    def _take_one(self, data: bytes, tag_at: int, header_at: int, end: int) -> int:
        if header_at + 19 > end:
            return -1
        wanted = int.from_bytes(data[header_at + 11 : header_at + 19])
        at = header_at + 8 + int.from_bytes(data[header_at + 3 : header_at + 7])
        parts: list[bytes] = []
        while wanted > 0:
            size = int.from_bytes(data[at + 3 : at + 7])
            after = at + size + 8
            if at + 7 > end or after > end:
                return -1
            parts.append(data[at + 7 : after - 1])
            wanted -= size
            at = after
        if at > end:
            return -1
        tag, again = wire._TAG.unpack_from(data, tag_at)
        self.tags.append(tag)
        self.again.append(again)
        self.values.append(parts[0] if len(parts) == 1 else b"".join(parts))
        return at


def _deliveries() -> HotSpot:
    values, _ = inputs.encoded("positions", ROWS, 20, 1, "json")
    received = b"".join(_delivered(tag, value) for tag, value in enumerate(values, start=1))

    def taken(by: type[wire.Deliveries]) -> tuple[list[int], list[bool], list[bytes]]:
        deliveries = by()
        deliveries.take(received, 0)
        return deliveries.tags, deliveries.again, deliveries.values

    return HotSpot(
        "a call for each delivery",
        "streaming/transports/rabbitmq/wire.py, Deliveries.take",
        "cProfile of positions-parquet on RabbitMQ's queues: `_take_one` led our functions, a quarter of the work",
        "a delivery in one frame, as nearly all are, is cut out in the loop, with two numbers read by one call",
        lambda: taken(_OneByOne),
        lambda: taken(wire.Deliveries),
    )


def _delivered(tag: int, value: bytes) -> bytes:
    """What RabbitMQ sends for a record."""
    method = spec.Basic.Deliver(
        "ctag1.0123456789abcdef", tag, exchange="streamgauge", routing_key="positions.vehicle-001"
    )
    parts = (
        frame.Method(wire.CHANNEL, method),
        frame.Header(wire.CHANNEL, len(value), wire._PERSISTENT),
        frame.Body(wire.CHANNEL, value),
    )
    return b"".join(part.marshal() for part in parts)


def _keyed(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows as the step holds them when it measures ways."""
    taken = windows._taken(rows).with_columns(window_us=windows._window_us())
    numbers = taken.select("producer", "vehicle", "window_us").unique(maintain_order=True).with_row_index("window")
    return taken.join(numbers, on=["producer", "vehicle", "window_us"], how="left", maintain_order="left")


def _cost_ms(act: Callable[[], Any]) -> float:
    began_s = time.process_time()
    act()
    return 1000 * (time.process_time() - began_s)


def _same(one: Any, other: Any) -> bool:
    return one.equals(other) if isinstance(one, pl.DataFrame) else one == other
