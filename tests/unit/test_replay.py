"""A replay keeps the recording's rhythm, says the right times, and announces its pauses."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path

import polars as pl
import pytest

from streaming.errors import UsageError
from streaming.generators.ledger import checked_name
from streaming.generators.pacing import ManualClock
from streaming.generators.recording import FRAME, Recording
from streaming.generators.replay import Rebase, Replay, producer_name
from streaming.generators.run import Chunk

FIRST_US = 1_600_000_000_000_000


def recording(*seconds: float) -> Recording:
    frame = pl.DataFrame(
        {
            "vehicle": ["bike"] * len(seconds),
            "event_time": pl.Series([FIRST_US + round(second * 1e6) for second in seconds], dtype=pl.Int64),
            "latitude": [float(place) for place in range(len(seconds))],
            "longitude": 0.0,
        }
    )
    missing = [pl.lit(None, kind).alias(name) for name, kind in FRAME.items() if name not in frame.columns]
    whole = frame.with_columns(pl.col("event_time").cast(FRAME["event_time"]), *missing).select(FRAME.names())
    return Recording(Path("bike.csv"), whole, 0, None)


def played(replay: Replay, clock: ManualClock, after_us: int = 0) -> list[tuple[float, Chunk]]:
    """Each chunk with the moment it came."""
    return [(clock.now_s, chunk) for chunk in replay.chunks(after_us, threading.Event())]


def said_s(chunk: Chunk, since_us: int) -> list[float]:
    return [(us - since_us) / 1e6 for us in chunk.rows["event_time"].to_physical()]


def test_at_speed_one_events_come_in_the_recordings_rhythm_and_say_now() -> None:
    clock = ManualClock()
    sent = played(Replay(recording(0, 1, 1, 4.5), clock=clock), clock)
    assert [at_s for at_s, _ in sent] == pytest.approx([0, 1, 4.5])
    assert [said_s(chunk, clock.started_us) for _, chunk in sent] == [[0], [1, 1], [4.5]]


@pytest.mark.parametrize("speed", [0.5, 2.0, 10.0])
def test_a_speed_divides_the_rhythm_and_the_times_with_it(speed: float) -> None:
    clock = ManualClock()
    sent = [(at_s, chunk) for at_s, chunk in played(Replay(recording(0, 4, 8), speed=speed, clock=clock), clock)
            if chunk.rows.height]  # fmt: skip
    assert [at_s for at_s, _ in sent] == pytest.approx([0, 4 / speed, 8 / speed])
    assert [said_s(chunk, clock.started_us) for _, chunk in sent] == [[0], [4 / speed], [8 / speed]]


def test_kept_times_are_the_recordings_whatever_the_speed() -> None:
    clock = ManualClock()
    sent = played(Replay(recording(0, 4, 8), speed=4, rebase=Rebase.KEEP, clock=clock), clock)
    assert [said_s(chunk, FIRST_US) for _, chunk in sent] == [[0], [4], [8]]
    assert clock.now_s == pytest.approx(2)


def test_as_fast_as_possible_moves_times_but_does_not_squeeze_them() -> None:
    clock = ManualClock()
    sent = played(Replay(recording(0, 60, 3600), speed=None, clock=clock), clock)
    assert clock.now_s == 0
    assert [said_s(chunk, clock.started_us) for _, chunk in sent] == [[0, 60, 3600]]


def test_the_first_event_is_not_older_than_what_the_producer_has_promised() -> None:
    clock = ManualClock()
    promised_us = clock.started_us + 3_000_000
    sent = played(Replay(recording(0, 1), clock=clock), clock, promised_us)
    assert [said_s(chunk, promised_us) for _, chunk in sent] == [[0], [1]]
    with pytest.raises(UsageError, match="rebase keep"):
        played(Replay(recording(0, 1), rebase=Rebase.KEEP, clock=clock), clock, promised_us)


def test_a_long_pause_is_announced_by_a_mark_up_to_the_event_after_it() -> None:
    clock = ManualClock()
    sent = played(Replay(recording(0, 4, 100), clock=clock), clock)
    marks = [(at_s, chunk.mark_us) for at_s, chunk in sent if chunk.rows.is_empty()]
    assert marks == [(4.0, clock.started_us + 100_000_000)]
    assert said_s(sent[-1][1], clock.started_us) == [100]


def test_a_loop_goes_on_after_the_last_event_for_ever() -> None:
    clock = ManualClock()
    chunks = Replay(recording(0, 1, 2), is_looped=True, clock=clock).chunks(0, threading.Event())
    said = [second for chunk in islice(chunks, 7) for second in said_s(chunk, clock.started_us)]
    assert said == [0, 1, 2, 3, 4, 5, 6]
    assert clock.now_s == pytest.approx(6)


def test_what_is_overdue_comes_at_once_and_nothing_is_skipped() -> None:
    clock = ManualClock()
    chunks = Replay(recording(*(place / 10 for place in range(100))), clock=clock).chunks(0, threading.Event())
    first = next(chunks)
    clock.advance(5.05)
    late = next(chunks)
    assert (first.rows.height, late.rows.height) == (1, 50)
    rest = sum(chunk.rows.height for chunk in chunks)
    assert 1 + 50 + rest == 100


def test_a_dense_recording_goes_out_in_batches_in_its_order() -> None:
    clock = ManualClock()
    sent = played(Replay(recording(*(place / 1000 for place in range(2000))), speed=10, clock=clock), clock)
    assert len(sent) < 30
    assert pl.concat([chunk.rows for _, chunk in sent])["latitude"].to_list() == list(map(float, range(2000)))


def test_a_stop_ends_a_replay_in_a_pause() -> None:
    stop = threading.Event()
    chunks = Replay(recording(0, 1_000)).chunks(0, stop)
    assert next(chunks).rows.height == 1
    assert next(chunks).mark_us is not None
    stop.set()
    assert list(chunks) == []


def test_each_replay_has_a_name_of_its_own() -> None:
    name = producer_name(Path("/somewhere/my drive (2).csv.gz"))
    assert name.startswith("replay-my-drive-2-")
    assert checked_name(name) == name


def test_a_speed_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="above 0"):
        Replay(recording(0), speed=0)
