"""The loop of a transformer, on the broker in memory: each input counts once, whatever happens to the commits."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from streaming.batch import Decoded, Outgoing, Rejection
from streaming.errors import RestartRequired
from streaming.interfaces import Transport
from streaming.progress import Progress
from streaming.service import Limits, run_flow
from streaming.topology import STREAMS, role, stream
from streaming.transports.memory import Fault, MemoryTransaction, MemoryTransport

ROLE = role("means-transformer")


class Lines:
    """A codec: "vehicle sequence" and "vehicle total" as text."""

    name = "lines"

    def decode(self, values: Sequence[bytes]) -> Decoded:
        split = [value.split() for value in values]
        rows = [place for place, words in enumerate(split) if len(words) == 2]
        table = pl.DataFrame({
            "vehicle": [split[place][0].decode() for place in rows],
            "sequence": [int(split[place][1]) for place in rows],
        }, schema={"vehicle": pl.String, "sequence": pl.Int64})  # fmt: skip
        rejections = tuple(Rejection(place, "two words") for place in range(len(values)) if place not in set(rows))
        return Decoded(table, np.array(rows, np.int64), rejections)

    def encode(self, table: pl.DataFrame) -> list[bytes]:
        return [f"{vehicle} {total}".encode() for vehicle, total in table.iter_rows()]


class RunningTotal:
    """A step: each row with the sum of all rows of its partition so far."""

    def initial(self, partition: int) -> int:  # noqa: ARG002
        return 0

    def advance(self, state: int, rows: pl.DataFrame) -> tuple[int, Mapping[str, pl.DataFrame]]:
        totals = rows.select("vehicle", total=pl.col("sequence").cum_sum() + state)
        late = totals.clear()
        return state + int(rows["sequence"].sum()), {"position_means": totals, "late_positions": late}

    def dump(self, state: int) -> bytes:
        return b"%d" % state

    def load(self, snapshot: bytes) -> int:
        return int(snapshot)


CODECS = {name: Lines() for name in ("positions", "position_means", "late_positions")}


@pytest.fixture
def transport() -> MemoryTransport:
    made = MemoryTransport()
    made.create(STREAMS.values(), replication=1)
    return made


def publish(transport: MemoryTransport, numbers: range, *, pinned: int | None = None) -> None:
    values = [b"v%d %d" % (n % 7, n) for n in numbers]
    partitions = None if pinned is None else [pinned] * len(values)
    transport.publisher("tests").publish(Outgoing("positions", values, [b"v%d" % (n % 7) for n in numbers], partitions))


def run(transport: MemoryTransport, limits: Limits, records_per_commit: int = 100_000) -> Progress:
    progress = Progress(ROLE.name)
    run_flow(
        transport, ROLE, RunningTotal(), CODECS, stop=threading.Event(), progress=progress, limits=limits,
        commit_every_s=0.02, records_per_commit=records_per_commit,
    )  # fmt: skip
    return progress


def expected(transport: Transport) -> list[bytes]:
    outputs = []
    for batch in transport.read_all("positions"):
        total = 0
        for vehicle, sequence in (value.split() for value in batch.values):
            total += int(sequence)
            outputs.append(b"%s %d" % (vehicle, total))
    return sorted(outputs)


def landed(transport: Transport) -> list[bytes]:
    return sorted(value for batch in transport.read_all("position_means") for value in batch.values)


def test_each_input_counts_once_and_a_restart_goes_on_with_the_state(transport: MemoryTransport) -> None:
    publish(transport, range(100))
    assert run(transport, Limits(messages=100)).committed == 100
    publish(transport, range(100, 250))
    assert run(transport, Limits(messages=150)).committed == 150
    assert landed(transport) == expected(transport)


@pytest.mark.parametrize("seed", range(20))
def test_each_input_counts_once_whatever_happens_to_the_commits(transport: MemoryTransport, seed: int) -> None:
    chance = random.Random(seed)
    lives = 0
    for start in range(0, 600, 100):
        publish(transport, range(start, start + 100))
        for fault in chance.sample([Fault.COMMIT_ABORTED, Fault.COMMIT_UNKNOWN_DONE, Fault.COMMIT_UNKNOWN_LOST], 2):
            transport.fail_next(fault)
        while len(landed(transport)) < start + 100:
            lives += 1
            try:
                run(transport, Limits(for_s=0.1), records_per_commit=chance.choice([1, 30, 1_000]))
            except RestartRequired:
                continue
    assert lives > 6, "the faults did not come"
    assert landed(transport) == expected(transport)


def test_a_transaction_is_waiting_and_the_step_is_work(
    transport: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    commit, advance = MemoryTransaction.commit, RunningTotal.advance

    def slow_commit(*arguments: Any) -> bool:
        now[0] += 3
        return commit(*arguments)

    def slow_step(*arguments: Any) -> Any:
        now[0] += 0.5
        return advance(*arguments)

    monkeypatch.setattr(MemoryTransaction, "commit", slow_commit)
    monkeypatch.setattr(RunningTotal, "advance", slow_step)
    publish(transport, range(10), pinned=2)
    progress = Progress(ROLE.name, clock=lambda: now[0])
    run_flow(
        transport, ROLE, RunningTotal(), CODECS, stop=threading.Event(), progress=progress, limits=Limits(messages=10)
    )
    assert progress.loop_s is not None
    assert progress.loop_s - progress.waited_s == 0.5, "ten records of one partition are one step"
    assert progress.waited_s % 3 == 0
    assert progress.waited_s > 0


def test_input_that_cannot_be_decoded_is_counted_and_skipped(transport: MemoryTransport) -> None:
    publish(transport, range(5), pinned=2)
    transport.publisher("tests").publish(Outgoing("positions", [b"what?", b""], [b"k", b"k"], [2, 2]))
    publish(transport, range(5, 10), pinned=2)
    progress = run(transport, Limits(messages=12))
    assert (progress.committed, progress.rejected) == (12, 2)
    assert len(landed(transport)) == 10
    assert transport.committed("positions", ROLE.name) == {2: 12}


def test_outputs_are_keyed_by_the_streams_key(transport: MemoryTransport) -> None:
    publish(transport, range(70))
    run(transport, Limits(messages=70))
    vehicles = {
        batch.partition: {value.split()[0] for value in batch.values} for batch in transport.read_all("position_means")
    }
    assert sum(map(len, vehicles.values())) == 7
    assert stream("position_means").key == "vehicle"


def test_transactions_that_are_always_aborted_end_the_process(transport: MemoryTransport) -> None:
    publish(transport, range(10))
    for _ in range(10):
        transport.fail_next(Fault.COMMIT_ABORTED)
    with pytest.raises(RestartRequired, match="in a row"):
        run(transport, Limits(messages=10))
    assert landed(transport) == []


def test_a_transaction_that_was_aborted_is_counted_and_made_again(transport: MemoryTransport) -> None:
    publish(transport, range(10))
    transport.fail_next(Fault.COMMIT_ABORTED)
    progress = run(transport, Limits(messages=10))
    assert (progress.retried, progress.committed) == (1, 10)
    assert landed(transport) == expected(transport)


def test_an_idle_transformer_commits_nothing(transport: MemoryTransport) -> None:
    run(transport, Limits(for_s=0.1))
    assert {extent.high for extent in transport.extents("means_state").values()} == {0}


def test_two_instances_share_the_work(transport: MemoryTransport) -> None:
    stop = threading.Event()
    progresses = [Progress(ROLE.name), Progress(ROLE.name)]
    threads = [
        threading.Thread(
            target=run_flow,
            args=(transport, ROLE, RunningTotal(), CODECS),
            kwargs={"stop": stop, "progress": progress, "instance": instance, "commit_every_s": 0.02,
                    "limits": Limits(for_s=20)},
        )
        for instance, progress in enumerate(progresses)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    try:
        published = 0
        while min(progress.committed for progress in progresses) == 0 and published < 100_000:
            publish(transport, range(published, published + 100))
            published += 100
            threading.Event().wait(0.01)
        while len(landed(transport)) < published and any(thread.is_alive() for thread in threads):
            threading.Event().wait(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert min(progress.committed for progress in progresses) > 0
    assert landed(transport) == expected(transport)
