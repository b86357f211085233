"""Pacing is an open loop: deadlines come from the start, not from the last send."""

from __future__ import annotations

import threading
import time
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import UsageError
from streaming.generators.pacing import ManualClock, Pacing, SystemClock, wait_for_own_mark


def paced(rate_hz: float, for_s: float, work_s: list[float]) -> tuple[list[float], Pacing]:
    """When each tick was released, if the work between releases takes `work_s`, again and again."""
    clock, stop = ManualClock(), threading.Event()
    pacing = Pacing(rate_hz, clock)
    released: list[float] = []
    for place, ticks in enumerate(pacing.due(stop)):
        if clock.now_s > for_s:
            break
        assert ticks.start == len(released)
        released += [clock.now_s] * len(ticks)
        clock.advance(work_s[place % len(work_s)])
    return released, pacing


@pytest.mark.parametrize("work_s", [0.0, 0.0026, 0.05, 0.0999])
def test_ten_hertz_is_never_less_however_long_a_send_takes(work_s: float) -> None:
    released, _ = paced(10.0, 100.0, [work_s])
    assert len(released) == 1001  # both ends count; a pause of 0.1 s after 2.6 ms of work would give 975


@given(rate_hz=st.floats(0.5, 500), work_s=st.lists(st.floats(0, 0.5), min_size=1, max_size=5), for_s=st.floats(0.1, 5))
def test_no_tick_is_early_skipped_or_later_than_the_work_before_it(
    rate_hz: float, work_s: list[float], for_s: float
) -> None:
    released, _ = paced(rate_hz, for_s, work_s)
    for tick, at_s in enumerate(released):
        assert at_s >= tick / rate_hz - 1e-9
        assert at_s <= tick / rate_hz + max(work_s) + 1e-9 or sum(work_s) / len(work_s) > 1 / rate_hz


def test_after_a_stall_the_overdue_ticks_come_at_once_and_the_schedule_is_kept() -> None:
    clock, stop = ManualClock(), threading.Event()
    pacing = Pacing(10.0, clock)
    due = pacing.due(stop)
    assert next(due) == range(1)
    clock.advance(1.05)
    assert next(due) == range(1, 11)
    assert pacing.worst_delay_s == pytest.approx(0.95)
    assert next(due) == range(11, 12)
    assert clock.now_s == pytest.approx(1.1)
    assert pacing.delay_s == pytest.approx(0.0)


def test_a_long_stall_is_caught_up_in_blocks_without_a_gap() -> None:
    clock = ManualClock()
    due = Pacing(10.0, clock, block=4).due(threading.Event())
    next(due)
    clock.advance(1.0)
    assert [tick for ticks in islice(due, 4) for tick in ticks] == list(range(1, 12))


def test_without_a_rate_blocks_come_as_they_are_taken() -> None:
    clock = ManualClock()
    assert list(islice(Pacing(None, clock, block=3).due(threading.Event()), 2)) == [range(3), range(3, 6)]
    assert clock.now_s == 0


def test_a_stop_ends_the_wait_at_once() -> None:
    stop = threading.Event()
    due = Pacing(0.01, SystemClock()).due(stop)
    assert next(due) == range(1)
    threading.Timer(0.05, stop.set).start()
    began = time.monotonic()
    assert list(due) == []
    assert time.monotonic() - began < 50  # the next tick would have been due in 100 s


def test_a_producer_waits_until_its_own_mark_has_passed() -> None:
    clock = ManualClock()
    assert wait_for_own_mark(clock, clock.wall_us() + 4_000_000, "p", threading.Event())
    assert clock.now_s == pytest.approx(4.0)
    assert wait_for_own_mark(clock, 0, "p", threading.Event())
    assert clock.now_s == pytest.approx(4.0)


def test_a_mark_far_in_the_future_is_refused_with_the_remedy() -> None:
    clock = ManualClock()
    with pytest.raises(UsageError, match="another name"):
        wait_for_own_mark(clock, clock.wall_us() + 3_600_000_000, "p", threading.Event())
