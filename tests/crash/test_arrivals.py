"""The sink for queues: killed at each point of a commit, raced by another owner, given everything again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sinks.arrivals import ArrivalSink
from sinks.files import Rotation
from sinks.reader import quarantine_scan
from sinks.slots import CHECKPOINTS
from streaming.batch import Batch
from streaming.events import MARK
from streaming.home import Home
from streaming.topology import role
from tests.brokers.rabbitmq_scenes import CODEC, IDENTITY, landed, positions


class Killed(BaseException):
    """Stands for SIGKILL: nothing below may catch it."""


def killing_at(point: str) -> Callable[[str], None]:
    def checkpoint(name: str) -> None:
        if name == point:
            raise Killed(name)

    return checkpoint


def sink_in(home: Path, checkpoint: Callable[[str], None] = lambda _: None) -> ArrivalSink:
    chosen = role("positions-parquet")
    made = ArrivalSink(
        Home(home), "rabbitmq", chosen, CODEC, IDENTITY, rotation=Rotation(rows=100), writer="t", checkpoint=checkpoint
    )
    made.resume(0)
    return made


def batch(values: list[bytes], first: int = 1) -> Batch:
    return Batch("positions", 0, values, np.arange(first, first + len(values), dtype=np.int64))


def events(start: int, end: int) -> list[bytes]:
    return CODEC.encode(positions(end - start, first=start))


def assert_landed(home: Path, count: int) -> None:
    rows = landed(home, "rabbitmq").sort("_offset")
    assert sorted(rows["sequence"]) == list(range(count))
    assert rows["_offset"].to_list() == list(range(count))


def rejected(home: Path) -> list[bytes]:
    return sorted(quarantine_scan(Home(home), "rabbitmq", "positions_parquet").collect()["payload"])


@pytest.mark.parametrize("point", CHECKPOINTS)
def test_killed_at_any_point_of_a_commit_each_event_lands_once(tmp_path: Path, point: str) -> None:
    first = sink_in(tmp_path)
    first.write(batch(events(0, 50)))
    first.commit()
    second = sink_in(tmp_path, killing_at(point))
    second.write(batch([*events(50, 100), b"poison"]))
    with pytest.raises(Killed):
        second.commit()

    third = sink_in(tmp_path)  # nothing was acknowledged, so everything comes again, and more
    third.write(batch([*events(0, 100), b"poison", *events(100, 120)]))
    assert third.commit() == {0: 122}
    assert_landed(tmp_path, 120)
    assert rejected(tmp_path) == [b"poison"]


def test_of_two_owners_each_writes_what_the_other_has_not(tmp_path: Path) -> None:
    one, other = sink_in(tmp_path), sink_in(tmp_path)
    one.write(batch([*events(0, 60), b"poison"]))
    other.write(batch([*events(30, 100), b"poison", b"more"]))
    assert one.commit() == {0: 62}
    assert other.commit() == {0: 73}
    assert other.displaced() == {}
    assert_landed(tmp_path, 100)
    assert rejected(tmp_path) == [b"more", b"poison"]
    assert (one.quarantined, other.quarantined) == (1, 1)


def test_repeats_and_marks_are_acknowledged_and_not_written(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    marks = CODEC.encode(positions(1).with_columns(sequence=pl.lit(MARK, pl.Int64)))
    sink.write(batch([*events(0, 10), *events(5, 12), *marks, *marks]))
    assert sink.commit() == {0: 20}
    assert sink.repeats == 5
    sink.write(batch(events(0, 12), first=20))
    assert sink.commit() == {0: 32}
    assert_landed(tmp_path, 12)
    assert sink.commit() == {}


def test_a_lost_connection_drops_the_buffer_and_an_orderly_release_commits_it(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    sink.write(batch(events(0, 10)))
    sink.release([0], lost=True)
    assert sink.commit() == {}
    sink.resume(0)
    sink.write(batch(events(0, 10)))
    sink.release([0], lost=False)
    assert_landed(tmp_path, 10)


def test_a_full_buffer_is_due_even_if_it_holds_repeats_only(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    assert not sink.is_due
    sink.write(batch(events(0, 1) * 99))
    assert not sink.is_due
    sink.write(batch(events(0, 1), first=200))
    assert sink.is_due
