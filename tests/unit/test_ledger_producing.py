"""Producing: numbered without gap, reserved before sent, confirmed after, marked at the end, honest when it fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pytest

from streaming.batch import Outgoing
from streaming.codecs.json import JsonCodec
from streaming.errors import OutcomeUnknown, UsageError
from streaming.events import MARK, SCHEMAS
from streaming.generators.diagnostics import Diagnostics
from streaming.generators.fleet import Fleet
from streaming.generators.ledger import Account, Ledger, read_ledgers
from streaming.generators.pacing import ManualClock, Pacing
from streaming.generators.positions import Positions
from streaming.generators.run import SETTLE_US, Chunk, Generator, Sent, blank_row, produce
from streaming.generators.vehicles import Vehicles, reference_data
from streaming.interfaces import Publisher
from streaming.progress import Progress
from streaming.service import Limits
from streaming.topology import STREAMS
from streaming.transports.memory import Fault, MemoryTransport
from streaming.turns import Turns
from streaming.turns import read as read_turns


class Lab:
    """A memory broker, a ledger's folder and a clock, for some lives of one producer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.stop = folder, ManualClock(), threading.Event()
        self.transport = MemoryTransport()
        self.transport.create(STREAMS.values(), replication=1)

    def live(self, generator: Generator, publisher: Publisher | None = None, records: int | None = None) -> Sent:
        with Ledger.open(self.folder, "fleet", generator.stream) as ledger:
            return produce(
                generator,
                publisher or self.transport.publisher("fleet"),
                JsonCodec(SCHEMAS[generator.stream]),
                ledger,
                stop=self.stop,
                limits=Limits(messages=records),
                clock=self.clock,
            )

    def positions(self, *, is_paced: bool = True) -> Positions:
        return Positions(1, 4, 10.0, is_paced=is_paced, clock=self.clock)

    def accounts(self) -> list[Account]:
        return read_ledgers(self.folder)

    def landed(self, stream: str) -> pl.DataFrame:
        batches = self.transport.read_all(stream)
        codec = JsonCodec(SCHEMAS[stream])
        decoded = [(batch.partition, codec.decode(batch.values)) for batch in batches]
        assert not any(each.rejections for _, each in decoded)
        rows = pl.concat([each.table.with_columns(partition=pl.lit(partition)) for partition, each in decoded])
        return rows.with_columns(pl.col("event_time").to_physical())


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "ledgers")


@pytest.mark.parametrize("is_paced", [True, False])
def test_every_sequence_is_sent_once_and_confirmed(lab: Lab, *, is_paced: bool) -> None:
    sent = lab.live(lab.positions(is_paced=is_paced), records=1_003)
    events = lab.landed("positions").filter(pl.col("sequence") != MARK)
    assert sorted(events["sequence"]) == list(range(1_003))
    assert (sent.attempted, sent.confirmed) == (1_003, 1_003)
    (account,) = lab.accounts()
    assert account.attempted.ranges == account.confirmed.ranges == [(0, 1_003)]
    assert account.closed
    assert set(events["producer"]) == {"fleet"}
    assert set(events["epoch"]) == {1}


def test_a_sequence_says_which_truth_it_was(lab: Lab) -> None:
    lab.live(lab.positions(is_paced=False), records=400)
    events = lab.landed("positions").filter(pl.col("sequence") != MARK).sort("sequence")
    begin_s = lab.clock.started_us % 86_400_000_000 / 1e6
    truth = Fleet(1, 4, 10.0, begin_s).truth(0, 400)
    assert events["vehicle"].to_list() == truth["vehicle"].to_list()
    assert (events["latitude"] - truth["latitude"]).abs().max() < 6 / 111_000  # type: ignore[operator]


def test_a_vehicle_keeps_its_partition_and_its_order(lab: Lab) -> None:
    lab.live(lab.positions(), records=400)
    events = lab.landed("positions").filter(pl.col("sequence") != MARK)
    assert events.group_by("vehicle").agg(pl.col("partition").n_unique())["partition"].to_list() == [1] * 4
    for _, rows in events.group_by("vehicle", maintain_order=True):
        assert rows["sequence"].is_sorted()


def test_a_sequence_is_on_disk_before_it_is_sent(lab: Lab) -> None:
    class Witness:
        """Asks the ledger's file at each publish whether it knows of what is being sent."""

        outstanding = 0
        seen = 0

        def publish(self, outgoing: Outgoing) -> None:
            (account,) = lab.accounts()
            numbers = [orjson.loads(value)["sequence"] for value in outgoing.values]
            if numbers[0] == MARK:
                assert {orjson.loads(value)["event_time"] for value in outgoing.values} == {account.mark_us}
                return
            assert all(number in account.attempted for number in numbers)
            assert not account.confirmed.contains(np.array(numbers)).any()
            self.seen += len(numbers)

        def flush(self, timeout_s: float) -> bool:
            return timeout_s >= 0

        def close(self) -> None: ...

    witness = Witness()
    lab.live(lab.positions(), witness, records=2_500)
    assert witness.seen == 2_500


def test_nothing_is_confirmed_while_it_is_outstanding(lab: Lab) -> None:
    class Slow:
        """Confirms only when asked to wait for long."""

        outstanding = 0

        def publish(self, outgoing: Outgoing) -> None:
            self.outstanding += len(outgoing.values)
            is_mark = not outgoing.keys[0]
            assert is_mark or lab.accounts()[0].confirmed.count == 0

        def flush(self, timeout_s: float) -> bool:
            if timeout_s >= 30:
                self.outstanding = 0
            return self.outstanding == 0

        def close(self) -> None: ...

    assert lab.live(lab.positions(), Slow(), records=300).confirmed == 300


class Outage:
    """Confirms nothing until it was asked to wait for long so many times; `on_wait` is called at each."""

    outstanding = 0

    def __init__(self, waits: int, on_wait: Callable[[], None] = lambda: None) -> None:
        self.waits, self._on_wait = waits, on_wait

    def publish(self, outgoing: Outgoing) -> None:
        self.outstanding += len(outgoing.values)

    def flush(self, timeout_s: float) -> bool:
        if timeout_s >= 30:
            self.waits -= 1
            self._on_wait()
        if self.waits <= 0:
            self.outstanding = 0
        return not self.outstanding

    def close(self) -> None: ...


def test_an_outage_at_the_end_is_waited_out(lab: Lab) -> None:
    sent = lab.live(lab.positions(), Outage(5), records=300)
    assert (sent.attempted, sent.confirmed) == (300, 300)
    assert lab.accounts()[0].closed


def test_one_that_is_told_to_stop_waits_for_confirmations_once(lab: Lab) -> None:
    outage = Outage(99, on_wait=lab.stop.set)
    with pytest.raises(OutcomeUnknown, match="300 records were not confirmed within"):
        lab.live(lab.positions(), outage, records=300)
    assert outage.waits == 98
    assert lab.accounts()[0].unknown == lab.accounts()[0].attempted


def test_confirmations_come_about_once_a_second(lab: Lab) -> None:
    sent = lab.live(lab.positions(), records=40 * 60)
    lines = (lab.folder / "fleet" / "000001.jsonl").read_text().count("confirmed")
    assert 50 <= lines <= 65
    assert sent.worst_delay_s == 0


def test_a_failed_send_leaves_what_is_not_confirmed_as_unknown(lab: Lab) -> None:
    lab.transport.fail_next(Fault.PUBLISH_UNKNOWN)
    with pytest.raises(OutcomeUnknown):
        lab.live(lab.positions(is_paced=False), records=100_000)
    (account,) = lab.accounts()
    landed = lab.landed("positions")["sequence"].to_numpy()
    assert account.confirmed.count == 0
    assert account.unknown == account.attempted
    assert account.attempted.contains(landed).all()
    assert 0 < len(landed) < account.attempted.count
    with Ledger.open(lab.folder, "fleet", "positions") as ledger:
        assert ledger.epoch == 2


def test_at_the_end_a_mark_on_every_partition_closes_all_windows(lab: Lab) -> None:
    lab.live(lab.positions(), records=40)
    rows = lab.landed("positions")
    marks = rows.filter(sequence=MARK)
    assert sorted(marks["partition"]) == list(range(STREAMS["positions"].partitions))
    assert set(marks["vehicle"]) == {""}
    said = rows["event_time"].to_numpy()
    is_mark = rows["sequence"].to_numpy() == MARK
    assert set(said[is_mark]) == {said[~is_mark].max() + SETTLE_US}
    for _, partition in rows.group_by("partition", maintain_order=True):
        assert partition["sequence"][-1] == MARK


def test_a_restarted_producer_is_not_late_against_its_own_mark(lab: Lab) -> None:
    lab.live(lab.positions(), records=40)
    stopped_us = lab.clock.wall_us()
    lab.live(lab.positions(), records=40)
    rows = lab.landed("positions")
    promised_us = rows.filter(pl.col("epoch") == 1, pl.col("sequence") == MARK)["event_time"][0]
    second = rows.filter(pl.col("epoch") == 2, pl.col("sequence") != MARK)["event_time"].sort()
    assert second[0] >= promised_us
    assert second[0] - stopped_us <= SETTLE_US + 10_000


def test_a_simulated_clock_is_not_followed_by_a_wall_clock_under_the_same_name(lab: Lab) -> None:
    lab.live(lab.positions(is_paced=False), records=20_000)
    with pytest.raises(UsageError, match="another name"):
        lab.live(lab.positions(), records=40)
    assert lab.live(lab.positions(is_paced=False), records=40).confirmed == 40


def test_a_stop_ends_cleanly_with_everything_confirmed(lab: Lab) -> None:
    class StopsLater:
        stream = "positions"
        is_live = True
        pacing = Pacing(None)

        def chunks(self, after_us: int, stop: threading.Event) -> Iterator[Chunk]:
            for chunk in lab.positions().chunks(after_us, stop):
                yield chunk
                if lab.clock.now_s > 2:
                    stop.set()

    sent = lab.live(StopsLater())
    assert sent.attempted == sent.confirmed > 70
    assert lab.accounts()[0].closed


def test_a_pause_is_marked_and_confirmed_before_it_is_waited_for(lab: Lab) -> None:
    class Rests:
        stream = "positions"
        is_live = False
        pacing = Pacing(None)

        def chunks(self, after_us: int, stop: threading.Event) -> Iterator[Chunk]:
            row = next(lab.positions().chunks(after_us, stop)).rows
            yield Chunk(row)
            yield Chunk(row.clear(), lab.clock.wall_us() + 77_000_000)
            (account,) = lab.accounts()
            assert account.confirmed.count == row.height
            assert account.mark_us == lab.clock.wall_us() + 77_000_000
            assert lab.landed("positions").filter(sequence=MARK).height == STREAMS["positions"].partitions

    lab.live(Rests())
    assert lab.accounts()[0].mark_us == lab.clock.wall_us() + 77_000_000


def test_reference_data_and_diagnostics_go_the_same_way(lab: Lab) -> None:
    stop_later = threading.Timer(0.2, lab.stop.set)
    stop_later.start()
    sent = lab.live(Vehicles(reference_data(1, 4), clock=lab.clock))
    assert (sent.attempted, sent.confirmed) == (4, 4)
    assert lab.landed("vehicles")["sequence"].to_list() == [0, 1, 2, 3]  # no mark in a compacted stream
    lab.stop.clear()
    lab.live(Diagnostics(1, 4, clock=lab.clock), records=40)
    nested = lab.landed("diagnostics")
    assert nested.filter(pl.col("sequence") != MARK)["tyres"].list.len().to_list() == [4] * 40


def test_progress_tells_what_is_sent_and_confirmed(lab: Lab) -> None:
    progress = Progress("fleet", lab.folder / "fleet.json")
    with Ledger.open(lab.folder, "fleet", "positions") as ledger:
        produce(
            lab.positions(),
            lab.transport.publisher("fleet"),
            JsonCodec(SCHEMAS["positions"]),
            ledger,
            stop=lab.stop,
            limits=Limits(messages=400),
            progress=progress,
            clock=lab.clock,
        )
    written = orjson.loads((lab.folder / "fleet.json").read_bytes())
    assert (written["records"], written["committed"]) == (400, 400)


def test_each_turns_waiting_for_the_schedule_and_for_confirmations_is_its_own(lab: Lab) -> None:
    """A turn that only rests is not work, and is not taken off the next one's."""

    class Paced:
        stream = "positions"
        is_live = False
        pacing = Pacing(None, lab.clock)

        def chunks(self, after_us: int, stop: threading.Event) -> Iterator[Chunk]:
            rows = next(lab.positions().chunks(after_us, stop)).rows
            for chunk in (Chunk(rows), Chunk(rows.clear(), lab.clock.wall_us()), Chunk(rows)):
                self.pacing.wait(stop, lab.clock.monotonic_s() + 5)
                yield chunk
            self.pacing.wait(stop, lab.clock.monotonic_s() + 5)

    class Slow(Outage):
        def flush(self, timeout_s: float) -> bool:
            lab.clock.now_s += min(timeout_s, 1)
            return super().flush(timeout_s)

    turns = Turns(lab.folder / "fleet.turns", lab.clock.monotonic_s)
    progress = Progress("fleet", clock=lab.clock.monotonic_s, turns=turns)
    with Ledger.open(lab.folder, "fleet", "positions") as ledger:
        codec = JsonCodec(SCHEMAS["positions"])
        produce(Paced(), Slow(0), codec, ledger, stop=lab.stop, progress=progress, clock=lab.clock)
    found = read_turns(lab.folder / "fleet.turns")
    assert found["wait_s"].to_list() == pytest.approx([6, 6, 6, 5])  # seconds: five for the schedule, one to confirm
    assert found["work_s"].to_list() == pytest.approx([0, 0, 0, 0])
    assert progress.loop_s == pytest.approx(23)


def test_a_time_limit_ends_a_producer(lab: Lab) -> None:
    stop = threading.Event()

    class Forever:
        stream = "positions"
        is_live = False
        pacing = Pacing(None)

        def chunks(self, after_us: int, stop: threading.Event) -> Iterator[Chunk]:
            del after_us
            stop.wait()
            yield from ()

    with Ledger.open(lab.folder, "fleet", "positions") as ledger:
        publisher = lab.transport.publisher("fleet")
        sent = produce(
            Forever(), publisher, JsonCodec(SCHEMAS["positions"]), ledger, stop=stop, limits=Limits(for_s=0.05)
        )
    assert sent.attempted == 0
    assert stop.is_set()


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_a_blank_row_fits_its_schema(name: str) -> None:
    row = blank_row(SCHEMAS[name])
    assert row.height == 1
    required = [column.name for column in SCHEMAS[name] if not column.nullable]
    assert row.select(required).null_count().sum_horizontal().item() == 0
