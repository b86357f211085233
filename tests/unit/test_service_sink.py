"""The loop of a sink, on the broker in memory: what lands, in which order, and what a full or broken disk does."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

import streaming.landing
from streaming.batch import Batch, Outgoing
from streaming.errors import ChainBroken, RestartRequired, StreamgaugeError
from streaming.landing import Landing
from streaming.progress import Progress
from streaming.service import Limits, run_sink
from streaming.topology import role, stream
from streaming.transports.memory import MemoryTransport

ROLE = role("positions-parquet")
PARTITIONS = range(stream("positions").partitions)
Record = tuple[int, bytes]
FOREVER = Limits()


@dataclass
class Shelf:
    """A sink in memory: buffered and committed records by partition, and faults to call up."""

    due_at: int = 10
    buffered: dict[int, list[Record]] = field(default_factory=dict)
    committed: dict[int, list[Record]] = field(default_factory=dict)
    threads: set[str] = field(default_factory=set)
    faults: list[Exception] = field(default_factory=list)
    stolen: dict[int, int] = field(default_factory=dict)  # partition → records that another owner commits first
    released: list[tuple[int, bool]] = field(default_factory=list)
    quarantined: int = 0
    gate: threading.Event | None = None  # write() waits for it
    _displaced: dict[int, int] = field(default_factory=dict)

    def resume(self, partition: int) -> int | None:
        self._note()
        return self._next(partition)

    def release(self, partitions: Iterable[int], *, lost: bool) -> None:
        self._note()
        for partition in partitions:
            self.released.append((partition, lost))
            if lost:
                self.buffered.pop(partition, None)
        if not lost:
            self.commit()

    def write(self, batch: Batch) -> None:
        self._note()
        if self.gate:
            self.gate.wait(10)
        records = list(zip(batch.offsets.tolist(), batch.values, strict=True))
        buffer = self.buffered.setdefault(batch.partition, [])
        expected = buffer[-1][0] + 1 if buffer else self._next(batch.partition) or 0
        assert records[0][0] == expected, f"[{batch.partition}]: {records[0][0]} instead of {expected}"
        buffer.extend(records)

    @property
    def is_due(self) -> bool:
        return sum(map(len, self.buffered.values())) >= self.due_at

    def commit(self) -> dict[int, int]:
        self._note()
        if self.faults:
            raise self.faults.pop(0)
        moved = {}
        for partition in list(self.buffered):
            records = self.buffered.pop(partition)
            if count := self.stolen.pop(partition, 0):
                self.committed.setdefault(partition, []).extend(records[:count])
                self._displaced[partition] = self._next(partition) or 0
                continue
            self.committed.setdefault(partition, []).extend(records)
            moved[partition] = records[-1][0] + 1
        return moved

    def displaced(self) -> dict[int, int]:
        taken, self._displaced = self._displaced, {}
        return taken

    def close(self) -> None:
        self.buffered.clear()

    @property
    def count(self) -> int:
        return sum(map(len, self.committed.values()))

    def values(self) -> list[bytes]:
        return sorted(value for records in self.committed.values() for _, value in records)

    def _next(self, partition: int) -> int | None:
        records = self.committed.get(partition)
        return records[-1][0] + 1 if records else None

    def _note(self) -> None:
        self.threads.add(threading.current_thread().name)


@pytest.fixture
def transport() -> MemoryTransport:
    made = MemoryTransport()
    made.create([stream("positions")], replication=1)
    return made


def publish(transport: MemoryTransport, numbers: range) -> list[bytes]:
    values = [b"%06d" % number for number in numbers]
    transport.publisher("tests").publish(Outgoing("positions", values, [b"v%d" % (n % 40) for n in numbers]))
    return values


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.002)


class Running(threading.Thread):
    """run_sink() on a thread; join_and_raise() gives its error."""

    def __init__(self, transport: MemoryTransport, sink: Shelf, instance: int = 0, limits: Limits = FOREVER) -> None:
        super().__init__(name=f"poller-{instance}")
        self.stop = threading.Event()
        self.progress = Progress(ROLE.name)
        self.error: BaseException | None = None
        self._arguments = (transport, sink, instance, limits)

    def run(self) -> None:
        transport, sink, instance, limits = self._arguments
        try:
            run_sink(transport, ROLE, sink, stop=self.stop, progress=self.progress, instance=instance, limits=limits)
        except StreamgaugeError as error:
            self.error = error

    def join_and_raise(self) -> None:
        self.join(20)
        assert not self.is_alive()
        if self.error:
            raise self.error


@contextmanager
def running(transport: MemoryTransport, sink: Shelf, instance: int = 0) -> Iterator[Running]:
    thread = Running(transport, sink, instance)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop.set()
        thread.join(20)


def test_everything_lands_once_and_is_acknowledged_when_it_has_landed(transport: MemoryTransport) -> None:
    values = publish(transport, range(1_000))
    shelf = Shelf()
    with running(transport, shelf) as service:
        until(lambda: shelf.count >= 1_000)
        values += publish(transport, range(1_000, 1_500))
        until(lambda: shelf.count >= 1_500)
    service.join_and_raise()

    assert shelf.values() == values
    assert service.progress.records == service.progress.committed == 1_500
    ends = {partition: records[-1][0] + 1 for partition, records in shelf.committed.items()}
    assert transport.committed("positions", ROLE.name) == ends


def test_the_sink_is_called_by_one_thread_which_does_not_poll(transport: MemoryTransport) -> None:
    publish(transport, range(100))
    shelf = Shelf()
    with running(transport, shelf):
        until(lambda: shelf.count >= 100)
    assert shelf.threads == {"sink"}


def test_stopping_commits_what_is_buffered(transport: MemoryTransport) -> None:
    values = publish(transport, range(100))
    shelf = Shelf(due_at=1_000_000)
    with running(transport, shelf) as service:
        until(lambda: service.progress.records >= 100)
        assert shelf.count == 0
    assert shelf.values() == values


def test_it_ends_by_itself_after_so_many_messages(transport: MemoryTransport) -> None:
    publish(transport, range(100))
    shelf = Shelf()
    service = Running(transport, shelf, limits=Limits(messages=100))
    service.start()
    service.join_and_raise()
    assert shelf.count == 100


def test_it_ends_by_itself_after_some_time(transport: MemoryTransport) -> None:
    service = Running(transport, Shelf(), limits=Limits(for_s=0.2))
    service.start()
    service.join_and_raise()


def test_a_full_disk_loses_nothing_and_needs_no_restart(
    transport: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming.landing, "_FIRST_RETRY_S", 0.01)
    values = publish(transport, range(500))
    shelf = Shelf(faults=[OSError(errno.ENOSPC, "No space left on device") for _ in range(4)])
    with running(transport, shelf) as service:
        until(lambda: shelf.count >= 500)
    service.join_and_raise()
    assert shelf.values() == values
    assert not shelf.faults


def test_a_disk_that_is_still_full_at_the_end_leaves_the_rest_for_the_next_start(transport: MemoryTransport) -> None:
    values = publish(transport, range(100))
    shelf = Shelf(due_at=1_000_000)
    with running(transport, shelf) as service:
        until(lambda: service.progress.records >= 100)
        shelf.faults = [OSError(errno.ENOSPC, "No space left on device") for _ in range(5)]
    with pytest.raises(RestartRequired, match="read again"):
        service.join_and_raise()
    assert shelf.count == 0

    shelf.faults = []
    with running(transport, shelf):
        until(lambda: len(shelf.buffered) or shelf.count)
    assert shelf.values() == values


def test_a_failing_disk_ends_the_process_without_a_commit(transport: MemoryTransport) -> None:
    publish(transport, range(100))
    shelf = Shelf(faults=[OSError(errno.EIO, "Input/output error")])
    service = Running(transport, shelf)
    service.start()
    with pytest.raises(RestartRequired, match="not to be trusted"):
        service.join_and_raise()
    assert shelf.count == 0
    assert transport.committed("positions", ROLE.name) == {}


def test_a_displaced_partition_is_read_again_behind_the_other_owners_records(transport: MemoryTransport) -> None:
    values = publish(transport, range(2_000))
    shelf = Shelf(due_at=50, stolen={0: 3, 3: 1})
    with running(transport, shelf) as service:
        until(lambda: shelf.count >= 2_000)
        values += publish(transport, range(2_000, 2_500))
        shelf.stolen = {1: 2}
        until(lambda: shelf.count >= 2_500)
    service.join_and_raise()
    assert shelf.values() == values
    assert service.progress.retried == 3


def test_what_the_sink_puts_into_quarantine_is_counted(transport: MemoryTransport) -> None:
    class Sorting(Shelf):
        def commit(self) -> dict[int, int]:
            self.quarantined += sum(number % 10 == 0 for buffer in self.buffered.values() for number, _ in buffer)
            return super().commit()

    publish(transport, range(1_000))
    shelf = Sorting(quarantined=7)  # of an earlier life: not this process's
    with running(transport, shelf) as service:
        until(lambda: shelf.count >= 1_000)
    service.join_and_raise()
    assert service.progress.rejected == sum(
        number % 10 == 0 for b in transport.read_all("positions") for number in b.offsets
    )


def test_a_partition_that_moves_is_committed_before_the_next_owner_begins(transport: MemoryTransport) -> None:
    values = publish(transport, range(600))
    shelf = Shelf(due_at=1_000_000)  # one shelf for both members, as one folder is for two processes
    with running(transport, shelf) as first:
        until(lambda: first.progress.records >= 600)
        assert shelf.count == 0
        second_shelf = Shelf(due_at=1, committed=shelf.committed)
        with running(transport, second_shelf, instance=1) as second:
            until(lambda: shelf.released)
            values += publish(transport, range(600, 1_200))
            until(lambda: first.progress.records + second.progress.records >= 1_200)
    first.join_and_raise()
    second.join_and_raise()
    assert shelf.values() == values


def test_a_lost_partition_is_dropped_and_read_again(transport: MemoryTransport) -> None:
    values = publish(transport, range(300))
    shelf = Shelf(due_at=1_000_000)
    with running(transport, shelf) as service:
        until(lambda: service.progress.records >= 300)
        transport.expire("positions", ROLE.name)
        until(lambda: service.progress.records >= 600)
    service.join_and_raise()
    assert {partition for partition, lost in shelf.released if lost} == set(PARTITIONS)
    assert shelf.values() == values


def test_a_slow_sink_holds_the_source_back(transport: MemoryTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.service._QUEUE_PATIENCE_S", 0.01)
    gate = threading.Event()
    shelf = Shelf(due_at=1, gate=gate)
    values: list[bytes] = []
    with running(transport, shelf) as service:
        until(lambda: transport.group("positions", ROLE.name).members)
        [source] = transport.group("positions", ROLE.name).members.values()
        deadline = time.monotonic() + 10
        while not source.is_paused and time.monotonic() < deadline:
            values += publish(transport, range(len(values), len(values) + 100))
            threading.Event().wait(0.002)
        assert source.is_paused
        taken = service.progress.records
        values += publish(transport, range(len(values), len(values) + 100))
        assert service.progress.records == taken
        gate.set()
        until(lambda: shelf.count >= len(values))
    service.join_and_raise()
    assert shelf.values() == values


def test_what_the_sink_refuses_ends_the_loop(transport: MemoryTransport) -> None:
    class Broken(Shelf):
        def resume(self, partition: int) -> int | None:
            raise ChainBroken(f"slot of {partition} is missing")

    service = Running(transport, Broken())
    service.start()
    with pytest.raises(ChainBroken):
        service.join_and_raise()


def batch(start: int, end: int) -> Batch:
    return Batch("positions", 0, [b"%d" % n for n in range(start, end)], np.arange(start, end))


@contextmanager
def landing(shelf: Shelf) -> Iterator[Landing]:
    made = Landing(shelf, lambda *_: None)
    try:
        yield made
    finally:
        made.close()


def test_what_was_read_before_a_displacement_is_not_written_after_it() -> None:
    gate = threading.Event()
    shelf = Shelf(due_at=10, gate=gate, stolen={0: 3})
    with landing(shelf) as made:
        assert made.offer(made.tagged([batch(0, 10)]), 1)
        assert made.offer(made.tagged([batch(10, 20)]), 1)  # the sink has not even seen the first one
        gate.set()
        made.finish()
        assert made.offer(made.tagged([batch(20, 30)]), 1)  # read before the poller has heard of it
        made.finish()
        assert shelf.values() == [b"0", b"1", b"2"]
        assert made.take_displaced() == {0: 3}
        assert made.offer(made.tagged([batch(3, 13)]), 1)
        made.finish()
        assert shelf.count == 13
        assert made.take_acknowledged() == {0: 13}


def test_a_displacement_is_settled_when_the_partition_is_released() -> None:
    shelf = Shelf(due_at=10, stolen={0: 3})
    with landing(shelf) as made:
        assert made.offer(made.tagged([batch(0, 10)]), 1)
        made.finish()
        made.release([0], lost=False)
        assert made.take_displaced() == {}, "the next owner has been told by resume()"
        assert made.resume(0) == 3
        assert made.offer(made.tagged([batch(3, 13)]), 1)
        made.finish()
        assert shelf.count == 13
