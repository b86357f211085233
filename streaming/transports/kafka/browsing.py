"""Records of any topic, looked at one by one: the oldest, the newest, those to come; decoded where a codec is known.

Invariant: looking leaves no trace. Partitions are assigned, no group is joined, nothing is committed; only committed
records are shown unless asked otherwise. This is for eyes: the application reads batches (source.py, reading.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]  # the package has it, its stubs do not

from streaming.errors import BrokerUnavailable, UsageError
from streaming.events import MARK
from streaming.interfaces import Codec, Extent
from streaming.transports.kafka import failures
from streaming.transports.kafka.inspection import NO_LATER_RECORD, Cluster
from streaming.transports.kafka.settings import READER

Start = str | int | datetime
EARLIEST: Final = "earliest"
LATEST: Final = "latest"
_POLL_RECORDS: Final = 2_000
_POLL_S: Final = 0.1
_SILENT_POLLS: Final = 300
_LOOK_BACK_GROWTH: Final = 16


@dataclass(frozen=True, slots=True)
class Record:
    """A record as the broker keeps it. `timestamp` is the broker's or the producer's; a tombstone's value is None."""

    topic: str
    partition: int
    offset: int
    timestamp: datetime | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


Wanted = Callable[[Record], bool]


def everything(_: Record) -> bool:
    """Every record is wanted."""
    return True


def start_of(text: str) -> Start:
    """`earliest`, `latest`, an offset, or a time in ISO 8601 (without zone: UTC). UsageError for anything else."""
    if text in {EARLIEST, LATEST}:
        return text
    if text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--from {text}: earliest, latest, an offset, or a time such as 2026-11-25T15:00:00Z"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Browser:
    """One topic, or one partition of it. UsageError when there is none. A context manager: browsing()."""

    def __init__(
        self, cluster: Cluster, topic: str, *, partition: int | None = None, is_committed: bool = True
    ) -> None:
        numbers = [each.number for each in cluster.partitions(topic)]
        if partition is not None and partition not in numbers:
            raise UsageError(f"{topic} has no partition {partition}; it has {numbers[0]} to {numbers[-1]}")
        self._cluster, self._topic, self._is_committed = cluster, topic, is_committed
        self._partitions = numbers if partition is None else [partition]
        self._consumer = Consumer(
            {
                **READER,
                "isolation.level": "read_committed" if is_committed else "read_uncommitted",
                "bootstrap.servers": cluster.bootstrap_servers,
                "client.id": "streamgauge-look",
                "log_level": 2,
            }
        )

    def close(self) -> None:
        """Let the connection go."""
        self._consumer.close()

    def first(self, start: Start, limit: int, wanted: Wanted = everything) -> list[Record]:
        """At most `limit` records from `start` on, in the order of their timestamps."""
        found: dict[int, list[Record]] = {partition: [] for partition in self._partitions}
        open_partitions = self._readable(self._starts(start))
        for record in self._until_end(open_partitions):
            kept = found[record.partition]
            if len(kept) < limit and wanted(record):
                kept.append(record)
            if len(kept) >= limit:
                open_partitions.pop(record.partition, None)
        return _in_order(found.values())[:limit]

    def last(self, limit: int, wanted: Wanted = everything) -> list[Record]:
        """At most `limit` records before the present end, in the order of their timestamps."""
        extents, back = self._extents(), limit
        while True:
            starts = {partition: max(each.low, each.high - back) for partition, each in extents.items()}
            found = {partition: deque[Record](maxlen=limit) for partition in extents}
            for record in self._until_end(self._readable(starts)):
                if wanted(record):
                    found[record.partition].append(record)
            # A partition that gave fewer may hold others that belong here, unless it was read whole.
            if all(len(kept) == limit or starts[p] == extents[p].low for p, kept in found.items()):
                return _in_order(found.values())[-limit:]
            back *= _LOOK_BACK_GROWTH

    def follow(self, start: Start, wanted: Wanted = everything) -> Iterator[list[Record]]:
        """Records from `start` on and as they come, without an end; an empty list whenever there was nothing new."""
        self._assign(self._starts(start))
        while True:
            records, _ = self._poll()
            yield [record for record in records if wanted(record)]

    def _starts(self, start: Start) -> dict[int, int]:
        extents = self._extents()
        if isinstance(start, datetime):
            return self._starts_at(start, extents)
        if isinstance(start, int):
            return self._starts_from(start, extents)
        return {partition: each.low if start == EARLIEST else each.high for partition, each in extents.items()}

    def _starts_at(self, moment: datetime, extents: Mapping[int, Extent]) -> dict[int, int]:
        spec = OffsetSpec.for_timestamp(int(moment.timestamp() * 1000))
        found = self._answered(spec)
        return {p: each.high if found[p] == NO_LATER_RECORD else found[p] for p, each in extents.items()}

    def _starts_from(self, offset: int, extents: Mapping[int, Extent]) -> dict[int, int]:
        if len(extents) > 1:
            raise UsageError(f"--from {offset}: each partition counts for itself; say which with --partition")
        [(partition, extent)] = extents.items()
        if not extent.low <= offset <= extent.high:
            raise UsageError(
                f"{self._topic}[{partition}] holds the offsets {extent.low} to {extent.high}, not {offset}"
            )
        return {partition: offset}

    def _extents(self) -> dict[int, Extent]:
        lows = self._answered(OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        highs = self._answered(OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return {partition: Extent(low, highs[partition]) for partition, low in lows.items()}

    def _answered(self, spec: Any) -> dict[int, int]:
        places = [(self._topic, partition) for partition in self._partitions]
        found = self._cluster.offsets(places, spec, is_committed=self._is_committed)
        silent = [f"{topic}[{partition}]" for (topic, partition), offset in found.items() if offset is None]
        if silent:
            raise BrokerUnavailable(f"no leader of {', '.join(silent)} answers: streamgauge topics {self._topic}")
        return {partition: cast("int", offset) for (_, partition), offset in found.items()}

    def _readable(self, starts: Mapping[int, int]) -> dict[int, int]:
        """Without the partitions that end where they would be read from: no end would be announced for those."""
        extents = self._extents()
        return {partition: start for partition, start in starts.items() if start < extents[partition].high}

    def _until_end(self, starts: dict[int, int]) -> Iterator[Record]:
        """Records until each partition has ended; a caller may take partitions out of `starts` on the way."""
        self._assign(starts)
        silent = 0
        while starts:
            records, ended = self._poll()
            yield from records
            for partition in ended:
                starts.pop(partition, None)
            silent = 0 if records or ended else silent + 1
            if silent > _SILENT_POLLS:
                raise BrokerUnavailable(f"{self._topic} is silent, its end is not reached")
        self._consumer.unassign()

    def _assign(self, starts: Mapping[int, int]) -> None:
        self._consumer.assign([TopicPartition(self._topic, partition, offset) for partition, offset in starts.items()])

    def _poll(self) -> tuple[list[Record], set[int]]:
        """Records, and the partitions whose present end was reached."""
        records, ended = [], set()
        for message in self._consumer.consume(_POLL_RECORDS, _POLL_S):
            error = message.error()
            if error is None:
                records.append(_record(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(cast("int", message.partition()))
            elif not failures.is_passing(error):
                raise failures.asking(self._topic, KafkaException(error))
        return records, ended


@contextmanager
def browsing(
    cluster: Cluster, topic: str, *, partition: int | None = None, is_committed: bool = True
) -> Iterator[Browser]:
    """A Browser that is closed at the end."""
    browser = Browser(cluster, topic, partition=partition, is_committed=is_committed)
    try:
        yield browser
    finally:
        browser.close()


def shown(records: Sequence[Record], codec: Codec | None, why_raw: str = "") -> list[dict[str, Any]]:
    """Each record as JSON can hold it: place, time, key, headers, and its value as one of three.

    `row`: the decoded event (times as datetime); `text`: what is readable as UTF-8; `hex`: anything else. The latter
    two come with `why_raw`: the codec's own reason, or the one given. A tombstone has none of the three.
    """
    given = [record.value or b"" for record in records]
    rows: dict[int, dict[str, Any]] = {}
    reasons: dict[int, str] = {}
    if codec is not None:
        decoded = codec.decode(given)
        rows = dict(zip(decoded.rows.tolist(), decoded.table.iter_rows(named=True), strict=True))
        reasons = {each.index: each.reason for each in decoded.rejections}
    return [
        {**_place(record), **_value(record, rows.get(place), reasons.get(place, why_raw))}
        for place, record in enumerate(records)
    ]


def _place(record: Record) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp.isoformat(timespec="milliseconds") if record.timestamp else None,
        "key": None if record.key is None else _readable_bytes(record.key) or record.key.hex(),
        "headers": {name: _readable_bytes(value or b"") or (value or b"").hex() for name, value in record.headers},
        "size_bytes": len(record.value or b""),
    }


def _value(record: Record, row: dict[str, Any] | None, why_raw: str) -> dict[str, Any]:
    if record.value is None:
        return {"is_tombstone": True}
    if row is not None:
        return {"row": row, "is_mark": row.get("sequence") == MARK}
    text = _readable_bytes(record.value)
    return {"hex": record.value.hex(), "why_raw": why_raw} if text is None else {"text": text, "why_raw": why_raw}


def _readable_bytes(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() or text.replace("\n", "").replace("\t", "").isprintable() else None


def _record(message: Message) -> Record:
    kind, timestamp_ms = message.timestamp()
    return Record(
        topic=cast("str", message.topic()),
        partition=cast("int", message.partition()),
        offset=cast("int", message.offset()),
        timestamp=datetime.fromtimestamp(timestamp_ms / 1000, UTC) if kind else None,
        key=message.key(),
        value=message.value(),
        headers=tuple(cast("Any", message.headers()) or ()),
    )


def _in_order(found: Any) -> list[Record]:
    """By time, then by place; records without a time come first."""
    beginning = datetime.fromtimestamp(0, UTC)
    return sorted(
        (record for kept in found for record in kept),
        key=lambda record: (record.timestamp or beginning, record.partition, record.offset),
    )
