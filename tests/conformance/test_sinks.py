"""Sinks into files, both formats with both codecs: whatever owners do and suffer, each record lands exactly once.

The same for a sink that reads a log and for one that reads a queue. Two promises need offsets, and are asked of logs
only: a queue's sink has no position to be sent back to, so none is ever displaced (it writes what the other has not);
and it knows a message by what it says, so one that was good and is not committed has left no trace by which another
codec could be refused.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sinks.arrivals import ArrivalSink
from sinks.files import FileSink, Rotation
from sinks.reader import Slot, quarantine_scan, scan, slots
from sinks.slots import Checkpoint
from streaming.batch import Batch
from streaming.codecs import codec
from streaming.errors import ChainBroken
from streaming.events import MARK, POSITION_MEANS, polars_schema
from streaming.home import Home
from streaming.interfaces import Codec, Identity, Offsets, Sink
from streaming.topology import ROLES, Role

ROLES_BY_FORMAT = {"parquet": ROLES["position-means-parquet"], "csv": ROLES["position-means-csv"]}
CODECS = ("json", "avro")
IDENTITY = Identity("cluster", "topic")
NEVER = Rotation(rows=10**9, seconds=1e9)


@dataclass
class Log:
    """One partition of a topic: what kind of record lies at which offset. There are gaps, as a broker leaves them."""

    codec: Codec
    kinds: dict[int, str]  # offset → good, bad or mark
    broker = "kafka"

    def sink(self, home: Path, role: Role, codec: Codec, checkpoint: Checkpoint) -> Sink:
        return FileSink(
            Home(home), self.broker, role, codec, IDENTITY, rotation=NEVER, writer="w", checkpoint=checkpoint
        )

    def start(self, resumed: int | None) -> int:
        """Where an owner begins to read: where its sink says."""
        return resumed or 0

    def acknowledge(self, committed: Offsets) -> None:
        """A hint; the sink decides."""

    def place(self, next_offset: int) -> int:
        """Behind which record a batch's `next_offset` is."""
        return next_offset

    def below(self, end: int | None) -> list[int]:
        """The good records that a table holds whose last slot ends at `end`; None: all."""
        return [offset for offset in self.offsets("good") if end is None or offset < end]

    def numbers(self, offsets: list[int]) -> list[int]:
        """What `_offset` is in their rows."""
        return offsets

    def read(self, start: int, count: int) -> Batch | None:
        offsets = [offset for offset in self.kinds if offset >= start][:count]
        if not offsets:
            return None
        return Batch("position_means", 0, [self.payload(at) for at in offsets], np.asarray(offsets, dtype=np.int64))

    def payload(self, offset: int) -> bytes:
        if self.kinds[offset] == "bad":
            return b"poison %d" % offset
        return self.codec.encode(means(offset, MARK if self.kinds[offset] == "mark" else offset))[0]

    def offsets(self, kind: str) -> list[int]:
        return [offset for offset, found in self.kinds.items() if found == kind]


@dataclass
class Queue(Log):
    """The same records as messages: delivered under ever new tags, again and again until they are acknowledged."""

    broker = "rabbitmq"
    acknowledged: int = 0  # everything before this record
    places: dict[int, int] = field(default_factory=lambda: {1: 0})  # next tag → next record

    def sink(self, home: Path, role: Role, codec: Codec, checkpoint: Checkpoint) -> Sink:
        return ArrivalSink(
            Home(home), self.broker, role, codec, IDENTITY, rotation=NEVER, writer="w", checkpoint=checkpoint
        )

    def start(self, resumed: int | None) -> int:
        assert resumed is None
        return self.acknowledged

    def acknowledge(self, committed: Offsets) -> None:
        self.acknowledged = max([self.acknowledged, *map(self.place, committed.values())])

    def place(self, next_offset: int) -> int:
        return self.places[next_offset]

    def below(self, end: int | None) -> list[int]:
        return self.offsets("good")[:end]

    def numbers(self, offsets: list[int]) -> list[int]:
        return list(range(len(offsets)))

    def read(self, start: int, count: int) -> Batch | None:
        if not (batch := super().read(start, count)):
            return None
        tags = np.arange(len(batch), dtype=np.int64) + max(self.places)
        self.places[int(tags[-1]) + 1] = batch.next_offset
        return Batch(batch.stream, batch.partition, batch.values, tags)


LOGS: dict[str, type[Log]] = {"log": Log, "queue": Queue}
EVERY = [(log, file_format, name) for log in LOGS for file_format in ROLES_BY_FORMAT for name in CODECS]
ALL_OF_THEM = pytest.mark.parametrize(("kind", "file_format", "codec_name"), EVERY)
BOTH = pytest.mark.parametrize("kind", LOGS)


def means(vehicle: int, sequence: int) -> pl.DataFrame:
    moment = datetime(2026, 1, 1, 0, 0, 0, 7, tzinfo=UTC)
    row = [f"v,{vehicle}", "p", 1, sequence, "source", moment, moment, 3, 1.1, None, 1 / 3, 0.0]
    return pl.DataFrame([row], schema=polars_schema(POSITION_MEANS), orient="row")


@dataclass
class Owner:
    """A process that believes it owns the partition, and what it has read."""

    home: Path
    role: Role
    log: Log
    sink: Sink = field(init=False)
    position: int = 0
    owns: bool = False

    def __post_init__(self) -> None:
        self.start()

    def start(self, checkpoint: Checkpoint = lambda _: None) -> None:
        self.sink = self.log.sink(self.home, self.role, self.log.codec, checkpoint)
        self.owns = False

    def write(self, count: int) -> None:
        if not self.owns:
            self.position, self.owns = self.log.start(self.sink.resume(0)), True
        if batch := self.log.read(self.position, count):
            self.sink.write(batch)
            self.position = self.log.place(batch.next_offset)

    def commit(self) -> None:
        self.log.acknowledge(self.sink.commit())
        self.position = self.sink.displaced().get(0, self.position)

    def release(self, *, lost: bool) -> None:
        self.sink.release([0], lost=lost)
        self.owns = False

    def do(self, verb: str, count: int) -> None:
        if verb == "write":
            self.write(count)
        elif verb == "commit":
            self.commit()
        elif verb == "die":
            self.start()
        else:
            self.release(lost=verb == "lose")


def committed(home: Path, role: Role, log: Log) -> list[Slot]:
    return slots(Home(home), log.broker, str(role.table))


def assert_exact(home: Path, role: Role, log: Log, below: int | None = None) -> None:
    """Each good record below the end is in the table, each bad one in quarantine, once and with its own values."""
    rows = scan(Home(home), log.broker, str(role.table)).sort("_offset").collect()
    good = log.below(below)
    assert rows["_offset"].to_list() == log.numbers(good)
    expected = pl.concat([means(0, 0).clear(), *(means(offset, offset) for offset in good)])
    assert rows.select(expected.columns).equals(expected)
    aside = quarantine_scan(Home(home), log.broker, str(role.table)).sort("_offset").collect()
    bad = log.offsets("bad") if below is None else log.offsets("bad")[: len(aside)]
    assert aside["_offset"].to_list() == log.numbers(bad)
    assert aside["payload"].to_list() == [b"poison %d" % offset for offset in bad]


KINDS = st.lists(st.sampled_from(["good", "good", "good", "bad", "mark", "gap"]), min_size=1, max_size=40)
VERBS = st.sampled_from(["write", "write", "write", "commit", "commit", "die", "release", "lose"])
ACTIONS = st.lists(st.tuples(st.integers(0, 1), VERBS, st.integers(1, 9)), max_size=16)


@ALL_OF_THEM
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kinds=KINDS, actions=ACTIONS)
def test_two_owners_that_write_commit_die_and_lose_land_everything_once(
    kind: str, file_format: str, codec_name: str, kinds: list[str], actions: Sequence[tuple[int, str, int]]
) -> None:
    role = ROLES_BY_FORMAT[file_format]
    log = LOGS[kind](codec(codec_name, POSITION_MEANS), {at: what for at, what in enumerate(kinds) if what != "gap"})
    with TemporaryDirectory() as folder:
        home = Path(folder)
        owners = [Owner(home, role, log), Owner(home, role, log)]
        for who, verb, count in actions:
            owners[who].do(verb, count)
            found = committed(home, role, log)
            assert_exact(home, role, log, below=found[-1].next if found else 0)
        last = Owner(home, role, log)
        while not last.owns or log.read(last.position, 1):
            last.write(7)
            last.commit()
        assert_exact(home, role, log)


class Killed(BaseException):
    """Stands for SIGKILL."""


def after_the_quarantine(moment: str) -> None:
    """Dies between the two commits: the first that comes so far is the quarantine's."""
    if moment == "after_high_water":
        raise Killed


def laid(tmp_path: Path, file_format: str, kinds: Sequence[str], codec_name: str = "json", kind: str = "log") -> Owner:
    log = LOGS[kind](codec(codec_name, POSITION_MEANS), dict(enumerate(kinds)))
    owner = Owner(tmp_path, ROLES_BY_FORMAT[file_format], log)
    owner.write(len(kinds))
    return owner


@BOTH
@pytest.mark.parametrize("file_format", ROLES_BY_FORMAT)
def test_a_full_disk_commits_nothing_keeps_the_buffer_and_goes_on_when_there_is_room(
    tmp_path: Path, file_format: str, kind: str
) -> None:
    owner = laid(tmp_path, file_format, ["good"] * 100, kind=kind)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(OSError) as full:  # noqa: PT011 - which one is asserted below
            owner.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.value.errno == errno.EFBIG
    assert committed(tmp_path, owner.role, owner.log) == []
    assert not list((Home(tmp_path).staging(owner.log.broker) / str(owner.role.table)).iterdir())
    owner.commit()
    assert_exact(tmp_path, owner.role, owner.log)


@BOTH
@pytest.mark.parametrize("file_format", ROLES_BY_FORMAT)
def test_records_set_aside_before_a_crash_are_not_set_aside_twice(tmp_path: Path, file_format: str, kind: str) -> None:
    owner = laid(tmp_path, file_format, ["good", "bad", "good", "bad"], kind=kind)
    owner.start(after_the_quarantine)
    owner.write(4)
    with pytest.raises(Killed):
        owner.commit()
    assert committed(tmp_path, owner.role, owner.log) == []
    again = Owner(tmp_path, owner.role, owner.log)
    again.write(4)
    again.commit()
    assert_exact(tmp_path, owner.role, owner.log)
    assert again.sink.quarantined == 0
    again.log.kinds |= {4: "bad", 5: "good", 6: "bad"}
    again.write(3)
    again.commit()
    assert again.sink.quarantined == 2


@pytest.mark.parametrize(("before", "after"), [("json", "avro"), ("avro", "json")])
def test_a_codec_changed_between_quarantine_and_table_is_refused_and_loses_nothing(
    tmp_path: Path, before: str, after: str
) -> None:
    owner = laid(tmp_path, "csv", ["good", "bad"], before)
    owner.start(after_the_quarantine)
    owner.write(2)
    with pytest.raises(Killed):
        owner.commit()
    other = owner.log.sink(tmp_path, owner.role, codec(after, POSITION_MEANS), lambda _: None)
    assert other.resume(0) is None
    batch = owner.log.read(0, 2)
    assert batch is not None
    with pytest.raises(ChainBroken, match="offset 0 was good"):
        other.write(batch)
    owner.start()
    owner.write(2)
    owner.commit()
    assert_exact(tmp_path, owner.role, owner.log)


def test_a_codec_changed_on_a_queue_sets_aside_what_it_cannot_read_and_loses_nothing(tmp_path: Path) -> None:
    queue = laid(tmp_path, "parquet", ["good", "bad", "good"], "json", "queue").log
    sink = queue.sink(tmp_path, ROLES_BY_FORMAT["parquet"], codec("avro", POSITION_MEANS), lambda _: None)
    sink.resume(0)
    batch = queue.read(0, 3)
    assert batch is not None
    sink.write(batch)
    assert sink.commit() == {0: batch.next_offset}
    aside = quarantine_scan(Home(tmp_path), queue.broker, "position_means_parquet").sort("_offset").collect()
    assert aside["payload"].to_list() == [queue.payload(offset) for offset in range(3)]


def test_positions_that_two_owners_reach_differently_do_not_overlap(tmp_path: Path) -> None:
    """The one that comes second is told where to go on, and its buffer is dropped."""
    log = Log(codec("json", POSITION_MEANS), dict.fromkeys(range(20), "good"))
    first, second = (Owner(tmp_path, ROLES_BY_FORMAT["parquet"], log) for _ in range(2))
    first.write(12)
    second.write(5)
    second.commit()
    assert first.sink.commit() == {}
    assert first.sink.displaced() == {0: 5}
    assert first.sink.displaced() == {}
    first.position = 5
    first.write(15)
    assert first.sink.commit() == {0: 20}
    assert_exact(tmp_path, first.role, log)
